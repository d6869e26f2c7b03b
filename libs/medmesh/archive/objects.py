"""The bytes of an archive's objects: encrypted under the hospital's key, named by the SHA-256 of what they say.

<folder>/objects/     see `medmesh.store.objects`; an object counts when a row of the index names it
"""

from __future__ import annotations

import os
import sqlite3
import time
from pathlib import Path

from medmesh.store.objects.directory import DirectoryBlobs
from medmesh.store.objects.encrypted import EncryptedStore
from medmesh.store.objects.envelope import Wrapping
from medmesh.store.objects.incoming import Incoming

LEFT_SECONDS = 3600.0
"""How old a file must be before it is taken for what a kill left: no object takes that long to arrive."""


class Objects:
    """Of the archive in `folder`. May be used from several threads and processes at once."""

    def __init__(self, folder: Path, wrapping: Wrapping) -> None:
        self.folder = folder / "objects"
        self._blobs = DirectoryBlobs(self.folder)
        self._wrapping = wrapping
        self.store = EncryptedStore(self._blobs, wrapping)

    def incoming(self) -> Incoming:
        """One that arrives."""
        return Incoming(self._blobs, self._wrapping)

    def read(self, sha256: str) -> bytes:
        """All of it. Raises `Problem` (`objects.missing`, `objects.damaged`, `keyring.*`)."""
        return b"".join(self.store.open(sha256))

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
