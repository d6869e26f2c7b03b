"""What a round leaves: its model, aggregated outside any transaction, committed in one, and copied to the kept store behind."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import update

from medmesh.contracts.federation import RoundCommitted, RoundKind, RoundStored
from medmesh.contracts.message import ObjectRef
from medmesh.contracts.plan import Plan
from medmesh.service.runtime import Runtime
from medmesh.store.objects.directory import DirectoryStore
from medmesh.store.objects.port import file_digest
from medmesh.store.unit import AuditEntry, UnitOfWork
from medmesh.telemetry import log
from medmesh_federation.domain import Situation, link
from medmesh_federation.handlers import entity, invited, local
from medmesh_federation.ports import Ports
from medmesh_federation.steps import answers_of, change, close_round
from medmesh_federation.tables import rounds


async def result(ports: Ports, plan: Plan, kind: RoundKind, base: ObjectRef, given: Sequence[Any]) -> ObjectRef:
    """The model a round leaves: aggregated where it trained, unchanged otherwise."""
    from medmesh.federated.aggregation import Start, aggregate, algorithm_of  # numpy: not before the first round

    if kind is not RoundKind.TRAIN:
        return base
    updates = [(a.hospital, await local(ports, ObjectRef.model_validate(a.update)), a.samples) for a in given]
    origin = await local(ports, base)
    with tempfile.TemporaryDirectory(dir=ports.settings.state) as folder:
        if plan.codec != "none":
            whole = [await asyncio.to_thread(_whole, plan, origin, path, Path(folder) / party) for party, path, _ in updates]
            updates = [(party, path, samples) for (party, _, samples), path in zip(updates, whole, strict=True)]
        start = Start(origin, local=frozenset(plan.local))
        outcome = await asyncio.to_thread(aggregate, algorithm_of(plan), start, updates, Path(folder))
        sha256, size = await asyncio.to_thread(file_digest, outcome.model)
        if isinstance(ports.models, DirectoryStore):
            return await asyncio.to_thread(ports.models.adopt, outcome.model, sha256, size)
        return await ports.models.put_file(outcome.model, sha256)


def _whole(plan: Plan, base: Path, encoded: Path, target: Path) -> Path:
    """The model that an encoded update stands for."""
    from medmesh.federated.aggregation import upload_signature
    from medmesh.federated.codecs import decode

    decode(plan.codec, upload_signature(plan), base, encoded, target, share=plan.codec_share)
    return target


async def commit(uow: UnitOfWork[Any], row: Any, situation: Situation, model: ObjectRef) -> None:
    current = situation.round
    assert current is not None
    chain = link(row.chain, current.number, current.kind, model.sha256)
    await close_round(uow, row, current, state="committed", model=model.model_dump(), chain=chain)
    await change(uow, row, model=model.model_dump(), chain=chain, voids=0)
    parties = tuple(sorted(current.answered))
    uow.emit(
        RoundCommitted(
            federation=row.federation,
            round=current.number,
            attempt=current.attempt,
            kind=current.kind,
            model=model,
            participants=parties,
            chain=chain,
        )
    )
    detail: dict[str, str | int | bool] = {"round": current.number, "parties": len(parties), "model": model.sha256, "chain": chain}
    uow.audit(AuditEntry("federation.round", "E", entities=(entity(row),), hospitals=invited(row), detail=detail))
    log("federation.round.committed", federation=row.federation, round=current.number, parties=len(parties))


async def store(runtime: Runtime, ports: Ports, row: Any) -> None:
    model = ObjectRef.model_validate(row.model)
    keep = [model]
    async with runtime.unit() as uow:
        given = await answers_of(uow, row.federation, row.round, row.attempt, all_of_them=True)
    updates = [ObjectRef.model_validate(a.update) for a in given if a.update]
    if row.kind == RoundKind.BASELINE:
        keep += [ObjectRef.model_validate(a.update) for a in given if a.update and a.failed is None]
    for ref in keep:
        if await ports.stores.kept.size(ref.sha256) is None:
            await ports.stores.kept.put_file(await local(ports, ref), ref.sha256)
    async with runtime.unit() as uow:
        where = (rounds.c.federation == row.federation) & (rounds.c.round == row.round) & (rounds.c.attempt == row.attempt)
        done = await uow.execute(update(rounds).where(where, ~rounds.c.stored).values(stored=True))
        if done.rowcount:
            uow.emit(
                RoundStored(federation=row.federation, round=row.round, attempt=row.attempt, model=model, hospitals=tuple(row.assigned))
            )
    # A single hospital's update is worth nothing now, and is not kept.
    for ref in updates:
        if ref not in keep:
            await ports.stores.scratch.delete(ref.sha256)
