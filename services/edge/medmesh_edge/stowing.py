"""STOW-RS at the node: a request's objects into the archive, and the record of the request with them.

The record begins in the transaction that keeps the first object and counts each in its own (`medmesh.archive.records`). It is closed at
the request's end and is in the node's store before the answer; of a request that a kill cut short it says what was kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from sqlite3 import Connection
from typing import Any

from fastapi import Request
from starlette.requests import ClientDisconnect

from medmesh.archive import indexing, records
from medmesh.archive.header import Entry
from medmesh.archive.receive import Origin, Receiver
from medmesh.archive.records import Growing
from medmesh.archive.tables import transaction
from medmesh.contracts.message import new_id
from medmesh.dicomweb import media, stow
from medmesh.dicomweb.stow import Sink, Stored, Storing
from medmesh.errors import Problem
from medmesh.imaging.pseudonyms import pseudonym
from medmesh.security.keys import read_secret
from medmesh.store.unit import Entity
from medmesh_edge import withdrawn
from medmesh_edge.archiving import INTERRUPTED, Archive, record_body
from medmesh_edge.clients import Client
from medmesh_edge.ports import Site

PIECE = 256 * 1024
"""What is gathered of a body before a thread takes it."""


async def take(archive: Archive, request: Request, client: Client, study: str, root: str) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the answer, once objects and record are on the disk. Raises `Problem` (`dicomweb.*`)."""
    record = _record(archive.site, client)
    last: dict[str, Any] = INTERRUPTED
    try:
        media.choose(media.accepted(request.headers.get("accept")), (media.JSON, "application/json"))
        found = await _store(archive, request, Origin(client.project, "dicom-web", client.name, _address(request), study, record))
        kept = [one for one in found if one.status == 0]
        known = sum(1 for one in kept if one.known)
        last = {"detail": {"stored": len(kept) - known, "known": known, "failed": len(found) - len(kept)}}
        return stow.answer(found, root)
    except Problem as problem:
        last = {"out": 4, "why": problem.code}
        raise
    finally:
        await archive.work(lambda connection: _close(connection, record, last))
        await archive.record(record.id)


def _record(site: Site, client: Client) -> Growing:
    about = (Entity("dataset", f"{site.settings.hospital}/{client.project}"),)
    counts = {"realm": client.realm, "stored": 0, "known": 0, "failed": 0}
    return Growing(new_id(), record_body("dicomweb.store", "C", about, counts, client.actor(site.settings.hospital)))


def _close(connection: Connection, record: Growing, last: dict[str, Any]) -> None:
    with transaction(connection):
        records.close(connection, record, last)


def _address(request: Request) -> str:
    return request.client.host if request.client else ""


class _Taking:
    """An arriving object, as STOW-RS wants it."""

    def __init__(self, receiver: Receiver, origin: Origin) -> None:
        self._arrival = receiver.begin_file(origin)
        self.write = self._arrival.write
        self.abandon = self._arrival.abandon

    def finish(self) -> Stored:
        """See `medmesh.dicomweb.stow.Sink`."""
        found = self._arrival.finish()
        return Stored(found.status, found.sop_class, found.sop, found.study, found.series, found.id, found.known)


async def _store(archive: Archive, request: Request, origin: Origin) -> list[Stored]:
    """A request's objects, received as they come, and in the index when this ends."""
    receiver = await asyncio.to_thread(lambda: archive.receiver)
    reason = await asyncio.to_thread(receiver.refuses)
    if reason:
        raise Problem("dicomweb.no_room", retry=stow.RETRY_SECONDS)

    def begin() -> Sink:
        return _Taking(receiver, origin)

    storing = Storing(request.headers.get("content-type"), begin)
    try:
        held: list[bytes] = []
        size = 0
        async for piece in request.stream():
            held.append(piece)
            size += len(piece)
            if size >= PIECE:
                await asyncio.to_thread(storing.feed, b"".join(held))
                held, size = [], 0
        if held:
            await asyncio.to_thread(storing.feed, b"".join(held))
        found = await asyncio.to_thread(storing.finish)
    except ClientDisconnect:
        raise Problem("dicomweb.multipart", reason="cut short") from None
    finally:
        await asyncio.to_thread(storing.close)
    return await archive.work(lambda connection: _place(archive, connection, found))


def _place(archive: Archive, connection: Connection, found: list[Stored]) -> list[Stored]:
    """Into the index at once, so that what was stored is found; the sender is told of what contradicts it."""
    fresh = [one.id for one in found if one.status == 0 and not one.known]
    refused = indexing.place(connection, archive.objects, fresh, lambda entries: _away(archive.site, entries))
    return [Stored(refused[one.id], one.sop_class, one.sop, one.study, one.series, one.id) if one.id in refused else one for one in found]


def _away(site: Site, entries: Sequence[Entry]) -> set[str]:
    """Which of these instances are of patients who were forgotten and stay away."""
    key = read_secret(site.layout.site_key).strip()
    whose = {one.sop: pseudonym(one.patient_id or f"study {one.study}", key) for one in entries}
    away = withdrawn.away(site, set(whose.values()))
    return {sop for sop, patient in whose.items() if patient in away}
