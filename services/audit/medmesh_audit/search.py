"""Finding records: the filters of a search, and what each asker may see."""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import Select, select, type_coerce
from sqlalchemy.dialects.postgresql import JSONB

from medmesh.contracts.audit import Bodies, Body, EventFilter, Events, LoggedEvent
from medmesh.errors import Problem
from medmesh.ledger.leaf import body_document
from medmesh.store.unit import UnitOfWork
from medmesh_audit.tables import entries, facts

PAGE_BYTES = 500_000
"""A page of records or bodies; with base64 and JSON around it still passes the bus in one message."""


def restrict(wanted: Select[Any], scope: str | None) -> Select[Any]:
    """Only what is about one organisation's data; None is everything."""
    return wanted if scope is None else wanted.where(type_coerce(facts.c.orgs, JSONB).contains([scope]))


def conditions(wanted: Select[Any], given: EventFilter) -> Select[Any]:
    """`wanted` (which selects from `facts`) with every filter that is given."""
    for entity in (given.entity, f"patient:{given.patient}" if given.patient else None):
        if entity:
            wanted = wanted.where(type_coerce(facts.c.entities, JSONB).contains([entity]))
    if given.verb:
        prefix = given.verb.endswith("*")
        fits = facts.c.verb.startswith(given.verb[:-1], autoescape=True) if prefix else facts.c.verb == given.verb
        wanted = wanted.where(fits)
    if given.since:
        wanted = wanted.where(facts.c.t >= given.since)
    if given.until:
        wanted = wanted.where(facts.c.t < given.until)
    if given.outcome is not None:
        wanted = wanted.where(facts.c.outcome == int(given.outcome))
    exact = (
        (facts.c.who, given.actor),
        (facts.c.type, given.type),
        (facts.c.purpose, given.purpose),
        (facts.c.correlation, given.correlation),
    )
    for column, value in exact:
        if value:
            wanted = wanted.where(column == value)
    return restrict(wanted, given.org or None)


async def page(uow: UnitOfWork[Any], given: EventFilter, scope: str | None, cursor: int | None, limit: int) -> Events:
    """At most `limit` records after `cursor`, oldest first."""
    wanted = select(facts.c.seq, entries.c.body).join(entries, entries.c.seq == facts.c.seq)
    return await read(uow, restrict(conditions(wanted, given), scope), cursor, limit)


async def read(uow: UnitOfWork[Any], wanted: Select[Any], cursor: int | None, limit: int) -> Events:
    """A page of `wanted`, which selects `seq` and `body`."""
    rows = await uow.all(wanted.where(facts.c.seq > (-1 if cursor is None else cursor)).order_by(facts.c.seq).limit(limit + 1))
    found: list[LoggedEvent] = []
    size = 0
    for row in rows[:limit]:
        size += len(row.body)
        if found and size > PAGE_BYTES:
            break
        found.append(LoggedEvent(seq=row.seq, record=json.loads(row.body)))
    more = len(rows) > len(found)
    return Events(events=tuple(found), next=found[-1].seq if found and more else None)


async def entry(uow: UnitOfWork[Any], event: str, scope: str | None) -> Any:
    """The row of `entries` of a record by its id or number. Raises `Problem`; what one may not see is not there."""
    by = facts.c.seq == int(event) if event.isdecimal() and len(event) < 19 else entries.c.id == event
    wanted = select(entries).join(facts, facts.c.seq == entries.c.seq).where(by).order_by(entries.c.seq).limit(1)
    row = await uow.first(restrict(wanted, scope))
    if row is None:
        raise Problem("request.not_found", kind="audit record", id=event)
    return row


async def bodies(uow: UnitOfWork[Any], scope: str | None, first: int, limit: int) -> Bodies:
    """Salt and body of the records from `first` on that the asker may read."""
    wanted = select(entries.c.seq, entries.c.salt, entries.c.body).join(facts, facts.c.seq == entries.c.seq).where(entries.c.seq >= first)
    rows = await uow.all(restrict(wanted, scope).order_by(entries.c.seq).limit(limit + 1))
    found: list[Body] = []
    size = 0
    for row in rows[:limit]:
        size += len(row.body)
        if found and size > PAGE_BYTES // 2:
            break
        found.append(Body(seq=row.seq, **body_document(row.salt, row.body)))
    return Bodies(bodies=tuple(found), next=found[-1].seq + 1 if len(rows) > len(found) else None)
