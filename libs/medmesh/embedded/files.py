"""Files and folders of the data folder: private, and whole or absent."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


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


def password(path: Path) -> str:
    """The password in `path`; the first call makes one of 256 random bits."""
    if not path.exists():
        write(path, secrets.token_urlsafe(32))
    return path.read_text(encoding="utf-8").strip()
