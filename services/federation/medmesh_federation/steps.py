"""What each step of a federation does to its rows, with its event and its audit record: one transaction, under the row's lock."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from functools import cache
from typing import Any

from sqlalchemy import Table, bindparam, func, insert, select, update

from medmesh.contracts.data import pipeline_of
from medmesh.contracts.federation import (
    CandidateModel,
    FederationCompleted,
    FederationFailed,
    FederationQueued,
    FederationReady,
    FederationStarted,
    FederationWaiting,
    InvitationExpired,
    ParticipantDropped,
    ParticipantRejoined,
    RoundKind,
    RoundOpened,
    RoundVoided,
    SecurePhase,
    Undoing,
)
from medmesh.contracts.message import MAX_MESSAGE_BYTES, ObjectRef
from medmesh.contracts.plan import Plan, changed
from medmesh.federated.chain import extend, round_digest, round_seed
from medmesh.federated.plan import after_training, plan_of
from medmesh.federated.proof import StartProof, pack
from medmesh.service import labels
from medmesh.store.attempts import KEY, of_attempt, same_attempt
from medmesh.store.prepared import Prepared
from medmesh.store.unit import AuditEntry, Entity, UnitOfWork
from medmesh.telemetry import log
from medmesh_federation import evaluation, privacy, transcript
from medmesh_federation.answering import IN_MODEL, MADE, PART_OF
from medmesh_federation.domain import Drop, Move, Open, Round, Situation, State, absent, fails_at
from medmesh_federation.handlers import entity, invited
from medmesh_federation.tables import answers, federations, participants, rounds

MOST_TOGETHER = MAX_MESSAGE_BYTES // 2
"""Characters of what is sealed in one message to hospitals, which has all that a round is opened with beside them."""
_IN_TIME = select(answers).where(of_attempt(answers), ~answers.c.late).order_by(answers.c.hospital)
ALL_ANSWERS, _ANSWERS = Prepared(_IN_TIME), Prepared(_IN_TIME.where(answers.c.failed.is_(None)))
_BEGUN = ("kind", "state", "base", "models", "assigned", "opened_at", "deadline", "digest", "links", "phase", "parties", "stored")
_NEW = Prepared(insert(rounds).values({name: bindparam(name) for name in (*KEY, *_BEGUN)}))
_WHO = Prepared(_IN_TIME.with_only_columns(answers.c.hospital, answers.c.failed))


async def answers_of(uow: UnitOfWork[Any], federation: str, number: int, attempt: int, *, all_of_them: bool = False) -> Sequence[Any]:
    return await uow.rows(ALL_ANSWERS if all_of_them else _ANSWERS, federation=federation, round=number, attempt=attempt)


async def answered(uow: UnitOfWork[Any], federation: str, number: int, attempt: int) -> Sequence[Any]:
    """Of every answer of an attempt who gave it, and why it does not count: what is asked at each step, and without what was said."""
    return await uow.rows(_WHO, federation=federation, round=number, attempt=attempt)


@cache
def _set(table: Table, names: frozenset[str]) -> Prepared:
    """Gives these columns of the row with a key values: those of the key are `its_...`."""
    its = [column == bindparam(f"its_{column.name}") for column in table.primary_key]
    return Prepared(update(table).where(*its).values({name: bindparam(name) for name in names}))


async def change(uow: UnitOfWork[Any], row: Any, **values: Any) -> None:
    await uow.rows(_set(federations, frozenset(values)), its_federation=row.federation, **values)


async def move(uow: UnitOfWork[Any], row: Any, situation: Situation, step: Move) -> None:
    await change(uow, row, state=step.to.value, failure=step.failure)
    if silent := sorted(situation.those("invited")):
        await _expire(uow, row, silent)
    members = tuple(sorted(situation.those("accepted") | situation.those("dropped")))
    match step.to:
        case State.READY:
            uow.emit(FederationReady(federation=row.federation, plan_hash=row.plan_hash))
        case State.QUEUED:
            uow.emit(FederationQueued(federation=row.federation))
        case State.RUNNING:
            uow.emit(await _started(uow, row, members))
        case State.FAILED:
            failure = step.failure or "federation.failed"
            uow.emit(FederationFailed(federation=row.federation, code=failure, hospitals=tuple(situation.plan.participants)))
        case State.COMPLETED:
            await _complete(uow, row, situation, members)
        case other:
            raise AssertionError(f"nobody is told of {other}")
    failed = step.to is State.FAILED
    detail = {"to": step.to.value}
    uow.audit(
        AuditEntry(
            "federation.move",
            "U",
            outcome=8 if failed else 0,
            why=step.failure or "",
            entities=(entity(row),),
            hospitals=invited(row),
            detail=detail,
        )
    )
    log("federation.moved", federation=row.federation, to=step.to.value)


async def _expire(uow: UnitOfWork[Any], row: Any, silent: Sequence[str]) -> None:
    """The invitation of those who did not answer is over."""
    theirs = (participants.c.federation == row.federation) & participants.c.hospital.in_(silent)
    await uow.execute(update(participants).where(theirs).values(state="expired"))
    uow.emit(InvitationExpired(federation=row.federation, hospitals=tuple(silent)))
    about = (entity(row), *(Entity("hospital", one) for one in silent))
    uow.audit(AuditEntry("federation.expire", "U", entities=about, hospitals=tuple(silent)))


async def wait(uow: UnitOfWork[Any], row: Any, situation: Situation, grace: float) -> None:
    """Too few hospitals are there for a round: people are told, and when it fails."""
    people, online, current = situation.participants, situation.online, situation.round
    deadline = current.deadline if current is not None and current.state == "open" else None
    until = fails_at(uow.now, deadline, grace, situation.plan, people, online)
    missing = tuple(sorted(absent(people, online)))
    await change(uow, row, waiting_since=uow.now)
    uow.emit(FederationWaiting(federation=row.federation, since=uow.now, until=until, missing=missing, hospitals=invited(row)))
    detail: dict[str, str | int | bool] = {"missing": ", ".join(missing), **({"until": until.isoformat()} if until else {})}
    uow.audit(AuditEntry("federation.wait", "U", outcome=4, entities=(entity(row),), hospitals=invited(row), detail=detail))
    log("federation.waiting", level=30, federation=row.federation, missing=", ".join(missing))


async def _started(uow: UnitOfWork[Any], row: Any, members: tuple[str, ...]) -> FederationStarted:
    """With all that a hospital demands to see before it trains, which is stored before anybody is told of it."""
    theirs = (participants.c.federation == row.federation) & participants.c.hospital.in_(members)
    signed = {p.hospital: p.signature for p in await uow.all(select(participants).where(theirs))}
    ref = await uow.ports.stores.kept.put(pack(StartProof(approval=row.token, acceptances=signed)), "application/json")
    return FederationStarted(federation=row.federation, plan_hash=row.plan_hash, hospitals=members, proof=ref)


async def _complete(uow: UnitOfWork[Any], row: Any, situation: Situation, members: tuple[str, ...]) -> None:
    number, contributors = await _made_by(uow, row)
    label = await labels.label_of(uow, "federation", row.federation)
    gone = select(rounds.c.round).where(rounds.c.federation == row.federation, rounds.c.undone).order_by(rounds.c.round)
    uow.emit(
        FederationCompleted(
            federation=row.federation,
            name=row.name,
            plan_hash=row.plan_hash,
            chain=row.chain,
            package=ObjectRef.model_validate(row.package),
            model=ObjectRef.model_validate(row.model),
            rounds=number,
            undone=tuple(one.round for one in await uow.all(gone)),
            participants=members,
            contributors=contributors,
            organisation=row.initiator.rpartition("@")[2],
            label=label.record,
            pipeline=said.hash if (said := pipeline_of(plan_of(row).data)) else None,
            hospitals=members,
        )
    )


async def trained(uow: UnitOfWork[Any], federation: str) -> int:
    """How many training rounds made its model: those that were undone did not."""
    return await _count(uow, federation, MADE)


async def skipped(uow: UnitOfWork[Any], federation: str) -> int:
    """How many rounds left nothing because their secure sum stayed closed."""
    return await _count(uow, federation, rounds.c.state == "skipped")


async def _count(uow: UnitOfWork[Any], federation: str, where: Any) -> int:
    wanted = select(func.count()).select_from(rounds).where(rounds.c.federation == federation, where)
    return int((await uow.execute(wanted)).scalar_one())


async def _made_by(uow: UnitOfWork[Any], row: Any) -> tuple[int, tuple[str, ...]]:
    """The training round whose model was kept, and the hospitals whose updates are in it, also of those that left since."""
    made = await uow.all(select(rounds.c.round, rounds.c.model).where(rounds.c.federation == row.federation, MADE))
    number = max((one.round for one in made if one.model == row.model), default=0)
    theirs = select(answers.c.hospital).join(rounds, same_attempt(rounds, answers)).where(rounds.c.federation == row.federation, IN_MODEL)
    return number, tuple(sorted({a.hospital for a in await uow.all(theirs.where(number >= PART_OF).distinct())}))


async def open_round(uow: UnitOfWork[Any], row: Any, situation: Situation, step: Open) -> None:
    plan = situation.plan
    base = ObjectRef.model_validate(row.initial if step.kind is RoundKind.BASELINE else row.model)
    models = await _candidates(uow, row, situation) if step.kind is RoundKind.EVALUATE else []
    deadline = uow.now + timedelta(seconds=plan.round_deadline_seconds)
    assigned = tuple(sorted(step.assigned))
    secure = plan.secure is not None
    shares = await transcript.prepared(uow, row, step.number, step.attempt, assigned, situation.round) if secure else {}
    for hospital in sorted(step.rejoined):
        where = (participants.c.federation == row.federation) & (participants.c.hospital == hospital)
        await uow.execute(update(participants).where(where).values(state="accepted", reason=""))
        uow.emit(ParticipantRejoined(federation=row.federation, hospital=hospital, round=step.number))
        about = (entity(row), Entity("hospital", hospital))
        uow.audit(AuditEntry("federation.rejoin", "U", entities=about, detail={"round": step.number}))
    values: dict[str, Any] = {
        "federation": row.federation,
        "round": step.number,
        "attempt": step.attempt,
        "kind": step.kind.value,
        "state": "open",
        "base": base.model_dump(),
        "models": [model.model_dump() for model in models],
        "assigned": list(assigned),
        "opened_at": uow.now,
        "deadline": deadline,
        "stored": False,
        "phase": (SecurePhase.VECTORS if shares else SecurePhase.KEYS).value if secure else None,
        "parties": list(assigned) if secure else None,
    }
    # Alone means as many steps as all rounds of the federation together: the comparison is at equal local work.
    adjusted = dict(row.changed) if step.kind is RoundKind.TRAIN else {}
    steps = changed(plan, adjusted).local_steps * (plan.rounds if step.kind is RoundKind.BASELINE else 1)
    event = RoundOpened(
        federation=row.federation,
        round=step.number,
        attempt=step.attempt,
        kind=step.kind,
        plan_hash=row.plan_hash,
        base=base,
        models=tuple(models),
        steps=steps,
        seed=round_seed(plan, step.number),
        deadline=deadline,
        hospitals=assigned,
        changed=adjusted,
        committed=row.chain,
        links=row.links,
        clip=privacy.next_clip(row, plan) if step.kind is RoundKind.TRAIN else "",
        undoing=_undoing(row, step),
        **await _beside(uow, row, step, plan),
    )
    digest, previous = round_digest(event), row.opened or row.plan_hash
    opened = extend(previous, [digest])
    await uow.rows(_NEW, **values, digest=digest, links=row.links)
    await privacy.charge(uow, row, plan, step)
    await change(uow, row, waiting_since=None, opened=opened, links=[])
    event = event.model_copy(update={"previous": previous, "chain": opened})
    for one in told(event, row.personal if step.kind is RoundKind.TRAIN else None, shares):
        uow.emit(one)
    log("federation.round.opened", federation=row.federation, round=step.number, attempt=step.attempt, parties=len(assigned))


def _undoing(row: Any, step: Open) -> Undoing | None:
    """What proves a roll-back: told with the next round, whatever it does, and with those that train until one is committed."""
    due = step.kind is RoundKind.TRAIN or any(one["kind"] is None for one in row.links)
    return Undoing.model_validate(row.undoing) if row.undoing and due else None


async def _beside(uow: UnitOfWork[Any], row: Any, step: Open, plan: Plan) -> dict[str, Any]:
    """What the algorithm has a round carry beside its model."""
    from medmesh.federated.aggregation import algorithm_of  # numpy: not before the first round

    algorithm = algorithm_of(plan)
    if step.kind is RoundKind.BASELINE:
        return {}
    state = row.state_object if algorithm.SHOWN and step.kind is RoundKind.TRAIN else None
    if not (algorithm.KEEPS or plan.local or plan.codec != "none"):
        return {"state": state, "continues": {}}
    gone = select(func.max(rounds.c.round)).where(rounds.c.federation == row.federation, rounds.c.undone)
    since = (await uow.execute(gone)).scalar_one() if algorithm.JOINT else None
    return {"state": state, "continues": await _counted(uow, row.federation, since or 0)}


def told(event: RoundOpened, personal: dict[str, Any] | None, shares: Mapping[str, dict[str, str]]) -> Iterable[RoundOpened]:
    """One event for all, or one for each: a hospital does not learn the hash of another's model, and so cannot fetch it. Of what is sealed
    for hospitals as much goes with one as a message holds."""
    if not personal and not shares:
        return [event]
    refs = {hospital: ObjectRef.model_validate(ref) for hospital, ref in (personal or {}).items()}
    groups = [(one,) for one in event.hospitals] if refs else together(event.hospitals, shares)
    own = [
        {
            "hospitals": group,
            "assigned": event.hospitals,
            "personal": refs.get(group[0]),
            "continues": _of(event.continues, group),
            "sealed": {one: shares[one] for one in group if one in shares},
        }
        for group in groups
    ]
    return [event.model_copy(update=changed) for changed in own]


def together(hospitals: Sequence[str], shares: Mapping[str, Mapping[str, str]], most: int = MOST_TOGETHER) -> list[tuple[str, ...]]:
    """Hospitals, in their order, in groups for whom at most so many characters are sealed; one alone may have more."""
    groups: list[list[str]] = []
    held = most
    for one in hospitals:
        size = sum(len(name) + len(text) for name, text in shares.get(one, {}).items())
        if not groups or held + size > most:
            groups.append([])
            held = 0
        groups[-1].append(one)
        held += size
    return [tuple(group) for group in groups]


def _of(continues: dict[str, str], hospitals: Any) -> dict[str, str]:
    return {hospital: place for hospital, place in continues.items() if hospital in hospitals}


async def _counted(uow: UnitOfWork[Any], federation: str, since: int = 0) -> dict[str, str]:
    """Hospital to the last training round after `since`, with its attempt, that its update was given to and is part of, or of one after it
    where it came late."""
    wanted = select(answers.c.hospital, answers.c.round, answers.c.attempt).join(rounds, same_attempt(rounds, answers))
    theirs = wanted.where(rounds.c.federation == federation, rounds.c.round > since, IN_MODEL)
    found = await uow.all(theirs.order_by(answers.c.round))
    return {a.hospital: f"{a.round}.{a.attempt}" for a in found}


async def _candidates(uow: UnitOfWork[Any], row: Any, situation: Situation) -> list[CandidateModel]:
    """The global model and every hospital's own from the baseline round."""
    made = await evaluation.global_models(uow, row, situation)
    if RoundKind.BASELINE not in after_training(situation.plan):
        return made
    wanted = select(rounds.c.attempt).where(
        rounds.c.federation == row.federation, rounds.c.round == situation.plan.rounds + 1, rounds.c.state == "committed"
    )
    attempt = (await uow.execute(wanted)).scalar_one()
    own = await answers_of(uow, row.federation, situation.plan.rounds + 1, attempt)
    gone = situation.those("withdrawn")  # nobody is shown their models any more
    return made + [CandidateModel(name=a.hospital, weights=ObjectRef.model_validate(a.update)) for a in own if a.hospital not in gone]


async def drop(uow: UnitOfWork[Any], row: Any, situation: Situation, step: Drop) -> None:
    assert situation.round is not None
    for hospital, reason in sorted(step.hospitals.items()):
        where = (participants.c.federation == row.federation) & (participants.c.hospital == hospital)
        drops = 1 + (await uow.execute(select(participants.c.drops).where(where))).scalar_one()
        excluded = 0 < situation.plan.max_drops <= drops
        values = {"state": "excluded" if excluded else "dropped", "reason": reason, "drops": drops}
        await uow.execute(update(participants).where(where).values(values))
        everybody = tuple(situation.plan.participants)
        about = {"federation": row.federation, "hospital": hospital, "round": situation.round.number}
        uow.emit(ParticipantDropped(**about, reason=reason, excluded=excluded, hospitals=everybody))
        detail: dict[str, str | int | bool] = {"round": situation.round.number, "excluded": excluded}
        entities = (entity(row), Entity("hospital", hospital))
        uow.audit(AuditEntry("federation.drop", "U", outcome=4, why=reason, entities=entities, detail=detail))
        log("federation.participant.dropped", level=30, federation=row.federation, hospital=hospital, reason=reason)


async def void(uow: UnitOfWork[Any], row: Any, situation: Situation, why: str = "", *, skipped: bool = False) -> None:
    """The attempt came to nothing, for the reason `why`: a code, or empty where too few answered. Of a round that is `skipped` there is no
    other."""
    current = situation.round
    assert current is not None
    await close_round(uow, row, current, state="skipped" if skipped else "void", why=why)
    await change(uow, row, voids=row.voids + 1)
    about = {"federation": row.federation, "round": current.number, "attempt": current.attempt, "skipped": skipped}
    uow.emit(RoundVoided(**about, why=why, hospitals=tuple(sorted(current.assigned))))
    detail: dict[str, str | int | bool] = {"round": current.number}
    uow.audit(AuditEntry("federation.void", "U", outcome=4, why=why, entities=(entity(row),), hospitals=invited(row), detail=detail))
    log("federation.round.void", level=30, federation=row.federation, round=current.number, why=why)
    uow.on_commit(uow.ports.committed.set)


async def close_round(uow: UnitOfWork[Any], row: Any, current: Round, **values: Any) -> None:
    its = {"its_federation": row.federation, "its_round": current.number, "its_attempt": current.attempt}
    await uow.rows(_set(rounds, frozenset(("closed_at", *values))), closed_at=uow.now, **values, **its)
