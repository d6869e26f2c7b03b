"""Quarantine: a hospital takes no part, at once and on a person's word or a plan's, until others approved that it comes back."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select, update

from medmesh.contracts.federation import ParticipantQuarantined, ParticipantReleased, QuarantineHospital
from medmesh.contracts.governance import ApprovalGranted
from medmesh.contracts.message import Envelope
from medmesh.errors import Problem
from medmesh.security.approvals import request_digest
from medmesh.service.approved import spend
from medmesh.store.unit import AuditEntry, Entity, UnitOfWork
from medmesh.telemetry import log
from medmesh_federation.answering import FLAGGED
from medmesh_federation.approved import not_done
from medmesh_federation.domain import OPEN_STATES
from medmesh_federation.handlers import entity, invited, locked
from medmesh_federation.lifecycle import OPENING
from medmesh_federation.ports import HANDLERS, Ports
from medmesh_federation.tables import answers, participants, rounds

RELEASE = "federation.release"


def release_digest(federation: str, plan_hash: str, hospital: str, count: int) -> str:
    """What is approved when a hospital comes back from its `count`-th quarantine: an approval of an earlier one is none of this."""
    return request_digest({"action": RELEASE, "federation": federation, "plan": plan_hash, "hospital": hospital, "quarantine": count})


def release_target(federation: str, hospital: str) -> str:
    """How an approval names it."""
    return f"{federation}/{hospital}"


@HANDLERS.on(QuarantineHospital)
async def quarantine(command: Envelope[QuarantineHospital], uow: UnitOfWork[Ports]) -> dict[str, Any]:
    """On a person's word. What the hospital gave to the open round does not count, unless its secure sum is being opened already."""
    wanted = command.data
    row = await locked(uow, wanted.federation)
    if row.state not in OPEN_STATES:
        raise Problem("federation.closed", federation=row.federation, state=row.state)
    where = (participants.c.federation == row.federation) & (participants.c.hospital == wanted.hospital)
    theirs = await uow.first(select(participants).where(where))
    if theirs is not None and theirs.state == "quarantined":
        uow.unchanged()
        return {"state": theirs.state}
    if theirs is None or theirs.state not in ("accepted", "dropped"):
        state = "-" if theirs is None else theirs.state
        raise Problem("federation.cannot_quarantine", federation=row.federation, hospital=wanted.hospital, state=state)
    await put(uow, row, wanted.hospital, wanted.reason)
    current = await uow.first(select(rounds).where(rounds.c.federation == row.federation, rounds.c.state == "open"))
    if current is not None and current.phase not in OPENING:
        own = (answers.c.federation == row.federation) & (answers.c.round == current.round) & (answers.c.attempt == current.attempt)
        mine = own & (answers.c.hospital == wanted.hospital) & answers.c.failed.is_(None)
        await uow.execute(update(answers).where(mine).values(failed=FLAGGED, results=None, metrics={}))
    uow.on_commit(uow.ports.wake.set)
    return {"state": "quarantined"}


async def put(uow: UnitOfWork[Any], row: Any, hospital: str, reason: str) -> None:
    """Into quarantine: state, fact and record."""
    where = (participants.c.federation == row.federation) & (participants.c.hospital == hospital)
    values = {"state": "quarantined", "reason": reason, "quarantines": participants.c.quarantines + 1}
    done = await uow.execute(update(participants).where(where, participants.c.state.in_(["accepted", "dropped"])).values(values))
    if not done.rowcount:
        return  # it left meanwhile, or is there already
    uow.emit(ParticipantQuarantined(federation=row.federation, hospital=hospital, reason=reason, hospitals=invited(row)))
    about = (entity(row), Entity("hospital", hospital))
    uow.audit(AuditEntry("federation.quarantine", "E", outcome=4, why=reason, entities=about, hospitals=invited(row)))
    log("federation.participant.quarantined", level=30, federation=row.federation, hospital=hospital)


@HANDLERS.on(ApprovalGranted, durable="release-granted")
async def released(event: Envelope[ApprovalGranted], uow: UnitOfWork[Ports]) -> None:
    """Others approved that exactly this quarantine ends: the hospital returns with the next round."""
    grant = event.data
    if grant.action != RELEASE:
        return
    federation, _, hospital = grant.target.partition("/")
    row = await locked(uow, federation)
    where = (participants.c.federation == row.federation) & (participants.c.hospital == hospital)
    theirs = await uow.first(select(participants).where(where))
    if theirs is None or theirs.state != "quarantined" or row.state not in OPEN_STATES:
        state = "-" if theirs is None else theirs.state
        why = Problem("federation.not_quarantined", federation=row.federation, hospital=hospital[:64], state=state)
        await not_done(uow, row, grant, why, verb="federation.release")
        return
    digest = release_digest(row.federation, row.plan_hash, hospital, theirs.quarantines)
    target = release_target(row.federation, hospital)
    found = await spend(uow, grant, uow.ports.trust(), uow.ports.roster(), target=target, digest=digest)
    # As one that was away: it rejoins when a round opens while it is online.
    await uow.execute(update(participants).where(where).values(state="dropped", reason="released"))
    uow.emit(ParticipantReleased(federation=row.federation, hospital=hospital, hospitals=invited(row)))
    about = (entity(row), Entity("hospital", hospital))
    uow.audit(AuditEntry("federation.release", "E", entities=about, hospitals=invited(row), approval=found.evidence()))
    uow.on_commit(uow.ports.wake.set)
