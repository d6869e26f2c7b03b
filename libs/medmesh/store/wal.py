"""SQLite's write-ahead logging, for databases that several processes open."""

from __future__ import annotations

import sqlite3
import time


def write_ahead(connection: sqlite3.Connection, seconds: float) -> None:
    """Turn it on, and wait so long for others. Of a new file this wants every lock for a moment: where two want them SQLite answers one of
    them "locked" at once, whatever the timeout. Raises `sqlite3.OperationalError`."""
    end = time.monotonic() + seconds
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > end:
                raise
        time.sleep(0.01)
