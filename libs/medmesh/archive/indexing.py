"""Received objects into the index before the pipeline looks at them, where their sender waits to find them there."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Set

from medmesh.archive import index
from medmesh.archive.header import Entry
from medmesh.archive.index import Conflict

NOT_TAKEN, NOT_UNDERSTOOD, MISMATCH = 0x0110, 0xC000, 0xA900


def place(connection: sqlite3.Connection, entries: Mapping[int, Entry | None], away: Set[str]) -> dict[int, int]:
    """Give these objects, by the ids of their rows, their places; of those that get none, how their sender is told (PS3.18 table I.2-2).
    They stay received: what becomes of them is the pipeline's to decide. Of None the header could not be read; `away` are the SOP
    instances among them of patients who stay away. Part of its caller's transaction."""
    refused: dict[int, int] = {}
    for one, entry in entries.items():
        # None when it is gone since, or was placed by the pipeline meanwhile.
        wanted = "SELECT scope, digest FROM objects o WHERE id = ? AND NOT EXISTS (SELECT 1 FROM instances WHERE object = o.id)"
        if entry is None:
            refused[one] = NOT_UNDERSTOOD
        elif entry.sop in away:
            refused[one] = NOT_TAKEN
        elif row := connection.execute(wanted, (one,)).fetchone():
            conflict = index.put(connection, row[0], one, entry)
            if conflict is not None and not (conflict is Conflict.KNOWN and _digest(connection, row[0], entry.sop) == row[1]):
                refused[one] = MISMATCH
    return refused


def _digest(connection: sqlite3.Connection, scope: int, sop: str) -> str:
    wanted = "SELECT o.digest FROM instances i JOIN objects o ON o.id = i.object WHERE i.scope = ? AND i.uid = ?"
    return str(connection.execute(wanted, (scope, sop)).fetchone()[0])
