"""Received objects into the index before the pipeline looks at them, where their sender waits to find them there."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Sequence, Set

from medmesh.archive import header, index
from medmesh.archive.header import Entry
from medmesh.archive.index import Conflict
from medmesh.archive.objects import Objects
from medmesh.archive.tables import transaction
from medmesh.errors import Problem
from medmesh.store.objects.envelope import Rejoined

NOT_TAKEN, NOT_UNDERSTOOD, MISMATCH = 0x0110, 0xC000, 0xA900


def place(
    connection: sqlite3.Connection, objects: Objects, ids: Iterable[int], unwanted: Callable[[Sequence[Entry]], Set[str]]
) -> dict[int, int]:
    """Give these objects their places; of those that get none, how their sender is told (PS3.18 table I.2-2). They stay received: what
    becomes of them is the pipeline's to decide. `unwanted` says which SOP instances among them are of patients who stay away."""
    refused: dict[int, int] = {}
    read: list[tuple[int, int, str, Entry]] = []
    for one in ids:
        row = connection.execute("SELECT scope, sha256, digest FROM objects WHERE id = ?", (one,)).fetchone()
        if row is None:
            continue
        try:
            read.append((one, row[0], row[2], header.read(Rejoined(objects.store.open(row[1])))))
        except Problem:
            refused[one] = NOT_UNDERSTOOD
    if not read:
        return refused
    away = unwanted([entry for _, _, _, entry in read])
    refused |= {one: NOT_TAKEN for one, _, _, entry in read if entry.sop in away}
    with transaction(connection):
        for one, scope, digest, entry in read:
            if one in refused:
                continue
            # Gone since, or placed by the pipeline meanwhile.
            if connection.execute(
                "SELECT 1 FROM objects o WHERE id = ? AND NOT EXISTS (SELECT 1 FROM instances WHERE object = o.id)", (one,)
            ).fetchone():
                conflict = index.put(connection, scope, one, entry)
                if conflict is not None and not (conflict is Conflict.KNOWN and _digest(connection, scope, entry.sop) == digest):
                    refused[one] = MISMATCH
    return refused


def _digest(connection: sqlite3.Connection, scope: int, sop: str) -> str:
    wanted = "SELECT o.digest FROM instances i JOIN objects o ON o.id = i.object WHERE i.scope = ? AND i.uid = ?"
    return str(connection.execute(wanted, (scope, sop)).fetchone()[0])
