"""STOW-RS at the node: a request's objects into the archive, and the record of the request with them.

Objects are kept by the group: written as they come, waited for together, then committed in one transaction and given their places in the
index in the next. The record begins in the transaction that keeps the first objects and counts each in its own (`medmesh.archive.records`).
It is closed at the request's end and is in the node's store before the answer; of a request that a kill cut short it says what was kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from fastapi import Request
from starlette.requests import ClientDisconnect

from medmesh.archive import header, indexing, records
from medmesh.archive.header import Entry
from medmesh.archive.objects import Objects
from medmesh.archive.receive import Origin, Outcome, Receiver, Sealed
from medmesh.archive.records import Growing
from medmesh.archive.scan import PREFIX
from medmesh.contracts.message import new_id
from medmesh.dicomweb import media, stow
from medmesh.dicomweb.stow import Stored, Storing
from medmesh.errors import Problem
from medmesh.imaging.pseudonyms import pseudonym
from medmesh.security.keys import read_secret
from medmesh.store.objects.envelope import Rejoined
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
        await archive.commit(lambda connection: records.close(connection, record, last))
        await archive.record(record.id)


def _record(site: Site, client: Client) -> Growing:
    about = (Entity("dataset", f"{site.settings.hospital}/{client.project}"),)
    counts = {"realm": client.realm, "stored": 0, "known": 0, "failed": 0}
    return Growing(new_id(), record_body("dicomweb.store", "C", about, counts, client.actor(site.settings.hospital)))


def _address(request: Request) -> str:
    return request.client.host if request.client else ""


class _Taking:
    """An arriving object, as STOW-RS wants it: with its entry in the index, read while its beginning is in memory."""

    def __init__(self, receiver: Receiver, origin: Origin) -> None:
        self._arrival = receiver.begin_file(origin)
        self.write = self._arrival.write
        self.abandon = self._arrival.abandon

    def seal(self) -> tuple[Sealed, Entry | None]:
        """See `medmesh.dicomweb.stow.Sink`."""
        sealed = self._arrival.seal()
        return sealed, _entry(self._arrival.beginning) if sealed.incoming is not None and not sealed.outcome.reason else None


def _entry(source: Rejoined) -> Entry | None:
    """None where the header cannot be read, or goes on behind what is there."""
    try:
        return header.read(source)
    except Problem:
        return None


async def _store(archive: Archive, request: Request, origin: Origin) -> list[Stored]:
    """A request's objects, received as they come, and in the index when this ends."""
    storing = await asyncio.to_thread(_begun, archive, request.headers.get("content-type"), origin)
    held: list[bytes] = []

    def feed() -> None:
        storing.feed(b"".join(held))
        held.clear()

    def finish() -> list[Stored]:
        feed()
        return storing.finish()

    try:
        async for piece in request.stream():
            held.append(piece)
            if sum(map(len, held)) >= PIECE:
                await asyncio.to_thread(feed)
        return await asyncio.to_thread(finish)
    except ClientDisconnect:
        raise Problem("dicomweb.multipart", reason="cut short") from None
    finally:
        await asyncio.to_thread(storing.close)


def _begun(archive: Archive, content_type: str | None, origin: Origin) -> Storing[tuple[Sealed, Entry | None]]:
    receiver = archive.receiver
    if receiver.refuses():
        raise Problem("dicomweb.no_room", retry=stow.RETRY_SECONDS)

    def keep(sealed: list[tuple[Sealed, Entry | None]]) -> list[Stored]:
        outcomes = receiver.keep([one for one, _ in sealed])
        fresh = [(one, entry) for one, (_, entry) in zip(outcomes, sealed, strict=True) if one.id and not one.known and not one.reason]
        entries = {one.id: _read(archive.objects, one) if entry is None and one.size > PREFIX else entry for one, entry in fresh}
        away = _away(archive.site, entries)
        # At once, so that what was stored is found; the sender is told of what contradicts it.
        refused = receiver.commit(lambda connection: indexing.place(connection, entries, away)) if entries else {}
        return [_stored(one, refused.get(one.id, one.status)) for one in outcomes]

    return Storing(content_type, lambda: _Taking(receiver, origin), keep)


def _read(objects: Objects, outcome: Outcome) -> Entry | None:
    """From where it is kept: its header is long."""
    return _entry(Rejoined(objects.store.open(outcome.sha256)))


def _away(site: Site, entries: Mapping[int, Entry | None]) -> set[str]:
    """Which of these instances are of patients who were forgotten and stay away."""
    key = read_secret(site.layout.site_key).strip()
    whose = {one.sop: pseudonym(one.patient_id or f"study {one.study}", key) for one in entries.values() if one is not None}
    away = withdrawn.away(site, set(whose.values()))
    return {sop for sop, patient in whose.items() if patient in away}


def _stored(outcome: Outcome, status: int) -> Stored:
    return Stored(status, outcome.sop_class, outcome.sop, outcome.study, outcome.series, outcome.id, outcome.known)
