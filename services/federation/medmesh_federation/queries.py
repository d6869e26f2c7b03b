"""What people and hospitals may see of federations."""

from __future__ import annotations

from math import isfinite
from typing import Any

from sqlalchemy import func, select, tuple_

from medmesh.contracts.federation import (
    AnswerView,
    EvaluationView,
    FederationList,
    FederationSummary,
    FederationView,
    GetFederation,
    GetRoundChain,
    ListFederations,
    ParticipantView,
    RoundChain,
    RoundView,
)
from medmesh.contracts.labels import SecurityLabel
from medmesh.contracts.message import Envelope
from medmesh.contracts.plan import Plan
from medmesh.store.unit import UnitOfWork
from medmesh_federation import privacy
from medmesh_federation.evaluation import GLOBAL
from medmesh_federation.ports import HANDLERS, Ports
from medmesh_federation.quarantine import release_digest
from medmesh_federation.queue import waits
from medmesh_federation.tables import answers, federations, flags, participants, rounds

_MOST_ROUNDS = 100
_MOST = 200
_MOST_DIGESTS = 500


@HANDLERS.answers(GetFederation)
async def get(query: Envelope[GetFederation], uow: UnitOfWork[Ports]) -> FederationView:
    """One federation; a hospital sees of the others' answers nothing but that they answered."""
    wanted = query.data.federation
    row = (await uow.execute(select(federations).where(federations.c.federation == wanted))).one()
    plan = Plan.model_validate(row.plan)
    hospital = uow.actor.id if uow.actor.kind == "hospital" else None
    leases, seconds = uow.ports.leases, plan.lease_seconds
    people = tuple(
        ParticipantView(
            hospital=p.hospital,
            state=p.state,
            online=leases.online(p.hospital, seconds),
            drops=p.drops,
            reason=p.reason,
            release=release_digest(wanted, row.plan_hash, p.hospital, p.quarantines) if p.state == "quarantined" else None,
            progress=uow.ports.progress.of(wanted, p.hospital),
        )
        for p in await uow.all(select(participants).where(participants.c.federation == wanted).order_by(participants.c.hospital))
    )
    given: dict[tuple[int, int], list[AnswerView]] = {}
    evaluation: list[EvaluationView] = []
    found = await uow.all(
        select(rounds).where(rounds.c.federation == wanted).order_by(rounds.c.round.desc(), rounds.c.attempt.desc()).limit(_MOST_ROUNDS)
    )
    names = {m["weights"]["sha256"]: m["name"] for r in found for m in r.models}
    if row.state == "completed" and row.model["sha256"] in names:
        names[row.model["sha256"]] = GLOBAL  # of two the one that was kept
    wrong = {(f.round, f.attempt, f.hospital): f for f in await uow.all(select(flags).where(flags.c.federation == wanted))}
    shown = (answers.c.federation == wanted) & (answers.c.round >= min((r.round for r in found), default=0))
    for a in await uow.all(select(answers).where(shown).order_by(answers.c.hospital)):
        size = a.update["bytes"] if a.update else 0
        mine = hospital in (None, a.hospital)
        results = (a.results or {}) if mine and not a.late else {}
        view = AnswerView(
            hospital=a.hospital,
            samples=a.samples if mine else 0,
            late=a.late,
            counted=a.counted,
            bytes=size,
            metrics=a.metrics if mine else {},
            counts=results.pop("base", None),
            milliseconds=a.milliseconds if mine else {},
            **_flagged(found_wrong, mine) if (found_wrong := wrong.get((a.round, a.attempt, a.hospital))) else {},
        )
        given.setdefault((a.round, a.attempt), []).append(view)
        evaluation += [EvaluationView(hospital=a.hospital, name=names.get(m, m), counts=c) for m, c in sorted(results.items())]
    views = tuple(_round_view(r, tuple(given.get((r.round, r.attempt), ()))) for r in reversed(found))
    return FederationView(
        federation=row.federation,
        state=row.state,
        plan=plan,
        plan_hash=row.plan_hash,
        chain=row.chain,
        participants=people,
        rounds=views,
        evaluation=tuple(evaluation),
        model=row.model,
        failure=row.failure,
        waiting=await waits(uow, row, plan, {one.hospital: one.state for one in people}, uow.ports),
        privacy=await privacy.view(uow, wanted, plan),
    )


def _flagged(row: Any, mine: bool) -> dict[str, Any]:
    """What was found wrong with an answer; in figures for those who may see its own."""
    figures = {name: float(getattr(row, name)) for name in ("ratio", "cosine")} if mine else {}
    return {"flags": row.flags, "excluded": row.excluded, **{name: value for name, value in figures.items() if isfinite(value)}}


def _round_view(row: Any, given: tuple[AnswerView, ...]) -> RoundView:
    return RoundView(
        round=row.round,
        attempt=row.attempt,
        kind=row.kind,
        state=row.state,
        opened=row.opened_at,
        deadline=row.deadline,
        closed=row.closed_at,
        base=row.base,
        model=row.model,
        chain=row.chain,
        answers=given,
        undone=row.undone,
        aggregate_milliseconds=row.aggregate_milliseconds,
    )


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
    plan = Plan.model_validate(row.plan)
    return FederationSummary(
        federation=row.federation,
        name=row.name,
        state=row.state,
        round=row.round or 0,
        rounds=plan.rounds,
        participants=tuple(plan.participants),
        label=label,
    )
