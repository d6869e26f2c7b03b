"""Evaluating models at the hospital, on samples that are never trained on; and what of it may be told.

The package's code says only what it predicts for each sample. Counting, and the small-cell rule, are done here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from medmesh.contracts.federation import RoundOpened
from medmesh.contracts.plan import Plan, TensorSignature
from medmesh.errors import Problem
from medmesh.federated.aggregation import Local, algorithm_of, makes_own
from medmesh.federated.cells import told
from medmesh.federated.trainer import Trainer
from medmesh.learning import weights
from medmesh.learning.host import Worker
from medmesh_edge import counting, samples, training
from medmesh_edge.ports import Site

Table = list[list[int]]


async def evaluate(site: Site, opened: Worker, plan: Plan, models: Sequence[Path], folder: Path) -> list[Table]:
    """What may be told of each model, `counts[true][predicted]`; all zeros where too few patients are held out. Raises `Problem`."""
    rows, smallest = await counting.held_out(site, plan)
    classes = len(plan.data.classes)
    if not rows:
        return [[[0] * classes for _ in range(classes)] for _ in models]
    data = opened.give(await samples.arrays(site, plan.data, rows), "held-out")
    given = [opened.give(path, f"model-{place}") for place, path in enumerate(models)]
    out, found = opened.folder / "predicted", folder / "predicted"
    await opened.call("evaluate", data=data, models=given, out=str(out))
    out.rename(found)  # out of the worker's reach
    weights.check(found, [TensorSignature(name=str(place), shape=(len(rows),), dtype="I64") for place in range(len(models))])
    predicted = await asyncio.to_thread(weights.load, found)
    if any(len(one) and not 0 <= one.min() <= one.max() < classes for one in predicted.values()):
        raise Problem("training.answer", operation="evaluate")
    truth = samples.truth(plan.data, rows)
    of = [row.item for row in rows], [row.patient for row in rows]
    key = counting.key(site) if smallest > 1 else b""
    return [
        told(truth, predicted[str(place)], *of, classes=classes, smallest=smallest, key=key)  # one model at a time
        for place in range(len(models))
    ]


async def beginning(site: Site, opened: Worker, plan: Plan, local: Local) -> Table:
    """How the model did that a training round begins with, with the tensors that stay in this hospital."""
    return (await evaluate(site, opened, plan, [algorithm_of(plan).beginning(local)], local.folder))[0]


async def everything(
    site: Site, plan: Plan, event: RoundOpened, trainer: Callable[[Path], Trainer], fetch: training.Fetch
) -> tuple[list[dict[str, Any]], Table | None]:
    """Every model of an evaluation round by its hash, and this hospital's own where its algorithm makes one. Raises `Problem`."""
    paths = [await fetch(model.weights) for model in event.models]
    for path in paths:
        weights.check(path, plan.signature)
    data, count = await samples.prepare(site, plan.data, held_out=False)
    running = trainer(data)
    async with training.side(site, plan, event, count, await fetch(event.base), fetch) as local:
        own = await running.personal(local) if makes_own(plan) else None
        tables = await evaluate(site, running.worker, plan, [*paths, *([own] if own else [])], local.folder)
    results = [{"model": model.weights.sha256, "counts": table} for model, table in zip(event.models, tables, strict=False)]
    return results, tables[-1] if own else None


def together(plan: Plan, results: Sequence[dict[str, Any]], own: Table | None) -> list[Table]:
    """What of an evaluation round goes into a sum, in the order in which it is opened: a table for each model, and one more, of zeros where
    there is nothing to tell, where each hospital has a model of its own."""
    classes = len(plan.data.classes)
    return [one["counts"] for one in results] + ([own or [[0] * classes for _ in range(classes)]] if makes_own(plan) else [])
