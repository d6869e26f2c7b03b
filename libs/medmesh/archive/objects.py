"""The bytes of an archive's objects: encrypted under the hospital's key, named by the SHA-256 of what they say.

<folder>/objects/     see `medmesh.store.objects`; an object counts when a row of the index names it
<folder>/moving       locked by whoever moves, erases or wraps anew

The body of an object may lie in a cold tier (`medmesh.archive.tiers`): it is read from there, and comes back for having been read.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from medmesh.archive.tables import now_ms, open_archive, transaction
from medmesh.errors import Problem
from medmesh.store.objects.directory import DirectoryBlobs
from medmesh.store.objects.encrypted import EncryptedStore
from medmesh.store.objects.envelope import Wrapping
from medmesh.store.objects.incoming import Incoming
from medmesh.store.objects.tiered import Cold, TieredBlobs

LEFT_SECONDS = 3600.0
"""How old a file must be before it is taken for what a kill left: no object takes that long to arrive."""


def _no_cold() -> Cold:
    raise Problem("archive.cold_away", reason="edge.json names none")


class Objects:
    """Of the archive in `folder`. May be used from several threads and processes at once. `hot` has what is here, `store` everything."""

    def __init__(self, folder: Path, wrapping: Wrapping, cold: Callable[[], Cold] = _no_cold) -> None:
        self.folder = folder / "objects"
        self.cold = cold
        self._archive = folder
        self._blobs = DirectoryBlobs(self.folder)
        self._wrapping = wrapping
        self.hot = EncryptedStore(self._blobs, wrapping)
        self.store = EncryptedStore(TieredBlobs(self._blobs, cold, self._wished), wrapping)

    def incoming(self) -> Incoming:
        """One that arrives."""
        return Incoming(self._blobs, self._wrapping)

    def read(self, sha256: str) -> bytes:
        """All of it. Raises `Problem` (`objects.missing`, `objects.damaged`, `keyring.*`)."""
        return b"".join(self.store.open(sha256))

    def has(self, sha256: str) -> bool:
        """Whether there is a header of it."""
        return (self.folder / sha256[:2] / f"{sha256}.key").exists()

    @contextmanager
    def moving(self) -> Iterator[None]:
        """Alone among those who move, erase or wrap anew, in all processes."""
        with open(self._archive / "moving", "ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _wished(self, name: str) -> None:
        """Somebody read it where it is cold."""
        connection = open_archive(self._archive)
        try:
            if connection.execute("SELECT 1 FROM tiers WHERE name = ? AND state = 'cold'", (name,)).fetchone():
                with transaction(connection):
                    connection.execute("UPDATE tiers SET state = 'recalling', at = ? WHERE name = ? AND state = 'cold'", (now_ms(), name))
        finally:
            connection.close()

    def free(self) -> int:
        """Bytes that may still be written here."""
        found = os.statvfs(self.folder)
        return found.f_bavail * found.f_frsize

    def sweep(self, connection: sqlite3.Connection, older: float = LEFT_SECONDS) -> int:
        """Remove what kills left: unfinished files, and objects that no row names; how many. Safe while others receive."""
        before, gone = time.time() - older, 0
        for folder in self.folder.iterdir():
            for path in folder.iterdir():
                try:
                    old = path.stat().st_mtime < before
                except FileNotFoundError:
                    continue
                if old and (path.name.startswith(".") or not _named(connection, path.name.partition(".")[0])):
                    path.unlink(missing_ok=True)
                    gone += 1
        return gone


def _named(connection: sqlite3.Connection, sha256: str) -> bool:
    return connection.execute("SELECT 1 FROM objects WHERE sha256 = ? LIMIT 1", (sha256,)).fetchone() is not None
