"""What a person does with an object in quarantine, and its record: written with the change in the archive, taken over by the node once."""

from __future__ import annotations

import sqlite3

from medmesh.archive import records, states
from medmesh.archive.states import Held
from medmesh.archive.tables import open_archive, transaction
from medmesh.contracts.message import new_id
from medmesh.errors import Problem
from medmesh.store.unit import Entity
from medmesh_edge.archiving import record_body, take_over
from medmesh_edge.originals import objects
from medmesh_edge.ports import Site


def at_stage(site: Site, stage: str) -> list[int]:
    """The numbers of all that is held back at a stage, oldest first."""
    connection = open_archive(site.layout.archive, read_only=True)
    try:
        wanted = "SELECT id FROM objects WHERE state = 'quarantined' AND stage = ? ORDER BY id"
        return [int(row[0]) for row in connection.execute(wanted, (stage,))]
    finally:
        connection.close()


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
    about = (Entity("dataset", f"{site.settings.hospital}/{held.project}"), Entity("object", str(held.id)))
    records.add(connection, new_id(), record_body(verb, action, about, {"stage": held.stage, "reason": held.reason}))
