"""Differential privacy at the hospital: its own ledger, written before anything is trained, and the clipping and noise of its part."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from sqlalchemy import insert, select

from medmesh.contracts.federation import RoundKind, RoundOpened
from medmesh.contracts.plan import Plan
from medmesh.errors import Problem
from medmesh.federated.privacy import clipping
from medmesh.federated.privacy.budget import COUNT_NOISE, affordable, multiplier, spent
from medmesh.store.unit import AuditEntry, Entity
from medmesh_edge.ports import Site
from medmesh_edge.tables import federations, privacy_spent


async def charge(site: Site, plan: Plan, event: RoundOpened) -> None:
    """Write down what an attempt will have spent, once; killed at any line afterwards, it is spent. Raises `Problem` (`privacy.budget`)
    when it would be more than the hospital signed: nothing is trained then, whatever the platform asks for."""
    if plan.privacy is None or event.kind is not RoundKind.TRAIN:
        return
    async with site.unit() as uow:
        rows = await uow.all(select(privacy_spent).where(privacy_spent.c.federation == event.federation))
        if (event.round, event.attempt) in {(row.round, row.attempt) for row in rows}:
            return
        if not affordable(plan, len(rows) + 1):
            raise Problem("privacy.budget")
        epsilon = f"{spent(plan, len(rows) + 1):.6f}"
        place = {"federation": event.federation, "round": event.round, "attempt": event.attempt}
        await uow.execute(insert(privacy_spent).values(**place, epsilon=epsilon, at=uow.now))
        about = (Entity("federation", event.federation, digest=event.plan_hash),)
        detail: dict[str, str | int | bool] = {"round": event.round, "epsilon": epsilon, "budget": plan.privacy.epsilon}
        uow.audit(AuditEntry("federation.privacy", "C", entities=about, detail=detail))


def of_worker(plan: Plan) -> dict[str, Any]:
    """What a training adds for its patients: the worker clips and noises each step."""
    if plan.privacy is None or plan.privacy.unit != "patient":
        return {}
    return {"private": {name: float(getattr(plan.privacy, name)) for name in ("rate", "clip", "noise")}}


async def protect(plan: Plan, event: RoundOpened, base: Path, upload: Path, target: Path) -> Path:
    """What may travel of a training: clipped where a hospital's part is hidden, and with its share of the noise where nobody else may
    add that, because the sum is opened as it is. Raises `Problem` (`weights.*`, `federation.plan_changed`)."""
    privacy = plan.privacy
    if privacy is None or privacy.unit != "hospital" or event.kind is not RoundKind.TRAIN:
        return upload
    clip = clip_of(plan, event)
    noise = clipping.shared(1.0, plan.secure.threshold) if plan.secure is not None else 0.0
    count = COUNT_NOISE * float(privacy.noise) * noise if privacy.adaptive else None
    await asyncio.to_thread(clipping.privatise, base, upload, target, clip=clip, noise=multiplier(privacy) * noise, count=count)
    return target


def clip_of(plan: Plan, event: RoundOpened) -> float:
    """The round's clipping norm. Whatever it is, the noise is in proportion to it."""
    assert plan.privacy is not None
    if not plan.privacy.adaptive:
        return float(plan.privacy.clip)
    try:
        clip = float(event.clip)
    except ValueError:
        clip = 0.0
    if not 0 < clip <= 1e9:
        raise Problem("federation.plan_changed", federation=event.federation)
    return clip


async def ledger(site: Site) -> list[dict[str, Any]]:
    """One line a federation: what it has spent of this hospital's privacy."""
    async with site.unit() as uow:
        rows = await uow.all(select(privacy_spent).order_by(privacy_spent.c.at, privacy_spent.c.round, privacy_spent.c.attempt))
        plans = {row.federation: Plan.model_validate(row.plan) for row in await uow.all(select(federations))}
    lines: dict[str, dict[str, Any]] = {}
    for row in rows:
        plan = plans[row.federation]
        assert plan.privacy is not None
        about = {"name": plan.name, "unit": plan.privacy.unit, "budget": plan.privacy.epsilon, "delta": plan.privacy.delta}
        attempts = lines.get(row.federation, {}).get("attempts", 0) + 1
        lines[row.federation] = {"federation": row.federation, **about, "epsilon": row.epsilon, "attempts": attempts, "round": row.round}
    return list(lines.values())
