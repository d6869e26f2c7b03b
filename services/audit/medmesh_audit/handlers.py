"""What the bus asks the log: hospitals' own records with proofs. The HTTP door calls the same functions."""

from __future__ import annotations

import base64
from typing import Any

from medmesh.contracts.audit import (
    Bodies,
    EventFilter,
    Events,
    Evidence,
    ListBodies,
    LogFile,
    ProveEvent,
    ReadLog,
    RecordMaintenance,
    SearchEvents,
)
from medmesh.contracts.federation import HospitalAlive
from medmesh.contracts.message import Envelope
from medmesh.ledger.second import PREFIX
from medmesh.store.unit import AuditEntry, Entity, UnitOfWork
from medmesh_audit import queries, search, second
from medmesh_audit.domain import scope
from medmesh_audit.ports import HANDLERS, Ports


async def find(uow: UnitOfWork[Any], given: EventFilter, within: str | None, cursor: int | None, limit: int) -> Events:
    """A page of a search; what was asked is recorded, not what was found."""
    found = await search.page(uow, given, within, cursor, limit)
    if cursor is None:
        asked(uow, given, len(found.events))
    return found


def asked(uow: UnitOfWork[Any], given: EventFilter, found: int) -> None:
    """Record a search."""
    about = (Entity(*given.entity.split(":", 1)),) if given.entity and ":" in given.entity else ()
    filters = {name: str(value) for name, value in given.model_dump(mode="json", exclude_none=True).items() if name != "entity"}
    uow.audit(AuditEntry("audit.search", "R", entities=about, detail={**filters, "found": found}))


async def prove(uow: UnitOfWork[Any], ports: Ports, event: str, within: str | None) -> Evidence:
    """One record with its proof."""
    row = await search.entry(uow, event, within)
    looked(uow, "audit.prove", row.seq)
    return await queries.evidence(uow, row, await ports.witnesses.newest(uow, covering=row.seq), ports.upper)


async def copy(uow: UnitOfWork[Any], within: str | None, first: int, limit: int) -> Bodies:
    """A piece of a copy."""
    if first == 0:
        uow.audit(AuditEntry("audit.copy", "R"))
    return await search.bodies(uow, within, first, limit)


def looked(uow: UnitOfWork[Any], verb: str, seq: int) -> None:
    """Record that somebody read one record."""
    uow.audit(AuditEntry(verb, "R", entities=(Entity("record", str(seq)),)))


@HANDLERS.hears(HospitalAlive)
async def hospital_alive(signal: Envelope[HospitalAlive], ports: Ports) -> None:
    """A node lives: its silence would be an anomaly."""
    ports.anomalies.alive(signal.data.hospital)


@HANDLERS.answers(SearchEvents)
async def search_events(query: Envelope[SearchEvents], uow: UnitOfWork[Ports]) -> Events:
    """A hospital's own records, or an auditor's."""
    given = query.data
    names = EventFilter.model_fields
    return await find(uow, EventFilter(**{name: getattr(given, name) for name in names}), scope(uow.actor), given.cursor, given.limit)


@HANDLERS.answers(ProveEvent)
async def prove_event(query: Envelope[ProveEvent], uow: UnitOfWork[Ports]) -> Evidence:
    """One record with its proof."""
    return await prove(uow, uow.ports, query.data.event, scope(uow.actor))


@HANDLERS.answers(ListBodies)
async def list_bodies(query: Envelope[ListBodies], uow: UnitOfWork[Ports]) -> Bodies:
    """Bodies of what the asker may read."""
    return await copy(uow, scope(uow.actor), query.data.first, query.data.limit)


@HANDLERS.answers(ReadLog)
async def read_log(query: Envelope[ReadLog], uow: UnitOfWork[Ports]) -> LogFile:
    """A file of the log: hashes and headers."""
    path = query.data.path
    if path.startswith(f"{PREFIX}/"):
        return LogFile(content=base64.b64encode(await second.log_file(uow, path.removeprefix(f"{PREFIX}/"))).decode())
    shown = (await uow.ports.witnesses.newest(uow)).note.encode() if path == "checkpoint" else await queries.log_file(uow, path)
    return LogFile(content=base64.b64encode(shown).decode())


@HANDLERS.on(RecordMaintenance)
async def record_maintenance(command: Envelope[RecordMaintenance], uow: UnitOfWork[Ports]) -> dict[str, Any]:
    """What an operator did on the machine itself."""
    done, verb = command.data, command.data.verb
    about = [Entity(thing.kind, thing.id, digest=thing.digest or "") for thing in done.things]
    detail = {"account": done.account, **done.detail}
    uow.audit(AuditEntry(verb, "E", 8 if done.code else 0, done.code, about, detail=detail, at=done.at))
    return {}
