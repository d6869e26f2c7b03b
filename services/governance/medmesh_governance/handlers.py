"""Approvals: asked for, decided by others than the maker, signed by governance."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Select, insert, select, update

from medmesh.contracts.annotation import LabelsExported
from medmesh.contracts.audit import ExportFinished, LogChanged
from medmesh.contracts.federation import ApprovalFailed, FederationRolledBack, FederationStarted, ParticipantReleased
from medmesh.contracts.governance import (
    ApprovalExpired,
    ApprovalGranted,
    ApprovalRefused,
    ApprovalRequested,
    ApprovalRevoked,
    Approvals,
    ApprovalView,
    DecideApproval,
    ListApprovals,
    ProposePolicy,
    RequestApproval,
    RevokeApproval,
)
from medmesh.contracts.ingestion import DatasetReleased
from medmesh.contracts.labels import LabelChanged
from medmesh.contracts.message import Envelope, new_id
from medmesh.contracts.registry import ModelReleased
from medmesh.errors import Problem
from medmesh.security import approvals as tokens
from medmesh.security import statements
from medmesh.security.access import Object
from medmesh.store.unit import AuditEntry, Entity, UnitOfWork
from medmesh_governance import policies
from medmesh_governance.domain import APPROVABLE, NEXT, ApprovalState, Vote, decide, move, stands
from medmesh_governance.enrolment import issue_certificate, refuse_enrolment
from medmesh_governance.ports import HANDLERS, Ports
from medmesh_governance.signatures import check_asking, check_decision, signed_approvals
from medmesh_governance.tables import approvals, decisions


@HANDLERS.knows("approval")
async def approval(id_: str, uow: UnitOfWork[Ports]) -> Object | None:
    """Who asked for it: decides who may decide it, and who may take it back."""
    row = None if "\x00" in id_ else await uow.first(select(approvals.c.requester).where(approvals.c.approval == id_))
    return None if row is None else Object("approval", id_, maker=row.requester)


@HANDLERS.on(RequestApproval)
async def request_approval(command: Envelope[RequestApproval], uow: UnitOfWork[Ports]) -> dict[str, Any]:
    """Open an approval for one exact request; the same request of the same person while one is open answers that one."""
    if command.data.action not in APPROVABLE:
        raise Problem("governance.not_approvable", action=command.data.action, known=", ".join(sorted(APPROVABLE)))
    said = command.data
    check_asking(uow, said)
    return {"approval": await submit(uow, said.action, said.target, said.digest, said.summary, said.asking)}


async def submit(uow: UnitOfWork[Ports], action: str, target: str, digest: str, summary: Mapping[str, str], asking: str = "") -> str:
    """The approval, opened unless it is open."""
    requester = uow.actor.text
    same = (approvals.c.action == action) & (approvals.c.target == target) & (approvals.c.digest == digest)
    still_open = (approvals.c.state == ApprovalState.OPEN) & (approvals.c.expires_at > uow.now) & (approvals.c.requester == requester)
    if (known := await uow.first(select(approvals.c.approval).where(same, still_open))) is not None:
        uow.unchanged()
        return str(known.approval)
    approval = new_id()
    values = {
        "approval": approval,
        "action": action,
        "target": target,
        "digest": digest,
        "requester": requester,
        "summary": dict(summary),
        "asking": asking,
        "state": ApprovalState.OPEN.value,
        "needed": uow.ports.settings.approvals_needed,
        "created_at": uow.now,
        "expires_at": uow.now + timedelta(hours=uow.ports.settings.approval_hours),
    }
    await uow.execute(insert(approvals).values(values))
    uow.emit(ApprovalRequested(approval=approval, action=action, target=target, digest=digest, requester=requester))
    detail: dict[str, str | int | bool] = {"action": action, "target": target}
    if asking:
        detail["asking"] = statements.pack(asking)
    uow.audit(AuditEntry("approval.request", "C", entities=(Entity("approval", approval, digest=digest),), detail=detail))
    return approval


@HANDLERS.on(ProposePolicy)
async def propose_policy(command: Envelope[ProposePolicy], uow: UnitOfWork[Ports]) -> dict[str, Any]:
    """Check the text against the schema, keep it, and ask for the approval of exactly it."""
    digest = await policies.keep(uow, command.data.text)
    summary = {"reason": command.data.reason, "policies": policies.summary(command.data.text)}
    uow.audit(AuditEntry("policy.propose", "C", entities=(Entity("policy", policies.TARGET, digest=digest),)))
    return {"approval": await submit(uow, policies.ACTION, policies.TARGET, digest, summary), "digest": digest}


@HANDLERS.on(DecideApproval, concurrency=1)
async def decide_approval(command: Envelope[DecideApproval], uow: UnitOfWork[Ports]) -> dict[str, Any]:
    """One person's decision; the last one needed signs the token."""
    wanted = command.data
    row = await uow.first(select(approvals).where(approvals.c.approval == wanted.approval).with_for_update())
    if row is None:
        raise Problem("request.not_found", kind="approval", id=wanted.approval)
    present = stands(row.state, row.expires_at, uow.now)
    if present is not ApprovalState.OPEN:
        raise Problem("governance.approval_closed", approval=wanted.approval, state=present.value)
    approver = uow.actor.text
    before = [Vote(r.approver, r.approve) for r in await uow.all(select(decisions).where(decisions.c.approval == row.approval))]
    needed = max(row.needed, uow.ports.roster().needed(row.action))
    state = decide(needed, before, Vote(approver, wanted.approve))
    check_decision(uow, row, wanted)
    values: dict[str, Any] = {
        "approval": row.approval,
        "approver": approver,
        "requester": row.requester,
        "approve": wanted.approve,
        "comment": wanted.comment,
        "token": command.actor or "",
        "statement": wanted.statement,
        "at": uow.now,
    }
    await uow.execute(insert(decisions).values(values))
    await uow.execute(update(approvals).where(approvals.c.approval == row.approval).values(state=state.value))
    entities = (Entity("approval", row.approval, digest=row.digest), Entity(row.action, row.target))
    signed = {"id": row.approval, "requester": row.requester, "statements": statements.pack(wanted.statement)}
    detail: dict[str, str | int | bool] = {"approve": wanted.approve, "state": state.value}
    uow.audit(AuditEntry("approval.decide", "U", entities=entities, approval=signed, detail=detail))
    if state is ApprovalState.GRANTED:
        await _grant(uow, row)
    elif state is ApprovalState.REFUSED:
        uow.emit(ApprovalRefused(approval=row.approval, action=row.action, target=row.target, digest=row.digest))
        if row.action == "hospital.enrol":
            await refuse_enrolment(uow, row.target)
    return {"approval": row.approval, "state": state.value}


@HANDLERS.on(RevokeApproval)
async def revoke_approval(command: Envelope[RevokeApproval], uow: UnitOfWork[Ports]) -> dict[str, Any]:
    """What was executed stays executed."""
    wanted = command.data
    row = await uow.first(select(approvals).where(approvals.c.approval == wanted.approval).with_for_update())
    if row is None:
        raise Problem("request.not_found", kind="approval", id=wanted.approval)
    state = move(row.approval, stands(row.state, row.expires_at, uow.now), ApprovalState.REVOKED)
    await _end(uow, row, state)
    uow.emit(ApprovalRevoked(approval=row.approval, action=row.action, target=row.target, digest=row.digest))
    entities = (Entity("approval", row.approval, digest=row.digest), Entity(row.action, row.target))
    uow.audit(AuditEntry("approval.revoke", "U", entities=entities, detail={"reason": wanted.reason}))
    return {"approval": row.approval, "state": state.value}


@HANDLERS.on(FederationStarted)
async def federation_started(event: Envelope[FederationStarted], uow: UnitOfWork[Ports]) -> None:
    """The federation that was approved has started."""
    await _executed(uow, "federation.start", event.data.federation)


@HANDLERS.on(FederationRolledBack)
async def federation_rolled_back(event: Envelope[FederationRolledBack], uow: UnitOfWork[Ports]) -> None:
    """The roll-back that was approved is done."""
    await _executed(uow, "federation.rollback", f"{event.data.federation}/{event.data.round}")


@HANDLERS.on(ParticipantReleased)
async def participant_released(event: Envelope[ParticipantReleased], uow: UnitOfWork[Ports]) -> None:
    """The hospital whose release was approved may take part again."""
    await _executed(uow, "federation.release", f"{event.data.federation}/{event.data.hospital}")


@HANDLERS.on(ModelReleased)
async def model_released(event: Envelope[ModelReleased], uow: UnitOfWork[Ports]) -> None:
    """The release that was approved is out."""
    await _executed(uow, "model.release", event.data.release)


@HANDLERS.on(DatasetReleased)
async def dataset_released(event: Envelope[DatasetReleased], uow: UnitOfWork[Ports]) -> None:
    """The version that was approved is released."""
    await _executed(uow, "dataset.release", f"{event.data.dataset}/{event.data.version}")


@HANDLERS.on(LabelsExported)
async def labels_exported(event: Envelope[LabelsExported], uow: UnitOfWork[Ports]) -> None:
    """The labels that were approved are out."""
    await _executed(uow, "annotation.export", f"{event.data.project}/{event.data.version}")


@HANDLERS.on(ExportFinished)
async def export_finished(event: Envelope[ExportFinished], uow: UnitOfWork[Ports]) -> None:
    """The export of the log that was approved is built, or failed."""
    await _executed(uow, "audit.export", event.data.export, event.data.code)


@HANDLERS.on(LogChanged)
async def log_changed(event: Envelope[LogChanged], uow: UnitOfWork[Ports]) -> None:
    """What was approved of the log's keeping is done, or failed."""
    await _executed(uow, event.data.action, event.data.change, event.data.code)


@HANDLERS.on(ApprovalFailed)
async def approval_failed(event: Envelope[ApprovalFailed], uow: UnitOfWork[Ports]) -> None:
    """What was approved of a federation cannot be done any more."""
    await _executed(uow, event.data.action, event.data.target, event.data.code)


@HANDLERS.on(LabelChanged)
async def label_changed(event: Envelope[LabelChanged], uow: UnitOfWork[Ports]) -> None:
    """The label that was approved is on the object; one that was raised took no approval."""
    if event.data.approval:
        await _executed(uow, "label.change", f"{event.data.kind}/{event.data.id}")


async def _executed(uow: UnitOfWork[Ports], action: str, target: str, code: str = "") -> None:
    """The owner of the action says that it happened, or with `code` that it failed; its own record tells of it."""
    state = ApprovalState.FAILED if code else ApprovalState.EXECUTED
    done = (approvals.c.action == action) & (approvals.c.target == target) & (approvals.c.state == ApprovalState.GRANTED.value)
    await uow.execute(update(approvals).where(done).values(state=state.value, why=code))


async def expire(uow: UnitOfWork[Ports]) -> None:
    """Write down what has expired."""
    over = approvals.c.state.in_([ApprovalState.OPEN.value, ApprovalState.GRANTED.value]) & (approvals.c.expires_at < uow.now)
    for row in await uow.all(select(approvals).where(over).order_by(approvals.c.approval).with_for_update(skip_locked=True)):
        await _end(uow, row, move(row.approval, ApprovalState(row.state), ApprovalState.EXPIRED))
        uow.emit(ApprovalExpired(approval=row.approval, action=row.action, target=row.target, digest=row.digest))
        entities = (Entity("approval", row.approval, digest=row.digest), Entity(row.action, row.target))
        uow.audit(AuditEntry("approval.expire", "U", entities=entities, detail={"state": row.state}))


async def _end(uow: UnitOfWork[Ports], row: Any, state: ApprovalState) -> None:
    await uow.execute(update(approvals).where(approvals.c.approval == row.approval).values(state=state.value))
    if row.action == "hospital.enrol":
        await refuse_enrolment(uow, row.target)


async def _grant(uow: UnitOfWork[Ports], row: Any) -> None:
    token = tokens.issue(
        uow.ports.identity,
        approval=row.approval,
        action=row.action,
        target=row.target,
        digest=row.digest,
        requester=row.requester,
        statements=await signed_approvals(uow, row.approval),
        expires=row.expires_at,
        asking=row.asking,
    )
    if row.action in (policies.ACTION, "hospital.enrol"):
        # Governance executes these itself: the approval is spent in the same transaction that decides it.
        ports = uow.ports
        tokens.verify(token, ports.identity.public, ports.roster(), action=row.action, digest=row.digest, at=uow.now)
        await uow.spend_approval(row.approval)
        await (policies.adopt(uow, row) if row.action == policies.ACTION else issue_certificate(uow, row.target))
        await uow.execute(update(approvals).where(approvals.c.approval == row.approval).values(state=ApprovalState.EXECUTED.value))
    uow.emit(ApprovalGranted(approval=row.approval, action=row.action, target=row.target, digest=row.digest, token=token))


def _in_state(wanted: Select[Any], state: str, now: datetime) -> Select[Any]:
    """Those that stand so now, whether or not the sweep has come by (`domain.stands`)."""
    passing = [name.value for name, following in NEXT.items() if ApprovalState.EXPIRED in following]
    over = approvals.c.state.in_(passing) & (approvals.c.expires_at < now)
    if state == ApprovalState.EXPIRED:
        return wanted.where((approvals.c.state == state) | over)
    return wanted.where(approvals.c.state == state, ~over)


@HANDLERS.answers(ListApprovals)
async def list_approvals(query: Envelope[ListApprovals], uow: UnitOfWork[Ports]) -> Approvals:
    """Newest first; `state` filters."""
    wanted = select(approvals).order_by(approvals.c.created_at.desc()).limit(500)
    rows = await uow.all(_in_state(wanted, query.data.state, uow.now) if query.data.state else wanted)
    voters: dict[str, list[str]] = {}
    for vote in await uow.all(select(decisions).where(decisions.c.approval.in_([row.approval for row in rows]), decisions.c.approve)):
        voters.setdefault(vote.approval, []).append(vote.approver)
    views = (
        ApprovalView(
            approval=row.approval,
            action=row.action,
            target=row.target,
            digest=row.digest,
            requester=row.requester,
            summary=row.summary,
            state=stands(row.state, row.expires_at, uow.now).value,
            why=row.why,
            needed=row.needed,
            approvers=tuple(voters.get(row.approval, ())),
            expires=row.expires_at,
            asking=row.asking,
        )
        for row in rows
    )
    return Approvals(approvals=tuple(views))
