"""Back to the model of an earlier round, by approval. Numbers of rounds go on rising, and no ledger goes back."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, NamedTuple

from sqlalchemy import select, update

from medmesh.contracts.federation import Commitment, FederationRolledBack, GoneView, RoundKind, RoundVoided, Undoing
from medmesh.contracts.governance import ApprovalGranted
from medmesh.contracts.message import Envelope, ObjectRef
from medmesh.errors import Problem
from medmesh.federated.chain import undone_link
from medmesh.federated.plan import plan_of
from medmesh.federated.privacy.budget import affordable
from medmesh.federated.undoing import ACTION, rollback_digest, rollback_target
from medmesh.service.approved import spend
from medmesh.store.unit import AuditEntry, UnitOfWork
from medmesh_federation import privacy
from medmesh_federation.approved import not_done
from medmesh_federation.domain import OVER, State
from medmesh_federation.handlers import entity, invited, locked
from medmesh_federation.lifecycle import OPENING
from medmesh_federation.ports import HANDLERS, Ports
from medmesh_federation.tables import federations, rounds


@HANDLERS.on(ApprovalGranted, durable="rollback-granted")
async def roll_back(event: Envelope[ApprovalGranted], uow: UnitOfWork[Ports]) -> None:
    """Others approved exactly this: the training rounds after `round` are undone, and the next one begins with its model and with what the
    algorithm remembered then. What cannot be done any more is told, and nothing else is changed. Raises `Problem` for an approval that is
    none of this."""
    grant = event.data
    if grant.action != ACTION:
        return
    federation, _, text = grant.target.partition("/")
    row = await locked(uow, federation)
    try:
        back = await _wanted(uow, row, int(text) if text.isascii() and text.isdecimal() and len(text) < 6 else -1)
    except Problem as problem:
        await not_done(uow, row, grant, problem, verb="federation.rollback")
        return
    number, model = back.number, back.model
    digest = rollback_digest(row.federation, row.plan_hash, number, model.sha256)
    target = rollback_target(row.federation, number)
    found = await spend(uow, grant, uow.ports.trust(), uow.ports.roster(), target=target, digest=digest)
    made = (rounds.c.federation == row.federation) & (rounds.c.kind == RoundKind.TRAIN.value) & (rounds.c.state == "committed")
    await uow.execute(update(rounds).where(made, rounds.c.round > number).values(undone=True))
    await _close_open(uow, row)
    chain = undone_link(row.chain, number, model.sha256, found.id)
    remembered = back.state["sha256"] if back.state else None
    link = Commitment(round=number, kind=None, model=model.sha256, state=remembered, approval=found.id)
    left = {"model": model.model_dump(), "state_object": back.state, "personal": back.personal}
    undoing = {"undoing": Undoing(round=number, approval=grant.token).model_dump(), "voids": 0, "waiting_since": None}
    values = {**left, **undoing, "chain": chain, "links": [*row.links, link.model_dump()]}
    await uow.execute(update(federations).where(federations.c.federation == row.federation).values(values))
    uow.emit(FederationRolledBack(federation=row.federation, round=number, undone=back.later, model=model, hospitals=invited(row)))
    detail: dict[str, str | int | bool] = {"round": number, "undone": " ".join(map(str, back.later)), "model": model.sha256, "chain": chain}
    about, approval = (entity(row),), found.evidence()
    uow.audit(AuditEntry("federation.rollback", "E", entities=about, hospitals=invited(row), approval=approval, detail=detail))
    uow.on_commit(uow.ports.wake.set)


class _Back(NamedTuple):
    """Where to: the model, what the algorithm remembered then, and the rounds that are undone."""

    number: int
    model: ObjectRef
    state: dict[str, Any] | None
    personal: dict[str, Any] | None
    later: tuple[int, ...]


async def _wanted(uow: UnitOfWork[Ports], row: Any, number: int) -> _Back:
    """What there is of round `number` to go back to. Raises `Problem` (`federation.closed`, `federation.rollback`)."""
    from medmesh.federated.aggregation import algorithm_of  # numpy: not before the first round

    def no(reason: str) -> Problem:
        return Problem("federation.rollback", federation=row.federation, round=number, reason=reason)

    if row.state not in (State.RUNNING, State.PAUSED):
        raise Problem("federation.closed", federation=row.federation, state=row.state)
    made = (rounds.c.federation == row.federation) & (rounds.c.kind == RoundKind.TRAIN.value) & (rounds.c.state == "committed")
    committed = await uow.all(select(rounds).where(made).order_by(rounds.c.round))
    done = {one.round: one for one in committed if not one.undone}
    later = tuple(one for one in done if one > number)
    if (number != 0 and number not in done) or not later:
        gone = any(one.round == number for one in committed if one.undone)
        raise no("it was undone itself" if gone else "no committed rounds lie after it")
    if number == 0 and not await _trains_on(uow, row):
        raise no("no round is left that would train after it")
    to = done.get(number)
    kept = None if algorithm_of(plan_of(row)).JOINT else to  # hospitals no longer have their half of it
    back = _Back(
        number,
        ObjectRef.model_validate(to.model if to else row.initial),
        kept.state_object if kept else None,
        kept.personal if kept else None,
        later,
    )
    for ref in (back.state, *(back.personal or {}).values()):
        if ref and not await _there(uow.ports, ref["sha256"]):
            raise no("what the algorithm remembered then is no longer kept")
    return back


async def gone(uow: UnitOfWork[Ports], row: Any) -> GoneView | None:
    """The first model that is lost for good, and how far people can go back before it; None where nobody needs it (any more)."""
    if row.state not in (State.RUNNING, State.PAUSED):
        return None
    theirs = (rounds.c.federation == row.federation) & (rounds.c.state == "committed") & ~rounds.c.undone
    lost = theirs & rounds.c.gone_since.is_not(None) & ~rounds.c.stored
    if (first := await uow.first(select(rounds).where(lost).order_by(rounds.c.round).limit(1))) is None:
        return None
    before = theirs & (rounds.c.kind == RoundKind.TRAIN.value) & (rounds.c.round < first.round)
    earlier = await uow.all(select(rounds.c.round).where(before).order_by(rounds.c.round.desc()))
    back = None
    for number in (*(one.round for one in earlier), 0):
        with suppress(Problem):
            back = (await _wanted(uow, row, number)).number
            break
    return GoneView(round=first.round, since=first.gone_since, why=first.gone_why, back=back)


async def _trains_on(uow: UnitOfWork[Ports], row: Any) -> bool:
    """Whether another training round would be opened: by the plan's number of rounds, and by what is left of its privacy, which is spent
    also where it was spent on rounds that are undone."""
    plan = plan_of(row)
    theirs = select(rounds.c.round, rounds.c.kind, rounds.c.state, rounds.c.phase).where(rounds.c.federation == row.federation)
    newest = (await uow.execute(theirs.order_by(rounds.c.round.desc(), rounds.c.attempt.desc()).limit(1))).one()
    over = newest.state in OVER or (newest.state == "open" and newest.phase in OPENING)
    return newest.round + over <= plan.rounds and affordable(plan, await privacy.begun(uow, row.federation) + 1)


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
    uow.on_commit(uow.ports.committed.set)
