"""Before an update leaves: has the model memorised the patients it was trained on? By the hospital's policy it is noted or refused.

The hospital's held-out patients, whom no training ever sees, are what strangers look like. The package's code says what it answers to each
sample; losses and their comparison are computed here. Code that lies here can hide what its model knows: this finds what happens
without intent, as too many steps on too few patients.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from sqlalchemy import select
from sqlalchemy.dialects.sqlite import insert as upsert

from medmesh.contracts.federation import RoundOpened
from medmesh.contracts.plan import Plan, TensorSignature
from medmesh.errors import Problem
from medmesh.federated import memorised
from medmesh.federated.aggregation import Local
from medmesh.federated.memorised import Finding
from medmesh.learning import weights
from medmesh.learning.host import Worker
from medmesh.telemetry import log
from medmesh_edge import samples
from medmesh_edge.ports import Site
from medmesh_edge.tables import scans

MOST = 1000
"""Patients of each kind that are looked at: the same ones in every round."""


async def scan(site: Site, opened: Worker, plan: Plan, event: RoundOpened, local: Local) -> None:
    """Look at the model that was trained in `local.folder`. Raises `Problem` (`policy.memorised`) where the policy refuses it."""
    policy = site.policy()
    if policy.memorised == "off":
        return
    rows = [_few(await samples.rows(site, plan.data, held_out=held_out)) for held_out in (False, True)]
    if not all(rows):
        log("edge.round.unscanned", level=30, federation=event.federation, round=event.round)
        return
    mine, others = [await _losses(site, opened, plan, local, found) for found in rows]
    found = memorised.measure(mine, others, plan.rounds)
    refused = policy.memorised == "refuse" and found.surely > float(policy.max_memorised)
    await _keep(site, event, found, refused)
    if refused:
        raise Problem("policy.memorised", found=f"{found.surely:.2f}", limit=policy.max_memorised)


def _few(rows: Sequence[Any]) -> Sequence[Any]:
    patients = sorted({row.patient for row in rows}, key=lambda patient: hashlib.sha256(patient.encode()).digest())
    chosen = frozenset(patients[:MOST])
    return [row for row in rows if row.patient in chosen]


async def _losses(site: Site, opened: Worker, plan: Plan, local: Local, found: Sequence[Any]) -> np.ndarray:
    data = opened.give(await samples.arrays(site, plan.data, found), "scanned")
    out, answers = opened.folder / "answers", local.folder / "answers"
    await opened.call("predict", weights=opened.give(local.folder / "trained", "scanned-model"), data=data, out=str(out))
    out.rename(answers)  # out of the worker's reach
    weights.check(answers, [TensorSignature(name="logits", shape=(len(found), len(plan.data.classes)), dtype="F32")])
    await asyncio.to_thread(weights.check_finite, answers)
    logits = (await asyncio.to_thread(weights.load, answers))["logits"]
    patients = np.unique([row.patient for row in found], return_inverse=True)[1]
    return memorised.losses(logits, samples.truth(plan.data, found), patients)


async def _keep(site: Site, event: RoundOpened, found: Finding, refused: bool) -> None:
    """For this hospital's people alone: how well its patients can be told apart is nobody else's business."""
    log("edge.round.scanned", federation=event.federation, round=event.round, memorised=round(found.surely, 2), refused=refused)
    values = {"federation": event.federation, "round": event.round, "attempt": event.attempt, "refused": refused}
    values |= {"advantage": f"{found.advantage:.3f}", "margin": f"{found.margin:.3f}", "trained": found.trained, "held_out": found.held_out}
    async with site.unit() as uow:
        row = upsert(scans).values({**values, "at": uow.now})
        await uow.execute(row.on_conflict_do_update(index_elements=list(scans.primary_key), set_=values))


async def listed(site: Site) -> list[dict[str, Any]]:
    """What was found, the newest first."""
    async with site.unit() as uow:
        rows = await uow.all(select(scans).order_by(scans.c.at.desc(), scans.c.round.desc()).limit(200))
    return [{name: value for name, value in row._mapping.items() if name != "at"} for row in rows]
