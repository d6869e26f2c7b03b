"""Rounds of a federation in one process with the real algorithms, and hospitals that train by plain numpy: for oracles and for tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from medmesh.contracts.plan import Plan
from medmesh.federated.aggregation import Local, Outcome, Run, Start, aggregate, algorithm_of
from medmesh.learning import weights
from medmesh.learning.adapter import Schedule, batches

Model = Mapping[str, np.ndarray]
Gradient = Callable[[Model, np.ndarray, np.ndarray], Model]


@dataclass
class Hospital:
    """Its samples, and what it kept."""

    x: np.ndarray
    y: np.ndarray
    seed: int = 0
    kept: Path | None = None
    trained: Path | None = None


@dataclass
class Federation:
    """`round` after `round`; every file that a real federation would send or keep lies in a folder of its own."""

    plan: Plan
    gradient: Gradient
    hospitals: dict[str, Hospital]
    model: Path
    folder: Path
    number: int = 0
    outcome: Outcome | None = None
    updates: dict[str, Path] = field(default_factory=dict)

    def local(self, name: str, folder: Path) -> Local:
        """What a hospital has in hand."""
        last, algorithm = self.outcome, algorithm_of(self.plan)
        return Local(
            self.plan,
            self.model,
            folder,
            len(self.hospitals[name].y),
            last.state if last and algorithm.SHOWN else None,
            last.personal.get(name) if last else None,
            self.hospitals[name].kept,
        )

    def round(self, absent: tuple[str, ...] = ()) -> Outcome:
        """One round."""
        self.number += 1
        place = self.folder / str(self.number)
        sent = []
        for name, hospital in self.hospitals.items():
            if name in absent:
                continue
            folder = place / name
            folder.mkdir(parents=True)
            algorithm, local = algorithm_of(self.plan), self.local(name, folder)
            second = algorithm.train_own(local)
            trained = self.execute(name, algorithm.train(local), folder / "trained")
            left = algorithm.leave(local, trained, self.execute(name, second, folder / "second") if second else None)
            hospital.kept, hospital.trained = left.keep, trained
            sent.append((name, left.upload, len(hospital.y)))
        self.updates = {name: path for name, path, _ in sent}
        before = self.outcome
        start = Start(self.model, state=before.state if before else None, members=len(self.hospitals), local=frozenset(self.plan.local))
        self.outcome = aggregate(algorithm_of(self.plan), start, sent, place)
        self.model = self.outcome.model
        return self.outcome

    def execute(self, name: str, run: Run, target: Path) -> Path:
        """A training: gradient descent."""
        hospital = self.hospitals[name]
        model = {n: a.astype(np.float64) for n, a in weights.load(run.start).items()}
        anchor = weights.load(run.anchor) if run.anchor else {}
        shift = weights.load(run.shift) if run.shift else {}
        schedule = Schedule(run.steps, self.plan.batch_size, float(self.plan.learning_rate), hospital.seed + 1000 * self.number)
        for chosen in batches(len(hospital.y), schedule):
            for n, gradient in self.gradient(model, hospital.x[chosen], hospital.y[chosen]).items():
                corrected = gradient + (run.pull * (model[n] - anchor[n]) if anchor else 0) + shift.get(n, 0)
                model[n] = model[n] - schedule.learning_rate * corrected
        weights.save({n: a.astype(np.float32) for n, a in model.items()}, target)
        return target

    def personal(self, name: str) -> Path:
        """A hospital's own model; the global one where the algorithm makes none."""
        folder = self.folder / f"personal-{self.number}" / name
        folder.mkdir(parents=True, exist_ok=True)
        own: Any = algorithm_of(self.plan).personal(self.local(name, folder))
        return self.execute(name, own, folder / "tuned") if isinstance(own, Run) else own or self.model
