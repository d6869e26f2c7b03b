"""A hospital's training in its worker, by the plan and its algorithm: the same code at a node and in a rehearsal."""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medmesh.contracts.plan import Plan
from medmesh.errors import Problem
from medmesh.federated.aggregation import Left, Local, Run, algorithm_of, upload_signature
from medmesh.federated.privacy.clipping import WITHIN
from medmesh.learning import weights
from medmesh.learning.host import Progress, Worker
from medmesh.tasks import aside

TELL_SECONDS = 0.1
"""How often a worker says how far it is: each time wakes the host, and people are told less often."""


def protected(plan: Plan) -> dict[str, Any]:
    """What a training adds for its patients: the worker clips and noises each step."""
    if plan.privacy is None or plan.privacy.unit != "patient":
        return {}
    return {"private": {name: float(getattr(plan.privacy, name)) for name in ("rate", "clip", "noise")}}


def _silent(step: int, steps: int, loss: float) -> None:
    return None


@dataclass
class Trainer:
    """Trainings of one round in a worker, on `data` (a path that the worker sees)."""

    worker: Worker
    plan: Plan
    data: str
    seed: int
    progress: Progress = _silent
    step_seconds: float = field(default=0.0, init=False)
    """How long a step of the last training took, everything it needs counted in."""

    async def run(self, run: Run, target: Path) -> tuple[Path, float]:
        """One training: its weights, checked against the plan's signature, and its loss. Raises `Problem`."""
        out = self.worker.folder / target.name
        extra: dict[str, Any] = {"pull": run.pull, "plain": run.plain, **protected(self.plan)}
        extra |= {name: self.worker.give(path, name, over=True) for name, path in (("anchor", run.anchor), ("shift", run.shift)) if path}
        began = time.monotonic()
        result = await self.worker.call(
            "train",
            progress=self.progress,
            weights=self.worker.give(run.start, "base", over=True),  # of which it has read every number
            data=self.data,
            steps=run.steps,
            batch_size=self.plan.batch_size,
            learning_rate=float(self.plan.learning_rate),
            seed=self.seed,
            every=TELL_SECONDS,
            out=str(out),
            **extra,
        )
        self.step_seconds = (time.monotonic() - began) / run.steps
        # Out of the worker's reach first; a link in its place is refused by the check.
        os.rename(out, target)
        weights.check(target, self.plan.signature)
        loss = result.get("loss")
        if not isinstance(loss, int | float) or not math.isfinite(loss):  # null: not a number
            raise Problem("training.answer", operation="train")
        return target, float(loss)

    async def alone(self, local: Local, steps: int) -> tuple[Left, float]:
        """So many steps without the others: the whole model travels. Raises `Problem`."""
        trained, loss = await self.run(Run(local.base, steps), local.folder / "trained")
        return Left(trained), loss

    async def update(self, local: Local) -> tuple[Left, float]:
        """A round's training, by its algorithm: what travels, what is kept, and the loss. Raises `Problem`."""
        plan, folder, algorithm, second = self.plan, local.folder, algorithm_of(self.plan), None
        if (own := algorithm.train_own(local)) is not None:
            second, _ = await self.run(own, folder / "second")
        run = algorithm.train(local)
        if plan.privacy is not None and run.steps > plan.local_steps:
            raise Problem("privacy.algorithm_steps", algorithm=plan.algorithm, steps=run.steps, planned=plan.local_steps)
        trained, loss = await self.run(run, folder / "trained")
        left = await aside(trained.stat().st_size, lambda: algorithm.leave(local, trained, second))
        # Nothing leaves but the tensors that were agreed upon; what privacy adds comes later, and is the node's.
        agreed = tuple(tensor for tensor in upload_signature(plan) if tensor.name != WITHIN.name)
        if left.upload != trained or agreed != plan.signature:  # else that was looked at a moment ago
            weights.check(left.upload, agreed)
        return left, loss

    async def personal(self, local: Local) -> Path | None:
        """This hospital's own model, where its algorithm makes one. Raises `Problem`."""
        made = algorithm_of(self.plan).personal(local)
        return (await self.run(made, local.folder / "personal"))[0] if isinstance(made, Run) else made
