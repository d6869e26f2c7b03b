"""The approval of a federation's start: it counts from when it is heard of until the start, unless it was revoked or its time is over."""

from __future__ import annotations

from typing import Any, Literal

from sqlalchemy import select, update

from medmesh.contracts.federation import FederationReady
from medmesh.contracts.governance import ApprovalExpired, ApprovalGranted, ApprovalRevoked
from medmesh.contracts.message import Envelope
from medmesh.errors import Problem
from medmesh.federated.proof import ACTION
from medmesh.service.approved import spend
from medmesh.store.unit import AuditEntry, UnitOfWork
from medmesh.telemetry import log
from medmesh_federation.domain import BEFORE, State
from medmesh_federation.handlers import entity, invited, locked
from medmesh_federation.ports import HANDLERS, Ports
from medmesh_federation.tables import federations


@HANDLERS.on(ApprovalGranted)
async def approved(event: Envelope[ApprovalGranted], uow: UnitOfWork[Ports]) -> None:
    """A second person approved the start of exactly this plan."""
    grant = event.data
    if grant.action != ACTION:
        return
    row = await locked(uow, grant.target)
    if row.approval is not None or row.state not in (State.INVITING, State.READY):
        raise Problem("federation.closed", federation=row.federation, state=row.state)
    found = await spend(uow, grant, uow.ports.trust(), uow.ports.roster(), target=row.federation, digest=row.plan_hash)
    values = {"approval": found.id, "token": grant.token, "approved_until": found.expires, "unapproved": None}
    await uow.execute(update(federations).where(federations.c.federation == row.federation).values(values))
    uow.audit(AuditEntry("federation.approved", "E", entities=(entity(row),), hospitals=invited(row), approval=found.evidence()))
    uow.on_commit(uow.ports.wake.set)


@HANDLERS.on(ApprovalRevoked, ApprovalExpired, durable="approval-withdrawn")
async def withdrawn(event: Envelope[ApprovalRevoked | ApprovalExpired], uow: UnitOfWork[Ports]) -> None:
    """An approval counts no longer: a federation that has not started yet needs another. Its start takes the same lock, and is made of
    what it finds then."""
    said = event.data
    row = await uow.first(select(federations).where(federations.c.federation == said.target).with_for_update())
    if said.action != ACTION or row is None or row.state not in BEFORE:
        return
    if row.approval == said.approval:
        await forget(uow, row, "revoked" if isinstance(said, ApprovalRevoked) else "expired")
    else:
        await uow.withhold_approval(said.approval)  # the grant may still be on its way, and then comes too late


async def forget(uow: UnitOfWork[Any], row: Any, why: Literal["revoked", "expired"]) -> None:
    """The approval that a federation has counts no longer; one that waits for its turn with it leaves the queue."""
    state = State.READY.value if row.state == State.QUEUED else row.state
    values = {"approval": None, "token": None, "approved_until": None, "unapproved": why, "state": state}
    await uow.execute(update(federations).where(federations.c.federation == row.federation).values(values))
    if state != row.state:
        uow.emit(FederationReady(federation=row.federation, plan_hash=row.plan_hash, unapproved=why))
    about: dict[str, Any] = {"entities": (entity(row),), "hospitals": invited(row), "approval": {"id": row.approval}}
    uow.audit(AuditEntry("federation.unapproved", "U", why=why, detail={"to": state}, **about))
    log("federation.unapproved", level=30, federation=row.federation, why=why, to=state)
