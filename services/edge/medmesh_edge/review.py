"""What a person does with an object in quarantine, and its record: written with the change in the archive, taken over by the node once."""

from __future__ import annotations

import json
import sqlite3
from typing import Any

from medmesh.archive import index, states
from medmesh.archive.states import Held
from medmesh.archive.tables import open_archive, transaction
from medmesh.contracts.message import new_id
from medmesh.errors import Problem
from medmesh.store.unit import AuditEntry, Entity
from medmesh_edge.originals import objects
from medmesh_edge.ports import Site


async def release(site: Site, object_id: int) -> None:
    """Have it go through the pipeline once more. Raises `Problem` (`dicom.not_quarantined`)."""
    connection = open_archive(site.layout.archive)
    try:
        with transaction(connection):
            held = _held(connection, object_id)
            states.release(connection, object_id)
            _to_record(connection, site, "quarantine.release", "U", held)
        await take_over(site, connection)
    finally:
        connection.close()


async def drop(site: Site, object_id: int) -> None:
    """Destroy it. Raises `Problem` (`dicom.not_quarantined`)."""
    connection = open_archive(site.layout.archive)
    try:
        with transaction(connection):
            held = _held(connection, object_id)
            sha256 = states.drop(connection, object_id)
            _to_record(connection, site, "quarantine.drop", "D", held)
        if sha256 is not None:
            states.erase(connection, objects(site), [sha256])
        await take_over(site, connection)
    finally:
        connection.close()


def _held(connection: sqlite3.Connection, object_id: int) -> Held:
    found = states.held_one(connection, object_id)
    if found is None:
        raise Problem("dicom.not_quarantined", id=object_id)
    return found


def _to_record(connection: sqlite3.Connection, site: Site, verb: str, action: str, held: Held) -> None:
    """Which object it was is told by a number that means something here alone."""
    entities = [["dataset", f"{site.settings.hospital}/{held.project}"], ["object", str(held.id)]]
    body: dict[str, object] = {"verb": verb, "action": action, "entities": entities}
    index.record(connection, new_id(), body | {"detail": {"stage": held.stage, "reason": held.reason}})


async def take_over(site: Site, connection: sqlite3.Connection) -> int:
    """Put on record what the archive left to be; how many. Killed between the two stores, it is done once all the same."""
    rows: list[tuple[str, str]] = connection.execute("SELECT id, body FROM records ORDER BY id LIMIT 100").fetchall()
    if not rows:
        return 0
    async with site.unit() as uow:
        for identifier, text in rows:
            if await uow.journal.remember("archive.records", identifier, uow.now):
                body: dict[str, Any] = json.loads(text)
                entities = tuple(Entity(*one) for one in body["entities"])
                verb = body["verb"]
                uow.audit(AuditEntry(verb, body["action"], entities=entities, detail=body["detail"]))
    with transaction(connection):
        connection.executemany("DELETE FROM records WHERE id = ?", [(identifier,) for identifier, _ in rows])
    return len(rows)
