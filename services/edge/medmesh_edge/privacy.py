"""Differential privacy at the hospital: its own ledger, written before anything is trained, and the clipping and noise of its part.

The ledger is of patients, not of federations: what several spend on the same patients is one account, composed as the accountant says.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import insert, select

from medmesh.contracts.federation import RoundKind, RoundOpened
from medmesh.contracts.plan import Plan
from medmesh.errors import Problem
from medmesh.federated.privacy import clipping
from medmesh.federated.privacy.accountant import Part
from medmesh.federated.privacy.budget import COUNT_NOISE, affordable, multiplier, part, rounds_within, spent, together
from medmesh.store.unit import AuditEntry, Entity, UnitOfWork
from medmesh_edge import samples
from medmesh_edge.policy import Cohort, Policy, over_total
from medmesh_edge.ports import Site
from medmesh_edge.tables import federations, items, privacy_spent


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
        policy = site.policy()
        if (over := over_total(policy, await _taken(uow, policy, plan, event.federation), part(plan, len(rows) + 1))) is not None:
            raise over
        epsilon = f"{spent(plan, len(rows) + 1):.6f}"
        place = {"federation": event.federation, "round": event.round, "attempt": event.attempt}
        await uow.execute(insert(privacy_spent).values(**place, epsilon=epsilon, at=uow.now))
        about = (Entity("federation", event.federation, digest=event.plan_hash),)
        detail: dict[str, str | int | bool] = {"round": event.round, "epsilon": epsilon, "budget": plan.privacy.epsilon}
        uow.audit(AuditEntry("federation.privacy", "C", entities=about, detail=detail))


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


async def cohort(site: Site, plan: Plan, federation: str) -> Cohort:
    """What a plan would train on, and what of these patients' privacy is taken: all a policy asks for."""
    found = await samples.cohort(site, plan.data)
    if plan.privacy is None:
        return found
    async with site.unit() as uow:
        begun = len(await uow.all(select(privacy_spent.c.round).where(privacy_spent.c.federation == federation)))
        return replace(found, taken=await _taken(uow, site.policy(), plan, federation), begun=begun)


ACTIVE = ("accepted", "running", "paused")
"""States of a federation that may still spend what it was signed for."""


async def _taken(uow: UnitOfWork[Any], policy: Policy, plan: Plan, federation: str) -> tuple[Part, ...]:
    """What the others put into the account of `plan`: what they spent within the policy's period, and what they may still spend. Of a
    hospital's privacy all federations take; of patients' those whose data have a patient here in common with the plan's."""
    assert plan.privacy is not None
    others = [e for e in await _entries(uow, policy) if e.federation != federation and e.unit == plan.privacy.unit]
    return tuple([entry.whole for entry in others if await _shared(uow, entry, plan.data.modality)])


@dataclass(frozen=True, slots=True)
class _Entry:
    """One federation's: what it spent in the period, and with what it may still spend."""

    federation: str
    unit: str
    modality: str
    spent: Part
    whole: Part


async def _entries(uow: UnitOfWork[Any], policy: Policy) -> list[_Entry]:
    since = uow.now - timedelta(days=policy.total_days) if policy.total_days else None
    rows, found = await uow.all(select(privacy_spent.c.federation, privacy_spent.c.at)), []
    for row in await uow.all(select(federations).order_by(federations.c.at, federations.c.federation)):
        plan = Plan.model_validate(row.plan)
        if plan.privacy is None:
            continue
        mine = [one.at for one in rows if one.federation == row.federation]
        counted = sum(since is None or at > since for at in mine)
        left = max(0, rounds_within(plan) - len(mine)) if row.state in ACTIVE else 0
        if counted or left:
            parts = part(plan, counted), part(plan, counted + left)
            found.append(_Entry(row.federation, plan.privacy.unit, plan.data.modality, *parts))
    return found


async def _shared(uow: UnitOfWork[Any], entry: _Entry, modality: str) -> bool:
    if entry.unit == "hospital" or entry.modality == modality:
        return True
    theirs = select(items.c.patient).where(items.c.modality == entry.modality)
    return await uow.first(select(items.c.patient).where(items.c.modality == modality, items.c.patient.in_(theirs)).limit(1)) is not None


async def totals(site: Site) -> list[dict[str, Any]]:
    """One line an account: this hospital's, and its patients' by kind of data, with what all federations on it spent together and may
    still spend, of the policy's total. `without` are federations on it whose plans have no differential privacy, which nothing bounds."""
    policy = site.policy()
    delta = float(policy.total_delta)
    async with site.unit() as uow:
        entries, lines = await _entries(uow, policy), []
        told = {row.federation: Plan.model_validate(row.plan) for row in await uow.all(select(federations)) if row.start is not None}
        plain = [_Entry(name, "patient", one.data.modality, _NOTHING, _NOTHING) for name, one in told.items() if one.privacy is None]
        accounts = dict.fromkeys(("hospital", "") if e.unit == "hospital" else ("patient", e.modality) for e in entries)
        for unit, modality in accounts:
            on = [e for e in entries if e.unit == unit and await _shared(uow, e, modality)]
            without = [e for e in plain if unit == "hospital" or await _shared(uow, e, modality)]
            epsilon, reserved = (f"{together(tuple(getattr(e, what) for e in on), delta):.6f}" for what in ("spent", "whole"))
            about = {"unit": unit, "modality": modality, "federations": len(on), "without": len(without)}
            limits = {"budget": policy.total_epsilon, "delta": policy.total_delta, "days": policy.total_days}
            lines.append({**about, "epsilon": epsilon, "reserved": reserved, **limits})
    return lines


_NOTHING = Part(1.0, 1.0, 0)


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
