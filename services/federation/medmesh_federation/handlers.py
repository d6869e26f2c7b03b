"""Commands of people and hospitals, signs of life."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import bindparam, insert, select, update

from medmesh.contracts.federation import (
    CancelFederation,
    CreateFederation,
    FederationFailed,
    FederationInvited,
    HospitalAlive,
    InvitationAnswered,
    ProgressView,
    ReportFailure,
    RespondInvitation,
    RoundProgressed,
    SubmitUpdate,
)
from medmesh.contracts.message import Envelope, ObjectRef
from medmesh.contracts.plan import Plan, plan_hash
from medmesh.errors import Problem
from medmesh.federated.plan import evaluates, plan_of
from medmesh.federated.proof import accepted
from medmesh.learning.package import read as read_package
from medmesh.security import reviews, statements
from medmesh.service import labels
from medmesh.store.objects.directory import DirectoryStore
from medmesh.store.objects.port import load
from medmesh.store.prepared import Look, Prepared, as_text
from medmesh.store.unit import AuditEntry, Entity, UnitOfWork
from medmesh.tasks import BRIEF, aside
from medmesh_federation import inviting, rehearsed, transcript, updates
from medmesh_federation.answering import answer, answering, asked_of, own, repeated
from medmesh_federation.domain import OPEN_STATES, State
from medmesh_federation.ports import HANDLERS, Ports
from medmesh_federation.tables import federations, participants

SMALL = 2 * BRIEF
"""Bytes of an update that is looked at while its federation is locked: two questions are dearer. A masked vector of 1 MB is one."""
MOST_REASON = 200
"""Characters of what who cancels says."""
_MOST_REMEMBERED = 10_000
REFUSED_SECONDS = 30.0
"""A command that is refused together with others is looked at once more alone, and its reason then is the one that is told."""
WHOLE = select(*[as_text(column) if column.name == "plan" else column for column in federations.c])  # for `plan_of`
_MODEL = Prepared(
    select(federations.c.initial, federations.c.plan_hash, as_text(federations.c.plan)).where(
        federations.c.federation == bindparam("federation")
    )
)
_LOCKED = Prepared(WHOLE.where(federations.c.federation == bindparam("federation")).with_for_update())


def entity(row: Any) -> Entity:
    """A federation as audit names it: by id, bound to its plan."""
    return Entity("federation", row.federation, digest=row.plan_hash)


def invited(row: Any) -> tuple[str, ...]:
    """Whose data a federation is about: every hospital of its plan reads what the platform recorded of it."""
    return tuple(plan_of(row).participants)


async def local(ports: Ports, ref: ObjectRef) -> Path:
    """An object as a file on this machine: where it lies, or a copy, for as long as `ports` are held."""
    store = await ports.stores.holding(ref.sha256)
    if isinstance(store, DirectoryStore):
        return store.path(ref.sha256)
    return await ports.copies.take(store, ref)


async def there(ports: Ports, sha256: str) -> bool:
    """Whether any store has an object."""
    try:
        await ports.stores.holding(sha256)
    except Problem as problem:
        if problem.code != "objects.missing":
            raise
        return False
    return True


@HANDLERS.on(CreateFederation)
async def create(command: Envelope[CreateFederation], uow: UnitOfWork[Ports]) -> dict[str, Any]:
    """Check that the plan, the package and the first weights agree, and invite."""
    from medmesh.federated.aggregation import compatible  # numpy: not before the first federation
    from medmesh.learning import weights

    wanted = command.data
    plan, ports = wanted.plan, uow.ports
    if plan.initiator != uow.actor.text:
        raise Problem("federation.initiator", plan=plan.initiator, actor=uow.actor.text)
    inviting.check(plan, roster := ports.roster(), uow.now)
    if wanted.package.sha256 != plan.package or wanted.initial.sha256 != plan.initial:
        raise Problem("plan.objects")
    package = read_package(await load(ports.stores.kept, wanted.package))
    manifest = package.manifest
    if manifest.package.framework != plan.framework or manifest.data != plan.data or set(manifest.tensors) != set(plan.signature):
        raise Problem("plan.package")
    compatible(plan)
    await rehearsed.check(ports, plan, manifest)
    names: tuple[str, ...] = ()
    if manifest.custom and (needed := ports.settings.code_reviewers):
        names = reviews.check(wanted.reviews, roster, needed, package=plan.package, initiator=plan.initiator, seen=uow.now)
    with ports.holding() as held:
        await asyncio.to_thread(weights.check, await local(held, wanted.initial), plan.signature)
    federation, hash_ = command.id, plan_hash(plan)
    values = {
        "federation": federation,
        "name": plan.name,
        "plan": plan.model_dump(mode="json"),
        "plan_hash": hash_,
        "package": wanted.package.model_dump(),
        "initial": wanted.initial.model_dump(),
        "initiator": uow.actor.text,
        "state": State.INVITING.value,
        "chain": hash_,
        "model": wanted.initial.model_dump(),
        "voids": 0,
        "created_at": uow.now,
    }
    await uow.execute(insert(federations).values(values))
    # Hospitals give it weights and counts, no data; who takes part is said in the plan and agreed to by each of them.
    label = await labels.by_rule(uow, "federation", federation, wanted=wanted.label, organisations=plan.participants)
    labels.cleared(label, plan.participants)
    rows = [{"federation": federation, "hospital": h, "state": "invited", "drops": 0, "reason": ""} for h in plan.participants]
    await uow.execute(insert(participants), rows)
    uow.emit(
        FederationInvited(
            federation=federation,
            plan=plan,
            plan_hash=hash_,
            package=wanted.package,
            reviews=wanted.reviews if manifest.custom else (),
            hospitals=tuple(plan.participants),
        )
    )
    about = (Entity("federation", federation, digest=hash_), Entity("package", manifest.package.name, digest=package.digest))
    detail: dict[str, str | int | bool] = {"hospitals": len(plan.participants), "rounds": plan.rounds}
    if names:
        detail |= {"reviewers": ", ".join(names), "reviews": ",".join(map(statements.pack, wanted.reviews))}
    uow.audit(AuditEntry("federation.create", "C", entities=about, hospitals=plan.participants, detail=detail))
    uow.on_commit(ports.wake.set)
    return {"federation": federation, "plan_hash": hash_}


async def locked(uow: UnitOfWork[Ports], federation: str) -> Any:
    found = await uow.rows(_LOCKED, federation=federation)
    if not found:
        raise Problem("request.not_found", kind="federation", id=federation)
    return found[0]


@HANDLERS.on(RespondInvitation)
async def respond(command: Envelope[RespondInvitation], uow: UnitOfWork[Ports]) -> dict[str, Any]:
    """A hospital accepts by signing the plan's hash with its own key, or declines."""
    answer, hospital = command.data, uow.actor.id
    row = await locked(uow, answer.federation)
    mine = await own(uow, answer.federation)
    if answer.plan_hash != row.plan_hash:
        raise Problem("federation.plan_changed", federation=answer.federation)
    wanted = "accepted" if answer.accept else "declined"
    if mine.state == wanted:
        uow.unchanged()
        return {"state": wanted}
    if row.state != State.INVITING or mine.state != "invited" or uow.now > plan_of(row).accept_by:
        raise Problem("federation.closed", federation=answer.federation, state=row.state)
    detail: dict[str, str | int | bool] = {"accepted": answer.accept}
    if answer.accept:
        about = {"federation": answer.federation, "plan_hash": answer.plan_hash, "hospital": hospital}
        accepted(answer.signature, uow.ports.roster(), **about, seen=uow.now)
        detail["statement"] = statements.pack(answer.signature)
    values = {
        "state": wanted,
        "signature": answer.signature,
        "reason": answer.reason[:200],
        "answered_at": uow.now,
        "small_cell": answer.small_cell,
    }
    where = (participants.c.federation == answer.federation) & (participants.c.hospital == hospital)
    await uow.execute(update(participants).where(where).values(values))
    uow.emit(InvitationAnswered(federation=answer.federation, hospital=hospital, accepted=answer.accept))
    uow.audit(AuditEntry("federation.respond", "U", entities=(entity(row),), detail=detail))
    uow.on_commit(uow.ports.wake.set)
    return {"state": wanted}


@HANDLERS.on(CancelFederation)
async def cancel(command: Envelope[CancelFederation], uow: UnitOfWork[Ports]) -> dict[str, Any]:
    """End a federation; its hospitals are told why."""
    code, reason = "federation.cancelled", command.data.reason.strip()
    if not 0 < len(reason) <= MOST_REASON:
        raise Problem("federation.reason", count=len(reason), most=MOST_REASON)
    row = await locked(uow, command.data.federation)
    if row.state == State.CANCELLED:
        uow.unchanged()
        return {"state": row.state}
    if row.state not in OPEN_STATES:
        raise Problem("federation.closed", federation=row.federation, state=row.state)
    where = federations.c.federation == row.federation
    await uow.execute(update(federations).where(where).values(state=State.CANCELLED.value, failure=code, reason=reason))
    uow.emit(FederationFailed(federation=row.federation, code=code, reason=reason, hospitals=invited(row)))
    uow.audit(AuditEntry("federation.cancel", "U", entities=(entity(row),), hospitals=invited(row), detail={"reason": reason}))
    uow.on_commit(uow.ports.committed.set)
    return {"state": State.CANCELLED.value}


@dataclass(frozen=True)
class Examined:
    """An update whose bytes are as its plan says, and its fingerprint where updates are compared."""

    mark: str | None


async def examine(command: Envelope[SubmitUpdate], actor: Any, look: Look, ports: Ports) -> Examined | None:
    """The bytes of a large update against the plan, before the transaction that takes it: those of several hospitals are read at once.
    None for a small one, which is read there, and for one that does not count or is nobody's to hand in: why is said there. Raises
    `Problem` (`weights.*`, `objects.missing`)."""
    given = command.data
    if given.update.bytes + await _beside(given.federation, look, ports) <= SMALL:
        return None
    asked = await asked_of(look, given.federation, given.round, given.attempt)
    current = asked.round
    if current is None or asked.state(actor.id) == "withdrawn" or actor.id not in current.assigned:
        return None
    plan = plan_of(current)
    if (asked.late(actor.id) and plan.pace is None) or (current.kind == "evaluate" and plan.secure is None):
        return None
    try:
        return await _read(given, ports, plan, current)
    except Problem as problem:
        _refused(ports, given, problem)
        raise


async def _beside(federation: str, look: Look, ports: Ports) -> int:
    """Bytes of the model that an update of a federation is looked at with: of a plan that encodes them, which may be few of a large one."""
    if federation not in ports.beside:
        found = await look(_MODEL, federation=federation)
        if not found:
            return 0
        (row,) = found
        if len(ports.beside) >= _MOST_REMEMBERED:
            ports.beside.clear()
        ports.beside[federation] = row.initial["bytes"] if plan_of(row).codec != "none" else 0
    return ports.beside[federation]


async def _read(given: SubmitUpdate, ports: Ports, plan: Plan, current: Any) -> Examined:
    size = await (await ports.stores.holding(given.update.sha256)).size(given.update.sha256)
    if size != given.update.bytes or size > updates.most(plan, current):  # before anything of it is read, or copied
        raise Problem("federation.update", reason=f"{size} bytes are not as many as were said, or more than the plan asks for")
    with ports.holding() as held:
        path, base = await local(held, given.update), None
        if updates.encoded(plan, current.kind):
            model = ObjectRef.model_validate(current.base)
            if await there(held, model.sha256):
                base, size = await local(held, model), size + model.bytes
        examined = Examined(await aside(size, partial(updates.check, path, plan, current, base)))
        ports.copies.keep(given.update.sha256)  # until the round is over, which it is read for
    return examined


@HANDLERS.on(SubmitUpdate, batch=16, before=examine)
async def submit_update(command: Envelope[SubmitUpdate], uow: UnitOfWork[Ports]) -> dict[str, Any]:
    """A hospital's trained model: checked against the plan before it counts. What counts nowhere is deleted."""
    try:
        return await _submitted(command.data, uow)
    except Problem as problem:
        _refused(uow.ports, command.data, problem)
        raise


def _refused(ports: Ports, given: SubmitUpdate, problem: Problem) -> None:
    if not problem.code.startswith("objects."):  # else it is not here, and may be on its way again
        ports.discard(given.update.sha256, after=REFUSED_SECONDS)


async def _submitted(given: SubmitUpdate, uow: UnitOfWork[Ports]) -> dict[str, Any]:
    asked, late = await answering(uow, given.federation, given.round, given.attempt)
    current = asked.round
    plan, results = plan_of(current), None
    if given.samples > updates.MOST_COUNTED:
        raise Problem("request.invalid", reason=f"samples: more than {updates.MOST_COUNTED}")
    if given.base not in (None, current.base["sha256"]):
        raise Problem("federation.update", reason="it does not begin with the model of its round")
    if current.kind == "evaluate" and plan.secure is None:
        raise Problem("federation.not_assigned", federation=given.federation, round=given.round)
    if given.counts is not None:
        if current.kind != "train" or not evaluates(plan, given.round) or plan.secure is not None:
            raise Problem("federation.evaluation", reason="the plan has nothing evaluated in this round")
        results = {"base": updates.checked(given.counts, plan)}
    ahead = uow.ahead
    if ahead is None and (not late or plan.pace is not None):  # small; or a moment ago it would not have counted
        ahead = await _read(given, uow.ports, plan, current)
    # A vector counts only where everybody put masks in for it.
    late = late or (current.phase is not None and (current.phase != "vectors" or uow.actor.id not in current.parties))
    values = {
        "update": given.update.model_dump(),
        "samples": given.samples,
        "metrics": updates.bounded(given.metrics),
        "results": results,
        "milliseconds": updates.sensible(given.milliseconds),
        "fingerprint": ahead.mark if ahead else None,
    }
    if (kept := await answer(uow, asked, late, **values)) is not None:
        await transcript.with_vector(uow, current, given, None if late else current.parties)
        late = kept  # one that was lost counts as it did, also where its phase is over
    duplicate = kept is None and not await repeated(uow, asked, given.update.sha256)
    if kept is None and not duplicate:
        uow.unchanged()
    else:
        about = (entity(current), Entity("update", f"{given.round}.{given.attempt}", digest=given.update.sha256))
        detail: dict[str, str | int | bool] = {"late": late, "bytes": given.update.bytes}
        if given.base is not None:
            detail["base"] = given.base
        if duplicate:
            detail["duplicate"] = True
        uow.audit(AuditEntry("federation.update", "C", entities=about, detail=detail))
    if kept is None or late:  # it is not what the round is made of, or not now
        uow.ports.copies.forget(given.update.sha256)
    if duplicate or (kept is not None and late and not asked.may_count_later(plan)):
        uow.on_commit(partial(uow.ports.discard, given.update.sha256))
    if plan.pace is not None:  # one is enough to close a round, also a later one than its own
        uow.on_commit(uow.ports.wake.set)
    return {"late": late} | ({"duplicate": True} if duplicate else {})


@HANDLERS.on(ReportFailure)
async def report_failure(command: Envelope[ReportFailure], uow: UnitOfWork[Ports]) -> dict[str, Any]:
    """A hospital cannot do its part: it leaves this round at once, and the others need not wait for the deadline."""
    given = command.data
    asked, late = await answering(uow, given.federation, given.round, given.attempt)
    code = given.code if given.code.replace(".", "").replace("_", "").isalnum() and len(given.code) <= 80 else "unknown"
    if await answer(uow, asked, late, failed=code) is not None:
        about = (entity(asked.round),)
        uow.audit(AuditEntry("federation.failure", "C", outcome=8, why=code, entities=about, detail={"round": given.round}))
    else:
        uow.unchanged()
    uow.on_commit(uow.ports.wake.set)
    return {"late": late}


@HANDLERS.hears(HospitalAlive)
async def alive(signal: Envelope[HospitalAlive], ports: Ports) -> None:
    """Renew a lease."""
    if ports.leases.renew(signal.data.hospital):
        ports.wake.set()


@HANDLERS.hears(RoundProgressed)
async def progressed(signal: Envelope[RoundProgressed], ports: Ports) -> None:
    """How far a hospital says it is."""
    said = signal.data
    ports.progress.say(said.federation, said.hospital, ProgressView(round=said.round, phase=said.phase, done=said.done, total=said.total))
