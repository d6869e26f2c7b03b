"""What people do to a federation that runs: pause it, resume it, give a round more time; and a hospital leaves for good."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sqlalchemy import select, update

from medmesh.contracts.federation import (
    AdjustFederation,
    ExtendRound,
    FederationPaused,
    FederationResumed,
    ParticipantWithdrew,
    PauseFederation,
    ResumeFederation,
    RoundExtended,
    SecurePhase,
    WithdrawFromFederation,
)
from medmesh.contracts.message import Envelope
from medmesh.contracts.plan import changed
from medmesh.errors import Problem
from medmesh.federated.plan import plan_of
from medmesh.store.attempts import same_attempt
from medmesh.store.unit import AuditEntry, Entity, UnitOfWork
from medmesh_federation.answering import IN_MODEL, PART_OF, own
from medmesh_federation.domain import OPEN_STATES, State
from medmesh_federation.handlers import entity, invited, locked
from medmesh_federation.ports import HANDLERS, Ports
from medmesh_federation.tables import answers, federations, participants, rounds

OPENING = (SecurePhase.SURVIVORS, SecurePhase.REVEAL)
"""Phases in which a sum is opened: a vector that is in it cannot be taken out, and without it nobody could open the rest."""


@HANDLERS.on(PauseFederation)
async def pause(command: Envelope[PauseFederation], uow: UnitOfWork[Ports]) -> dict[str, Any]:
    """The coordinator does nothing more for it; answers to the open round are still taken."""
    row = await locked(uow, command.data.federation)
    if row.state == State.PAUSED:
        uow.unchanged()
        return {"state": row.state}
    if row.state != State.RUNNING:
        raise Problem("federation.closed", federation=row.federation, state=row.state)
    reason = command.data.reason
    await _set(uow, row, state=State.PAUSED.value, waiting_since=uow.now, reason=reason)
    uow.emit(FederationPaused(federation=row.federation, reason=reason, hospitals=invited(row)))
    detail: dict[str, str | int | bool] = {"to": "paused", **({"reason": reason} if reason else {})}
    uow.audit(AuditEntry("federation.pause", "U", entities=(entity(row),), hospitals=invited(row), detail=detail))
    return {"state": State.PAUSED.value}


@HANDLERS.on(ResumeFederation)
async def resume(command: Envelope[ResumeFederation], uow: UnitOfWork[Ports]) -> dict[str, Any]:
    """Whoever works on the open round gets the time back."""
    row = await locked(uow, command.data.federation)
    if row.state == State.RUNNING:
        uow.unchanged()
        return {"state": row.state}
    if row.state != State.PAUSED:
        raise Problem("federation.closed", federation=row.federation, state=row.state)
    uow.emit(FederationResumed(federation=row.federation, hospitals=invited(row)))
    current = await _open_round(uow, row)
    if current is not None:
        await _extend(uow, current, uow.now - row.waiting_since)
    await _set(uow, row, state=State.RUNNING.value, waiting_since=None, reason="")
    uow.audit(AuditEntry("federation.pause", "U", entities=(entity(row),), hospitals=invited(row), detail={"to": "running"}))
    uow.on_commit(uow.ports.wake.set)
    return {"state": State.RUNNING.value}


@HANDLERS.on(AdjustFederation)
async def adjust(command: Envelope[AdjustFederation], uow: UnitOfWork[Ports]) -> dict[str, Any]:
    """The open round goes on as it was opened; hospitals hear of it with the next one, and refuse what they did not sign for."""
    row, wanted = await locked(uow, command.data.federation), {str(name): value for name, value in command.data.changed.items()}
    if row.initiator != uow.actor.text:
        raise Problem("federation.initiator", plan=row.initiator, actor=uow.actor.text)
    if row.state not in OPEN_STATES:
        raise Problem("federation.closed", federation=row.federation, state=row.state)
    try:
        changed(plan_of(row), wanted)
    except ValueError as error:
        raise Problem("federation.outside", what=str(error)[:80]) from None
    if row.changed == wanted:
        uow.unchanged()
        return {"changed": wanted}
    await _set(uow, row, changed=wanted)
    detail: dict[str, str | int | bool] = dict(wanted)
    uow.audit(AuditEntry("federation.adjust", "U", entities=(entity(row),), hospitals=invited(row), detail=detail))
    return {"changed": wanted}


@HANDLERS.on(ExtendRound)
async def extend(command: Envelope[ExtendRound], uow: UnitOfWork[Ports]) -> dict[str, Any]:
    """Twice asked for is twice as long: each command counts once."""
    row = await locked(uow, command.data.federation)
    current = await _open_round(uow, row)
    if row.state not in (State.RUNNING, State.PAUSED) or current is None:
        raise Problem("federation.no_round", federation=row.federation, state=row.state)
    deadline = await _extend(uow, current, timedelta(seconds=command.data.seconds))
    detail: dict[str, str | int | bool] = {"round": current.round, "seconds": command.data.seconds}
    uow.audit(AuditEntry("federation.extend", "U", entities=(entity(row),), hospitals=invited(row), detail=detail))
    uow.on_commit(uow.ports.wake.set)
    return {"deadline": deadline.isoformat()}


@HANDLERS.on(WithdrawFromFederation)
async def withdraw(command: Envelope[WithdrawFromFederation], uow: UnitOfWork[Ports]) -> dict[str, Any]:
    """At any time. What the hospital gave to the open round is forgotten; what is part of a committed model stays there."""
    row = await locked(uow, command.data.federation)
    mine = await own(uow, row.federation)
    theirs = (answers.c.federation == row.federation) & (answers.c.hospital == uow.actor.id)
    part = await uow.all(select(PART_OF).join(rounds, same_attempt(rounds, answers)).where(theirs, IN_MODEL).distinct())
    if mine.state == "withdrawn":
        uow.unchanged()
        return {"state": mine.state, "rounds": len(part)}
    if mine.state not in ("accepted", "dropped", "excluded", "quarantined"):
        raise Problem("federation.not_taking_part", federation=row.federation, state=mine.state)
    where = (participants.c.federation == row.federation) & (participants.c.hospital == uow.actor.id)
    await uow.execute(update(participants).where(where).values(state="withdrawn", reason=command.data.reason))
    current = await _open_round(uow, row)
    if current is not None and current.phase not in OPENING:
        # Counts no more, and is deleted with what the others gave when the round is over.
        last = theirs & (answers.c.round == current.round) & (answers.c.attempt == current.attempt)
        counts = answers.c.failed.is_(None) & ~answers.c.late
        await uow.execute(update(answers).where(last, counts).values(failed="withdrawn", results=None, metrics={}))
    uow.emit(ParticipantWithdrew(federation=row.federation, hospital=uow.actor.id, rounds=len(part), hospitals=invited(row)))
    about = (entity(row), Entity("hospital", uow.actor.id))
    uow.audit(AuditEntry("federation.withdraw", "U", entities=about, hospitals=invited(row), detail={"rounds": len(part)}))
    uow.on_commit(uow.ports.wake.set)
    return {"state": "withdrawn", "rounds": len(part)}


async def _set(uow: UnitOfWork[Ports], row: Any, **values: Any) -> None:
    await uow.execute(update(federations).where(federations.c.federation == row.federation).values(values))


async def _open_round(uow: UnitOfWork[Ports], row: Any) -> Any:
    return await uow.first(select(rounds).where(rounds.c.federation == row.federation, rounds.c.state == "open"))


async def _extend(uow: UnitOfWork[Ports], current: Any, by: timedelta) -> Any:
    where = (rounds.c.federation == current.federation) & (rounds.c.round == current.round) & (rounds.c.attempt == current.attempt)
    deadline = current.deadline + by
    await uow.execute(update(rounds).where(where).values(deadline=deadline))
    uow.emit(
        RoundExtended(
            federation=current.federation,
            round=current.round,
            attempt=current.attempt,
            deadline=deadline,
            hospitals=tuple(current.assigned),
        )
    )
    return deadline
