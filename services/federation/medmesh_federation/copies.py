"""Objects of stores that are no folder, as files of this machine: while somebody works with them, and updates until their round is over."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from medmesh.contracts.message import ObjectRef
from medmesh.store.objects.port import ObjectStore, fetch


@dataclass
class Copies:
    """`folder` is nobody else's. Copies are taken by who holds them, see `held`."""

    folder: Path
    _users: Counter[str] = field(default_factory=Counter)
    _kept: set[str] = field(default_factory=set)
    _mine: list[str] | None = None

    @contextmanager
    def held(self) -> Iterator[Copies]:
        """Copies that are taken through what this yields stay until the block ends; afterwards only what was kept."""
        mine: list[str] = []
        try:
            yield Copies(self.folder, self._users, self._kept, mine)
        finally:
            for sha256 in mine:
                self._users[sha256] -= 1
                self._unless_needed(sha256)

    async def take(self, store: ObjectStore, ref: ObjectRef) -> Path:
        """A copy. Raises `Problem` when the bytes are not its own."""
        assert self._mine is not None, "nobody holds it"
        self._mine.append(ref.sha256)
        self._users[ref.sha256] += 1
        return await fetch(store, ref, self._place(ref.sha256))

    def keep(self, sha256: str) -> None:
        """It will be asked for again, where it is here."""
        if sha256 in self._users:
            self._kept.add(sha256)

    def forget(self, sha256: str) -> None:
        """Nobody will ask for it any more: it goes with the last who works with it."""
        if sha256 in self._kept:
            self._kept.remove(sha256)
            self._unless_needed(sha256)

    def keep_only(self, needed: Collection[str]) -> None:
        """Forget all others."""
        for sha256 in self._kept - set(needed):
            self.forget(sha256)

    def _unless_needed(self, sha256: str) -> None:
        if self._users[sha256] > 0 or sha256 in self._kept:
            return
        del self._users[sha256]
        place = self._place(sha256)
        for path in (place, place.with_name(f"{place.name}.part")):
            path.unlink(missing_ok=True)

    def _place(self, sha256: str) -> Path:
        return self.folder / sha256


@contextmanager
def workplace(state: Path) -> Iterator[Path]:
    """A folder for this process alone, which goes with it: what processes that were killed left behind goes now. They may be several on one
    `state`; the lock on its folder says that one lives."""
    above = state / "work"
    above.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _locked(above):  # nobody's folder is taken away before it is locked
        for left in above.iterdir():
            with suppress(BlockingIOError), _locked(left, wait=False):
                shutil.rmtree(left)
        # Where the first release copied and decoded updates, in the clear. What processes of this one use lies in `work`.
        for old in (state / "objects", *state.glob("tmp*")):
            shutil.rmtree(old, ignore_errors=True)
        mine = Path(tempfile.mkdtemp(dir=above))
        lock = _lock(mine, wait=False)
    try:
        yield mine
    finally:
        shutil.rmtree(mine, ignore_errors=True)
        os.close(lock)


@contextmanager
def _locked(folder: Path, *, wait: bool = True) -> Iterator[None]:
    descriptor = _lock(folder, wait=wait)
    try:
        yield
    finally:
        os.close(descriptor)


def _lock(folder: Path, *, wait: bool) -> int:
    """Locked until it is closed, which the kernel does in the end. Raises `BlockingIOError`."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
