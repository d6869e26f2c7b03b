"""What a witness cosigned last, for each log: looked at and replaced in one durable transaction, also between processes."""

from __future__ import annotations

import sqlite3
import threading
import time
from pathlib import Path

from medmesh.ledger.note import Checkpoint
from medmesh.ledger.witness import Accepted, Refusal, Request, decide, origin_of
from medmesh.witness.site import Site

_MOST_EVIDENCE = 1_000
_TABLES = """
CREATE TABLE IF NOT EXISTS seen (
    origin TEXT PRIMARY KEY, size INTEGER NOT NULL, root BLOB NOT NULL, note TEXT NOT NULL, at INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS refused (
    origin TEXT NOT NULL, size INTEGER NOT NULL, status INTEGER NOT NULL, note TEXT NOT NULL, at INTEGER NOT NULL);
"""


class Memory:
    """SQLite with synchronous FULL: what was answered is on the disk, so that no crash makes it forget and cosign another history."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._sql = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10)
        self._sql.execute("PRAGMA journal_mode=WAL")
        self._sql.execute("PRAGMA synchronous=FULL")
        self._sql.executescript(_TABLES)

    def close(self) -> None:
        """Close the file."""
        self._sql.close()

    def known(self, origin: str) -> Checkpoint | None:
        """The newest checkpoint that was cosigned."""
        row = self._sql.execute("SELECT size, root FROM seen WHERE origin = ?", (origin,)).fetchone()
        return Checkpoint(origin, row[0], row[1]) if row else None

    def evidence(self) -> list[tuple[str, int, int, str, int]]:
        """(origin, size the witness knew, status, signed note, time) of what a known log signed and was refused for: perhaps a proof."""
        return list(self._sql.execute("SELECT origin, size, status, note, at FROM refused ORDER BY at"))

    def take(self, site: Site, request: Request) -> Accepted | Refusal:
        """Decide, and if the checkpoint is accepted, store it before anybody else is heard."""
        with self._lock:
            self._sql.execute("BEGIN IMMEDIATE")
            try:
                decided = self._decided(site, request)
            except BaseException:
                self._sql.execute("ROLLBACK")
                raise
            self._sql.execute("COMMIT")
            return decided

    def _decided(self, site: Site, request: Request) -> Accepted | Refusal:
        origin, now = origin_of(request.note), int(time.time())
        known = self.known(origin)
        decided = decide(request, site.logs, known)
        if isinstance(decided, Accepted):
            row = (origin, decided.checkpoint.size, decided.checkpoint.root, request.note, now)
            self._sql.execute("INSERT OR REPLACE INTO seen VALUES (?, ?, ?, ?, ?)", row)
        elif decided.signed:
            (count,) = self._sql.execute("SELECT count(*) FROM refused").fetchone()
            if count < _MOST_EVIDENCE:
                row_ = (origin, known.size if known else 0, decided.status.value, request.note, now)
                self._sql.execute("INSERT INTO refused VALUES (?, ?, ?, ?, ?)", row_)
        return decided
