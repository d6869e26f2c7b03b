"""What people and hospitals may see of federations."""

from __future__ import annotations

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
from medmesh.store.unit import UnitOfWork
from medmesh_federation import privacy
from medmesh_federation.domain import plan_of
from medmesh_federation.pages import ROOM, page
from medmesh_federation.ports import HANDLERS, Ports
from medmesh_federation.queue import ahead, not_before, waits
from medmesh_federation.tables import federations, participants, rounds

_MOST = 200
_MOST_DIGESTS = 500
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
        ahead=await ahead(uow, row),
        not_before=await not_before(uow, row, plan, waiting),
        privacy=await privacy.view(uow, row.federation, plan),
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
    columns = (rounds.c.digest, rounds.c.round, rounds.c.attempt)
    wanted = select(*columns).where(later, rounds.c.digest.is_not(None)).order_by(rounds.c.round, rounds.c.attempt)
    found = await uow.all(wanted.limit(_MOST_DIGESTS + 1))
    shown = found[:_MOST_DIGESTS]
    last = (shown[-1].round, shown[-1].attempt) if shown else (given.round, given.attempt)
    return RoundChain(digests=tuple(row.digest for row in shown), round=last[0], attempt=last[1], more=len(found) > len(shown))


@HANDLERS.answers(ListFederations)
async def list_all(query: Envelope[ListFederations], uow: UnitOfWork[Ports]) -> FederationList:
    """The last 200 federations that the asker may see, newest first."""
    newest = select(rounds.c.federation, func.max(rounds.c.round).label("round")).group_by(rounds.c.federation).subquery()
    wanted = select(federations, newest.c.round).outerjoin(newest, newest.c.federation == federations.c.federation)
    found = await uow.access.visible(
        uow, "federation", wanted.order_by(federations.c.created_at.desc()), lambda row: str(row.federation), _MOST
    )
    return FederationList(federations=tuple(_summary(row, thing.label.record) for row, thing in found))


def _summary(row: Any, label: SecurityLabel) -> FederationSummary:
    plan = plan_of(row)
    return FederationSummary(
        federation=row.federation,
        name=row.name,
        state=row.state,
        round=row.round or 0,
        rounds=plan.rounds,
        participants=tuple(plan.participants),
        label=label,
    )
