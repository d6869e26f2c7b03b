"""The reference nobody has in reality: all training images in one place, trained outside the platform."""

from __future__ import annotations

import asyncio
from pathlib import Path

from medmesh.client.federation import initial_weights
from medmesh.client.transfer import download
from medmesh.demo import source
from medmesh.demo.stage import BATCH, PACKAGE, RATE, ROUNDS, STEPS, Stage
from medmesh.learning import metrics, weights
from medmesh.learning.host import Worker, worker
from medmesh.learning.package import pack


async def pooled(stage: Stage, slices: list[source.Slice]) -> None:
    """The reference nobody has in reality: all training images in one place, trained outside the platform."""
    stage.say("reference: pooled training outside the platform", "参照：在平台之外的集中训练")
    package = pack(PACKAGE)
    train = [s for s in slices if not s.held_out]
    test = [s for s in slices if s.held_out]
    given = stage.folder / "pooled-inputs"
    given.mkdir()
    for name, part in (("train", train), ("test", test)):
        x, y = await asyncio.to_thread(source.arrays, part, package.manifest.images())
        weights.save({"x": x, "y": y}, given / name)
    initial = await initial_weights(package, stage.seed, given / "w0")
    async with worker(package, stage.folder / "pooled") as running_worker:
        await running_worker.call(
            "train",
            weights=running_worker.give(initial, "w0"),
            data=running_worker.give(given / "train", "train"),
            steps=ROUNDS * STEPS,
            batch_size=BATCH,
            learning_rate=float(RATE),
            seed=stage.seed,
            out=str(running_worker.folder / "w1"),
        )
        models = [str(running_worker.folder / "w1"), *await round_models(stage, running_worker, given)]
        counts = await running_worker.call("evaluate", data=running_worker.give(given / "test", "test"), models=models)
    stage.summary["round_acc"] = [metrics.balanced_accuracy(matrix) for matrix in counts["counts"][1:]]
    stage.summary["pooled_acc"] = metrics.balanced_accuracy(counts["counts"][0])
    stage.summary["pooled_interval"] = metrics.interval(counts["counts"][0])
    stage.happened("pooled reference trained")


async def round_models(stage: Stage, running_worker: Worker, given: Path) -> list[str]:
    """Each round's global model, as the researcher may fetch it."""
    assert stage.view is not None
    handed = []
    for done in stage.view.rounds:
        if done.kind == "train" and done.state == "committed" and done.model is not None:
            path = await download(stage.people["li"], done.model, given / f"round-{done.round}")
            handed.append(running_worker.give(path, f"round-{done.round}"))
    return handed
