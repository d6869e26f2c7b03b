"""Back to the model of an earlier round, by approval. Numbers of rounds go on rising, and no ledger goes back."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select, update

from medmesh.contracts.federation import Commitment, FederationRolledBack, RoundKind, RoundVoided, Undoing
from medmesh.contracts.governance import ApprovalGranted
from medmesh.contracts.message import Envelope, ObjectRef
from medmesh.errors import Problem
from medmesh.federated.chain import undone_link
from medmesh.federated.undoing import ACTION, rollback_digest, rollback_target
from medmesh.service.approved import spend
from medmesh.store.unit import AuditEntry, UnitOfWork
from medmesh_federation.domain import State
from medmesh_federation.handlers import entity, invited, locked
from medmesh_federation.lifecycle import OPENING
from medmesh_federation.ports import HANDLERS, Ports
from medmesh_federation.tables import federations, rounds


@HANDLERS.on(ApprovalGranted, durable="rollback-granted")
async def roll_back(event: Envelope[ApprovalGranted], uow: UnitOfWork[Ports]) -> None:
    """Others approved exactly this: the training rounds after `round` are undone, and the next one begins with its model and with what the
    algorithm remembered then. Raises `Problem`, and nothing is changed."""
    grant = event.data
    if grant.action != ACTION:
        return
    federation, _, text = grant.target.partition("/")
    row = await locked(uow, federation)
    number = int(text) if text.isascii() and text.isdecimal() and len(text) < 6 else -1
    if row.state not in (State.RUNNING, State.PAUSED):
        raise Problem("federation.closed", federation=row.federation, state=row.state)
    made = (rounds.c.federation == row.federation) & (rounds.c.kind == RoundKind.TRAIN.value) & (rounds.c.state == "committed")
    done = {one.round: one for one in await uow.all(select(rounds).where(made, ~rounds.c.undone).order_by(rounds.c.round))}
    later = [one for one in done if one > number]
    if (number != 0 and number not in done) or not later:
        raise Problem("federation.rollback", federation=row.federation, round=text[:9], reason="no committed rounds lie after it")
    to = done.get(number)
    model = ObjectRef.model_validate(to.model if to else row.initial)
    digest = rollback_digest(row.federation, row.plan_hash, number, model.sha256)
    target = rollback_target(row.federation, number)
    found = await spend(uow, grant, uow.ports.trust(), uow.ports.roster(), target=target, digest=digest)
    beside = {"state_object": to.state_object if to else None, "personal": to.personal if to else None}
    for ref in (beside["state_object"], *(beside["personal"] or {}).values()):
        if ref and not await _there(uow.ports, ref["sha256"]):
            reason = "what the algorithm remembered then is no longer kept"
            raise Problem("federation.rollback", federation=row.federation, round=number, reason=reason)
    await uow.execute(update(rounds).where(made, rounds.c.round > number).values(undone=True))
    await _close_open(uow, row)
    chain = undone_link(row.chain, number, model.sha256, found.id)
    remembered = beside["state_object"]["sha256"] if beside["state_object"] else None
    back = Commitment(round=number, kind=None, model=model.sha256, state=remembered, approval=found.id)
    undoing = Undoing(round=number, approval=grant.token).model_dump()
    left = {"model": model.model_dump(), **beside, "chain": chain, "links": [*row.links, back.model_dump()]}
    values = {**left, "undoing": undoing, "voids": 0, "waiting_since": None}
    await uow.execute(update(federations).where(federations.c.federation == row.federation).values(values))
    uow.emit(FederationRolledBack(federation=row.federation, round=number, undone=tuple(later), model=model, hospitals=invited(row)))
    detail: dict[str, str | int | bool] = {"round": number, "undone": " ".join(map(str, later)), "model": model.sha256, "chain": chain}
    about, approval = (entity(row),), found.evidence()
    uow.audit(AuditEntry("federation.rollback", "E", entities=about, hospitals=invited(row), approval=approval, detail=detail))
    uow.on_commit(uow.ports.wake.set)


async def _there(ports: Ports, sha256: str) -> bool:
    return any([await store.size(sha256) is not None for store in (ports.stores.kept, ports.models)])


async def _close_open(uow: UnitOfWork[Ports], row: Any) -> None:
    """Work on a model that is undone comes to nothing; a sum that hospitals were opening costs its number, as ever."""
    current = await uow.first(select(rounds).where(rounds.c.federation == row.federation, rounds.c.state == "open"))
    if current is None:
        return
    skipped = current.phase in OPENING
    where = (rounds.c.federation == row.federation) & (rounds.c.round == current.round) & (rounds.c.attempt == current.attempt)
    await uow.execute(update(rounds).where(where).values(state="skipped" if skipped else "void", closed_at=uow.now))
    about = {"federation": row.federation, "round": current.round, "attempt": current.attempt, "skipped": skipped}
    uow.emit(RoundVoided(**about, hospitals=tuple(current.assigned)))
