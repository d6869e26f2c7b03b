"""Files and folders of the data folder: private, and whole or absent."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

T = TypeVar("T")
SETTLED_NS = 50_000_000
"""A file that changed a moment ago may change again under the same time stamp: what it said is not kept yet."""


class Watched(Generic[T]):
    """What `read` makes of the file `path`, made anew when the file changes. Raises as `read` does."""

    def __init__(self, path: Path, read: Callable[[Path], T]) -> None:
        self.path = path
        self._read = read
        self._place = str(path)  # which the operating system is asked for again and again
        self._kept: tuple[tuple[int, int, int], T] | None = None

    def __call__(self) -> T:
        """As it stands now."""
        try:
            found = os.stat(self._place)
        except OSError:
            return self._read(self.path)
        stamp = (found.st_mtime_ns, found.st_ino, found.st_size)
        if self._kept is not None and self._kept[0] == stamp:
            return self._kept[1]
        made = self._read(self.path)
        self._kept = (stamp, made) if time.time_ns() - found.st_mtime_ns > SETTLED_NS else None
        return made


def folder(path: Path, mode: int = 0o700) -> Path:
    """Make the folder `path` with exactly `mode`, also when it exists; folders above it are made if absent and left alone if not."""
    path.mkdir(mode=mode, parents=True, exist_ok=True)
    if path.stat().st_mode & 0o7777 != mode:
        path.chmod(mode)
    return path


def write(path: Path, text: str, mode: int = 0o600) -> None:
    """Replace `path` by a file of exactly `mode` that holds `text`, at once and durably."""
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        os.fchmod(file.fileno(), mode)
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def write_over(path: Path, data: bytes) -> None:
    """Have a file say `data`, in the place of what it said: the memory and the disk that it has need not be found anew. A kill may leave a
    mixture of both."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as file:
        file.write(data)
        file.truncate()


def password(path: Path) -> str:
    """The password in `path`; the first call makes one of 256 random bits."""
    if not path.exists():
        write(path, secrets.token_urlsafe(32))
    return path.read_text(encoding="utf-8").strip()
