"""What people and hospitals may see of federations."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime
from typing import Any

from sqlalchemy import func, select, tuple_

from medmesh.contracts.federation import (
    FederationList,
    FederationPage,
    FederationSummary,
    FederationView,
    GetFederation,
    GetFederationPage,
    GetRoundChain,
    ListFederations,
    RoundChain,
)
from medmesh.contracts.labels import SecurityLabel
from medmesh.contracts.message import Envelope
from medmesh.contracts.plan import Plan
from medmesh.errors import Problem
from medmesh.federated.plan import plan_of
from medmesh.store.unit import UnitOfWork
from medmesh_federation import privacy, rollback
from medmesh_federation.domain import BEFORE
from medmesh_federation.pages import ROOM, page
from medmesh_federation.ports import HANDLERS, Ports
from medmesh_federation.queue import ahead, ends, not_before, waits
from medmesh_federation.tables import federations, participants, rounds

_MOST = 200
_MOST_DIGESTS = 150
"""With what each of these rounds began with, they are 50 KB."""
_MOST_REASONS = 20
"""Of what a federation waits for."""


@HANDLERS.answers(GetFederation)
async def get(query: Envelope[GetFederation], uow: UnitOfWork[Ports]) -> FederationView:
    """One federation, with its first page."""
    row, plan = await _row(uow, query.data.federation)
    where = participants.c.federation == row.federation
    people = {one.hospital: one.state for one in await uow.all(select(participants.c.hospital, participants.c.state).where(where))}
    waiting = (await waits(uow, row, plan, people, uow.ports))[:_MOST_REASONS]
    view = FederationView(
        federation=row.federation,
        state=row.state,
        plan=plan,
        plan_hash=row.plan_hash,
        chain=row.chain,
        participants=(),
        rounds=(),
        evaluation=(),
        model=row.model,
        failure=row.failure,
        changed=row.changed,
        waiting=waiting,
        waiting_since=row.waiting_since,
        fails_at=await ends(uow, row, plan, people, uow.ports),
        reason=row.reason,
        approved_until=row.approved_until if row.state in BEFORE else None,
        ahead=await ahead(uow, row),
        not_before=await not_before(uow, row, plan, waiting),
        privacy=await privacy.view(uow, row.federation, plan),
        gone=await rollback.gone(uow, row),
    )
    first = await page(uow, row, plan, room=max(0, ROOM - len(view.model_dump_json())))
    return view.model_copy(update=first.listed())


@HANDLERS.answers(GetFederationPage)
async def further(query: Envelope[GetFederationPage], uow: UnitOfWork[Ports]) -> FederationPage:
    """What did not fit into the view."""
    row, plan = await _row(uow, query.data.federation)
    return FederationPage(**(await page(uow, row, plan, after=query.data.after)).listed())


async def _row(uow: UnitOfWork[Ports], federation: str) -> tuple[Any, Plan]:
    row = (await uow.execute(select(federations).where(federations.c.federation == federation))).one()
    return row, plan_of(row)


@HANDLERS.answers(GetRoundChain)
async def round_chain(query: Envelope[GetRoundChain], uow: UnitOfWork[Ports]) -> RoundChain:
    """Digests of rounds, none of which tells what a hospital did."""
    given = query.data
    later = (rounds.c.federation == given.federation) & (tuple_(rounds.c.round, rounds.c.attempt) > tuple_(given.round, given.attempt))
    columns = (rounds.c.digest, rounds.c.links, rounds.c.round, rounds.c.attempt)
    wanted = select(*columns).where(later, rounds.c.digest.is_not(None)).order_by(rounds.c.round, rounds.c.attempt)
    found = await uow.all(wanted.limit(_MOST_DIGESTS + 1))
    shown = found[:_MOST_DIGESTS]
    last = (shown[-1].round, shown[-1].attempt) if shown else (given.round, given.attempt)
    links = tuple(row.links or () for row in shown)
    digests = tuple(row.digest for row in shown)
    return RoundChain(digests=digests, links=links, round=last[0], attempt=last[1], more=len(found) > len(shown))


@HANDLERS.answers(ListFederations)
async def list_all(query: Envelope[ListFederations], uow: UnitOfWork[Ports]) -> FederationList:
    """Those that the asker may see, newest first: a keyset, so that one that is made meanwhile shifts nothing. Raises `Problem`
    (`request.invalid`) for a cursor that is none."""
    asked, f = query.data, federations.c
    newest = select(rounds.c.federation, func.max(rounds.c.round).label("round")).group_by(rounds.c.federation).subquery()
    wanted = select(federations, newest.c.round).outerjoin(newest, newest.c.federation == f.federation)
    if asked.state is not None:
        wanted = wanted.where(f.state == asked.state)
    if asked.mine:
        wanted = wanted.where(f.initiator == uow.actor.text)
    if asked.hospital is not None:
        wanted = wanted.where(f.federation.in_(select(participants.c.federation).where(participants.c.hospital == asked.hospital)))
    if asked.after:
        wanted = wanted.where(tuple_(f.created_at, f.federation) < tuple_(*_place(asked.after)))
    order = wanted.order_by(f.created_at.desc(), f.federation.desc())
    found = await uow.access.visible(uow, "federation", order, lambda row: str(row.federation), _MOST + 1)
    listed: list[FederationSummary] = []
    room, last = ROOM, None
    for row, thing in found[:_MOST]:
        summary = _summary(row, thing.label.record)
        room -= len(summary.model_dump_json()) + 1
        if room < 0 and last is not None:
            break
        listed.append(summary)
        last = row
    more = f"{last.created_at.isoformat()}~{last.federation}" if last is not None and len(listed) < len(found) else ""
    return FederationList(federations=tuple(listed), more=more)


def _place(after: str) -> tuple[datetime, str]:
    moment, _, federation = after.partition("~")
    with suppress(ValueError):
        if (at := datetime.fromisoformat(moment)).tzinfo is not None and federation:
            return at, federation
    raise Problem("request.invalid", reason="after: what a list before it ended with")


def _summary(row: Any, label: SecurityLabel) -> FederationSummary:
    return FederationSummary(
        federation=row.federation,
        initiator=row.initiator,
        created=row.created_at,
        name=row.name,
        state=row.state,
        round=row.round or 0,
        rounds=row.plan["rounds"],
        participants=tuple(row.plan["participants"]),
        label=label,
    )
