"""Differential privacy at the coordinator: the federation's ledger, and the noise where it is the platform that adds it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import func, insert, select

from medmesh.contracts.federation import PrivacyView, RoundKind
from medmesh.contracts.plan import Plan
from medmesh.federated.privacy.budget import COUNT_NOISE, multiplier, spent
from medmesh.store.unit import AuditEntry, UnitOfWork
from medmesh_federation.domain import Open
from medmesh_federation.handlers import entity, invited
from medmesh_federation.tables import privacy_spent

Update = tuple[str, Path, int]


async def begun(uow: UnitOfWork[Any], federation: str) -> int:
    """How many attempts at training rounds the ledger has."""
    counted = select(func.count()).select_from(privacy_spent).where(privacy_spent.c.federation == federation)
    return int((await uow.execute(counted)).scalar_one())


async def charge(uow: UnitOfWork[Any], row: Any, plan: Plan, step: Open) -> None:
    """In the transaction that opens an attempt: what comes of it cannot be released before it is counted."""
    if plan.privacy is None or step.kind is not RoundKind.TRAIN:
        return
    epsilon = f"{spent(plan, await begun(uow, row.federation) + 1):.6f}"
    place = {"federation": row.federation, "round": step.number, "attempt": step.attempt}
    await uow.execute(insert(privacy_spent).values(**place, epsilon=epsilon, at=uow.now))
    detail: dict[str, str | int | bool] = {"round": step.number, "epsilon": epsilon, "budget": plan.privacy.epsilon}
    uow.audit(AuditEntry("federation.privacy", "C", entities=(entity(row),), hospitals=invited(row), detail=detail))


async def view(uow: UnitOfWork[Any], federation: str, plan: Plan) -> PrivacyView | None:
    """The ledger as people see it."""
    if (privacy := plan.privacy) is None:
        return None
    attempts = await begun(uow, federation)
    return PrivacyView(
        unit=privacy.unit, epsilon=round(spent(plan, attempts), 6), budget=privacy.epsilon, delta=privacy.delta, attempts=attempts
    )


def next_clip(row: Any, plan: Plan) -> str:
    """The clipping norm of the round that is opened next; empty where it is the plan's own."""
    return (row.clip or plan.privacy.clip) if plan.privacy is not None and plan.privacy.adaptive else ""


async def noised(row: Any, plan: Plan, base: Path, updates: Sequence[Update], folder: Path) -> tuple[list[Update], str | None]:
    """(the mean of hospitals' clipped updates with its noise as the one update, the next round's clipping norm where it adapts).

    Updates are as they are where no hospital's part is hidden. Where a sum was opened, `updates` is its mean, and the noise is in it.
    """
    privacy = plan.privacy
    if privacy is None or privacy.unit != "hospital":
        return list(updates), None
    clip = await asyncio.to_thread(_noise, plan, float(next_clip(row, plan) or privacy.clip), base, updates, folder)
    return [("sum", folder / "noised", 1)], repr(clip) if privacy.adaptive else None


def _noise(plan: Plan, clip: float, base: Path, updates: Sequence[Update], folder: Path) -> float:
    from medmesh.federated.aggregation import Start, aggregate
    from medmesh.federated.privacy import clipping, noise
    from medmesh.federated.streams import Reader

    privacy, count, local = plan.privacy, len(updates), frozenset(plan.local)
    assert privacy is not None
    mean, target = folder / "clipped", folder / "noised"
    if plan.secure is None:
        mean.mkdir()
        made = aggregate("fedavg", Start(base, local=local), [(name, path, 1) for name, path, _ in updates], mean).model
        noise.add(made, target, multiplier(privacy) * clip / count, without=local)
    else:
        updates[0][1].rename(target)
    if not privacy.adaptive:
        return clip
    within = 0.0
    for path in [target] if plan.secure is not None else [path for _, path, _ in updates]:
        with Reader(path) as file:
            within += float(file.read(clipping.WITHIN.name, 0, 1)[0]) / count
    if plan.secure is None:
        within += COUNT_NOISE * float(privacy.noise) / count * float(noise.normal(1)[0])
    return clipping.adapted(clip, within + 0.5, quantile=float(privacy.quantile))
