"""A committed model that is gone before its copy was made is made again: hospitals keep their updates until then, and the same updates in
the same order give the same bytes. Nothing that was committed changes by it."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from sqlalchemy import bindparam, func, select, update

from medmesh.contracts.federation import GoneReason, ModelGone, RoundKind
from medmesh.contracts.plan import Plan
from medmesh.errors import Problem
from medmesh.federated.plan import plan_of
from medmesh.service.runtime import Runtime
from medmesh.store.prepared import Prepared
from medmesh.store.unit import AuditEntry, UnitOfWork
from medmesh_federation import pace, results, secure, transcript
from medmesh_federation.domain import Round, Situation, State
from medmesh_federation.handlers import WHOLE, entity, invited, there
from medmesh_federation.ports import Ports
from medmesh_federation.tables import federations, participants, rounds

_WHOLE = Prepared(WHOLE.where(federations.c.federation == bindparam("federation")))
_COMMITTED = (rounds.c.federation == bindparam("federation"), rounds.c.state == "committed", rounds.c.round < bindparam("round"))
_MADE_BY = Prepared(
    select(rounds.c.round, rounds.c.state_object)
    .where(*_COMMITTED, rounds.c.model["sha256"].as_string() == bindparam("base"))
    .order_by(rounds.c.round.desc())
    .limit(1)
)
_NEWEST = Prepared(select(func.max(rounds.c.round).label("round")).where(*_COMMITTED))


async def remake(runtime: Runtime, ports: Ports, row: Any) -> Sequence[Any] | None:
    """Make what training round `row` left once more: None when it is there. Else the updates that are gone, too, and not asked for yet:
    before they are there again it cannot be made. Raises `Problem`: `federation.remade` where it never is the same, with the reason."""
    async with runtime.unit() as uow:
        (federation,) = await uow.rows(_WHOLE, federation=row.federation)
        plan = plan_of(federation)
        if plan.privacy is not None and plan.privacy.unit == "hospital" and plan.secure is None:
            # Another draw of the noise is another release, which nobody has paid for.
            raise _never(row, "noise")
        people = select(participants.c.hospital, participants.c.state).where(participants.c.federation == row.federation)
        states = {one.hospital: one.state for one in await uow.all(people)}
        left = {hospital for hospital, state in states.items() if state == "withdrawn"}
        given, waiting, unable = await pace.counted(uow, row.federation, plan, row.round, row.attempt)
        if waiting & left or unable:  # from whom nothing comes any more
            raise _never(row, "unable" if unable else "left")
        if waiting:
            return []
        state = await _state_before(uow, plan, row)
        opening = None
        if plan.secure is not None:
            said = await transcript.said(uow, row.federation, row.round, row.attempt)
            opening = secure.Opening(transcript.session_of(federation, row.round, row.attempt), said)
        # Whose update looked wrong is known by now: it is not among those that counted.
        judged = plan.model_copy(update={"screening": None})
        parties = frozenset(a.hospital for a in given)
        current = Round(row.round, row.attempt, RoundKind(row.kind), row.state, frozenset(row.assigned), parties, frozenset(), row.deadline)
        situation = Situation(State(federation.state), judged, True, states, frozenset(), current, 0, None, stored=False, now=uow.now)
    then = SimpleNamespace(**{**{column.name: getattr(federation, column.name) for column in federations.c}, "model": row.base})
    then.state_object = state
    try:
        with ports.holding() as held:
            made = await results.result(held, then, situation, given, opening)
    except Problem as problem:
        if problem.code == "objects.missing" and (gone := [a for a in given if not await there(ports, a.update["sha256"])]):
            return gone  # of what else it is made every part is in the kept store
        raise
    remembered = made.state.model_dump() if made.state else None
    personal = {hospital: ref.model_dump() for hospital, ref in made.personal.items()} or None
    if (made.model.model_dump(), remembered, personal) != (row.model, row.state_object, row.personal):
        raise _never(row, "left" if left else "changed")
    return None


def _never(row: Any, why: GoneReason) -> Problem:
    return Problem("federation.remade", federation=row.federation, round=row.round, why=why)


async def give_up(runtime: Runtime, row: Any, why: GoneReason) -> None:
    """Note, once, that the model of round `row` is gone for good: people are shown it until they went back before it, or its file is there
    again after all."""
    async with runtime.unit() as uow:
        (federation,) = await uow.rows(_WHOLE, federation=row.federation)
        this = (rounds.c.federation == row.federation) & (rounds.c.round == row.round) & (rounds.c.attempt == row.attempt)
        noted = update(rounds).where(this, rounds.c.gone_since.is_(None), ~rounds.c.stored)
        if (await uow.execute(noted.values(gone_since=uow.now, gone_why=why))).rowcount:
            detail: dict[str, str | int | bool] = {"round": row.round, "model": row.model["sha256"], "reason": why}
            about, who = (entity(federation),), invited(federation)
            uow.emit(ModelGone(federation=row.federation, round=row.round, why=why, hospitals=who))
            uow.audit(AuditEntry("federation.gone", "D", outcome=8, why="federation.remade", entities=about, hospitals=who, detail=detail))


async def _state_before(uow: UnitOfWork[Any], plan: Plan, row: Any) -> dict[str, Any] | None:
    """What the algorithm remembered when the round began: by the model it began with, also where others were undone in between."""
    from medmesh.federated.aggregation import algorithm_of

    about = {"federation": row.federation, "round": row.round}
    (before, *_) = [*await uow.rows(_MADE_BY, **about, base=row.base["sha256"]), None]
    if before is None:
        return None
    (newest,) = await uow.rows(_NEWEST, **about)
    # After a roll-back hospitals have no longer their half of it.
    return None if algorithm_of(plan).JOINT and newest.round != before.round else before.state_object
