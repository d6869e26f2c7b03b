"""What a round leaves: its model, aggregated outside any transaction, committed in one, and copied to the kept store behind."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Integer, bindparam, select, update

from medmesh.contracts.federation import Commitment, RoundCommitted, RoundKind, RoundStored
from medmesh.contracts.message import ObjectRef
from medmesh.contracts.plan import Plan
from medmesh.contracts.screening import Verdict
from medmesh.errors import Problem
from medmesh.federated.chain import link
from medmesh.service import files
from medmesh.service.runtime import Runtime
from medmesh.store.attempts import attempt, of_attempt
from medmesh.store.objects.directory import DirectoryStore
from medmesh.store.objects.port import file_digest
from medmesh.store.prepared import Prepared
from medmesh.store.unit import AuditEntry, UnitOfWork
from medmesh.telemetry import log
from medmesh_federation import evaluation, pace, privacy, screening, secure
from medmesh_federation.answering import LOCK
from medmesh_federation.domain import Round, Situation
from medmesh_federation.handlers import entity, invited, local
from medmesh_federation.ports import Ports
from medmesh_federation.secure import Opening
from medmesh_federation.steps import ALL_ANSWERS, change, close_round
from medmesh_federation.tables import federations, rounds

if TYPE_CHECKING:
    from medmesh.federated.aggregation import Outcome, Start
    from medmesh.federated.screening import Finding
    from medmesh_federation.screening import Updates


_ROUNDS = rounds.c.federation == bindparam("federation")
_STORED = Prepared(update(rounds).where(of_attempt(rounds), ~rounds.c.stored).values(stored=True).returning(rounds.c.round))
_OPEN_ROUND = Prepared(select(rounds.c.round).where(_ROUNDS, rounds.c.state == "open").limit(1))
# Rounds that an early stop left out are none.
_EARLIER = Prepared(
    select(rounds.c.state_object, rounds.c.personal)
    .where(_ROUNDS, rounds.c.round < bindparam("round"), rounds.c.state == "committed")
    .order_by(rounds.c.round.desc())
    .limit(bindparam("kept", type_=Integer))
)
_PRESENT = Prepared(select(federations.c.state_object, federations.c.personal).where(federations.c.federation == bindparam("federation")))


@dataclass(frozen=True)
class Result:
    """What a round leaves, lying durably in `ports.models`: see `medmesh.federated.aggregation.Outcome`."""

    model: ObjectRef
    state: ObjectRef | None = None
    personal: Mapping[str, ObjectRef] = field(default_factory=dict)
    flagged: Mapping[str, Verdict] = field(default_factory=dict)
    summed: dict[str, Any] | None = None
    """What a secure sum says of evaluations."""
    clip: str | None = None
    """The next round's clipping norm, where it follows the updates."""
    found: Mapping[str, Finding] = field(default_factory=dict)
    """What is wrong with updates that look wrong."""
    excluded: frozenset[str] = frozenset()
    """Whose do not count; `enough` of the others are left to make a model."""
    enough: bool = True

    @property
    def absent(self) -> frozenset[str]:
        """Whose update is not in the model."""
        return self.excluded | {hospital for hospital, verdict in self.flagged.items() if verdict is Verdict.ASIDE}


async def result(
    ports: Ports,
    row: Any,
    situation: Situation,
    given: Sequence[Any],
    opening: Opening | None = None,
    seen: frozenset[str] = frozenset(),
) -> Result:
    """Aggregated where a round trained; unchanged otherwise. The same answers give the same bytes."""
    from medmesh.federated.aggregation import Start  # numpy: not before the first round

    assert situation.round is not None
    plan, base = situation.plan, ObjectRef.model_validate(row.model)
    before = ObjectRef.model_validate(row.state_object) if row.state_object else None
    if situation.round.kind is not RoundKind.TRAIN:
        summed = await _evaluated(ports, situation, given, opening) if opening is not None else None
        told = [summed["results"]] if summed is not None else [a.results for a in given]
        chosen = evaluation.kept(situation, told) if situation.round.kind is RoundKind.EVALUATE else None
        own = {hospital: ObjectRef.model_validate(ref) for hospital, ref in (row.personal or {}).items()}
        return Result(chosen or base, before, own, summed=summed)
    origin = await local(ports, base)
    with tempfile.TemporaryDirectory(dir=ports.settings.state) as folder:
        members = len(situation.those("accepted") | situation.those("dropped"))
        state = await local(ports, before) if before else None
        if plan.pace is not None:
            updates = await pace.weighed(ports, plan, given, situation.round.number, origin, Path(folder), _whole)
        else:
            updates = [(a.hospital, await local(ports, ObjectRef.model_validate(a.update)), a.samples) for a in given]
        if plan.codec != "none" and plan.pace is None:
            whole = [await asyncio.to_thread(_whole, plan, origin, path, Path(folder) / party) for party, path, _ in updates]
            updates = [(party, path, samples) for (party, _, samples), path in zip(updates, whole, strict=True)]
        summed = None
        if opening is not None:
            # A mean is all that algorithms need which may be combined with it: it counts as one party's update.
            mean, samples, summed = await asyncio.to_thread(
                _opened, opening, plan, situation.round, {name: path for name, path, _ in updates}, origin, Path(folder)
            )
            updates = [("sum", mean, samples)]
        updates, found = await screening.screened(plan, origin, updates, given, seen)
        excluded = frozenset(a.hospital for a in given) - {party for party, _, _ in updates} if opening is None else frozenset()
        if excluded and len(updates) < plan.min_participants:
            return Result(base, before, found=found, excluded=excluded, enough=False)
        updates, clip = await privacy.noised(row, plan, origin, updates, Path(folder))
        start = Start(origin, state=state, members=members, local=frozenset(plan.local))
        outcome = await asyncio.to_thread(_aggregated, plan, start, updates, Path(folder))
        personal = {hospital: await _put(ports, path) for hospital, path in sorted(outcome.personal.items())}
        remembered = await _put(ports, outcome.state) if outcome.state else None
        return Result(await _put(ports, outcome.model), remembered, personal, outcome.flagged, summed, clip, found, excluded)


def _aggregated(plan: Plan, start: Start, updates: Updates, folder: Path) -> Outcome:
    """Raises `Problem`: also where an algorithm, which may be somebody's own, fails on the updates in a way of its own."""
    from medmesh.federated.aggregation import aggregate, algorithm_of

    try:
        return aggregate(algorithm_of(plan), start, updates, folder)
    except (Problem, OSError, MemoryError):
        raise
    except Exception as error:
        raise Problem("federation.aggregation", algorithm=plan.algorithm, error=type(error).__name__) from error


async def _evaluated(ports: Ports, situation: Situation, given: Sequence[Any], opening: Opening) -> dict[str, Any] | None:
    """What a sum of counts alone says: each hospital's vector begins with 1 where else its samples are. Raises `Problem` (`secure.*`)."""
    assert situation.round is not None
    vectors = {a.hospital: await local(ports, ObjectRef.model_validate(a.update)) for a in given}
    with opening.sum(vectors) as total:
        return secure.evaluated(situation.plan, situation.round, total, len(vectors))


def _opened(
    opening: Opening, plan: Plan, current: Round, vectors: Mapping[str, Path], base: Path, folder: Path
) -> tuple[Path, int, dict[str, Any] | None]:
    """(mean model, samples, what is said of evaluations) of a sum."""
    with opening.sum(vectors) as total:
        made, samples = secure.mean(plan, current, total, base, folder)
        return made, samples, secure.evaluated(plan, current, total, samples)


async def _put(ports: Ports, path: Path) -> ObjectRef:
    if isinstance(ports.models, DirectoryStore):
        return await ports.models.take_over(path)
    sha256, _ = await asyncio.to_thread(file_digest, path)
    return await ports.models.put_file(path, sha256)


def _whole(plan: Plan, base: Path, encoded: Path, target: Path) -> Path:
    """The model that an encoded update stands for."""
    from medmesh.federated.aggregation import upload_signature
    from medmesh.federated.codecs import decode

    decode(plan.codec, upload_signature(plan), base, encoded, target, share=plan.codec_share)
    return target


async def commit(uow: UnitOfWork[Any], row: Any, situation: Situation, made: Result, milliseconds: int) -> None:
    current, model = situation.round, made.model
    assert current is not None
    state = made.state.sha256 if made.state else None
    chain = link(row.chain, current.number, current.kind, model.sha256, state)
    links = [*row.links, Commitment(round=current.number, kind=current.kind, model=model.sha256, state=state).model_dump()]
    left = {
        "model": model.model_dump(),
        "state_object": made.state.model_dump() if made.state else None,
        "personal": {hospital: ref.model_dump() for hospital, ref in made.personal.items()} or None,
    }
    await belong(uow, row, model, made.state, *made.personal.values())
    undoing = None if current.kind is RoundKind.TRAIN else row.undoing
    beside = {"aggregate_milliseconds": milliseconds, "summed": made.summed}
    await close_round(uow, row, current, state="committed", chain=chain, **beside, **left)
    await change(uow, row, chain=chain, links=links, voids=0, clip=made.clip, undoing=undoing, waiting_since=None, **left)
    parties = tuple(sorted(current.here - made.absent))
    uow.emit(
        RoundCommitted(
            federation=row.federation,
            round=current.number,
            attempt=current.attempt,
            kind=current.kind,
            model=model,
            participants=parties,
            chain=chain,
            state=state,
        )
    )
    detail: dict[str, str | int | bool] = {"round": current.number, "parties": len(parties), "model": model.sha256, "chain": chain}
    if made.flagged:
        detail["flagged"] = "; ".join(f"{hospital}: {verdict}" for hospital, verdict in sorted(made.flagged.items()))
    uow.audit(AuditEntry("federation.round", "E", entities=(entity(row),), hospitals=invited(row), detail=detail))
    log("federation.round.committed", federation=row.federation, round=current.number, parties=len(parties))


async def belong(uow: UnitOfWork[Any], row: Any, *refs: ObjectRef | None) -> None:
    """Note that files are parts of the federation: people read them who may see it, by its label of then."""
    await files.keep(uow, "federation", row.federation, [ref.sha256 for ref in refs if ref])


async def store(runtime: Runtime, ports: Ports, row: Any) -> bool:
    """Copy a committed round's model to the kept store, and tell its hospitals. Whether the federation may wait for it: no round of
    it is open."""
    key = attempt(row)
    model, given = ObjectRef.model_validate(row.model), await runtime.database.look(ALL_ANSWERS, **key)
    keep = [model]
    if row.kind == RoundKind.BASELINE:
        keep += [ObjectRef.model_validate(a.update) for a in given if a.update and a.failed is None]
        async with runtime.unit() as uow:
            await belong(uow, row, *keep)
    # What the algorithm remembers is needed for the next round only; the chain holds its hash.
    for ref in (*keep, *_remembered(row)):
        if await ports.stores.kept.size(ref.sha256) is None:
            with ports.holding() as held:
                await ports.stores.kept.put_file(await local(held, ref), ref.sha256)
    async with runtime.unit() as uow:
        if outdated := await _outdated(uow, row, ports.settings.states_kept):
            # Under the federation's lock, taken before the round's: a roll-back finds what it goes back to, or finds it gone; it is not
            # taken away afterwards.
            await uow.rows(LOCK, federation=row.federation)
            outdated = await _outdated(uow, row, ports.settings.states_kept)
        for ref in outdated:
            await ports.stores.kept.delete(ref.sha256)
            await ports.models.delete(ref.sha256)
        stale = await uow.rows(pace.STALE, federation=row.federation, round=row.round)
        if await uow.rows(_STORED, **key):
            silent = set(row.assigned) - {a.hospital for a in given}
            if not silent or row.kind != RoundKind.TRAIN or not await pace.goes_on(uow, row.federation):
                silent = set()
            # Who still trains keeps what becomes of it, until that counts in a later round.
            told = tuple(sorted({*row.assigned, *(a.hospital for a in stale)} - silent))
            earlier = {a.hospital: a.round for a in stale}
            uow.emit(RoundStored(**key, model=model, hospitals=told, stale=earlier))
        open_round = await uow.rows(_OPEN_ROUND, federation=row.federation)
    return not open_round


async def _outdated(uow: UnitOfWork[Any], row: Any, kept: int) -> list[ObjectRef]:
    """What the algorithm remembered after the round `kept` before this one: later ones may be gone back to."""
    earlier = await uow.rows(_EARLIER, federation=row.federation, round=row.round, kept=kept)
    if len(earlier) < kept or not _remembered(earlier[-1]):
        return []
    present = await uow.rows(_PRESENT, federation=row.federation)
    needed = {ref.sha256 for one in (row, *earlier[:-1], *present) for ref in _remembered(one)}
    return [ref for ref in _remembered(earlier[-1]) if ref.sha256 not in needed]


def _remembered(row: Any) -> list[ObjectRef]:
    return [ObjectRef.model_validate(ref) for ref in (row.state_object, *(row.personal or {}).values()) if ref]
