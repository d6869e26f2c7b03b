"""What federated algorithms add to each step: every adapter of ours does the same, and who does not say that it does is refused."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from medmesh.errors import Problem
from medmesh.learning import weights, worker
from medmesh.learning.adapter import Correction, Samples, Schedule, adapter, batches, float_input
from medmesh.learning.package import pack

DICE = np.random.default_rng(5)
SAMPLES = Samples(DICE.integers(0, 256, (40, 1, 8, 8), dtype=np.uint8), DICE.integers(0, 2, 40))
START = {"weight": DICE.normal(size=(64, 2)).astype(np.float32) / 10, "bias": np.zeros(2, np.float32)}
ANCHOR = {name: array + np.float32(0.3) for name, array in START.items()}
SHIFT = {name: np.full_like(array, 0.05) for name, array in START.items()}


def by_hand(schedule: Schedule) -> dict[str, np.ndarray]:
    """float64: w -= rate (gradient of the mean cross-entropy + pull (w - anchor) + shift)."""
    w = {name: array.astype(np.float64) for name, array in START.items()}
    for chosen in batches(len(SAMPLES.y), schedule):
        x, y = float_input(SAMPLES.x[chosen]).reshape(len(chosen), -1).astype(np.float64), SAMPLES.y[chosen]
        z = x @ w["weight"] + w["bias"]
        p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
        p[np.arange(len(y)), y] -= 1
        gradient = {"weight": x.T @ p / len(y), "bias": p.mean(axis=0)}
        for name in w:
            added = 0.7 * (w[name] - ANCHOR[name]) + SHIFT[name] if schedule.correction else 0
            w[name] = w[name] - schedule.learning_rate * (gradient[name] + added)
    return w


def with_numpy(schedule: Schedule) -> dict[str, np.ndarray]:
    model = {name: array.copy() for name, array in START.items()}
    adapter("numpy").train(ModuleType("model"), model, SAMPLES, schedule, lambda step, loss: None)
    return model


def with_torch(schedule: Schedule) -> dict[str, np.ndarray]:
    torch = pytest.importorskip("torch")
    module: Any = ModuleType("model")
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2))
    module.optimizer = lambda parameters, rate: torch.optim.Adam(parameters, lr=rate)
    made = adapter("torch")
    made.assign(model, turned(START))
    if schedule.correction:
        correction = Correction(schedule.correction.pull, turned(ANCHOR), turned(SHIFT))
        schedule = Schedule(schedule.steps, schedule.batch_size, schedule.learning_rate, schedule.seed, correction, schedule.plain)
    made.train(module, model, SAMPLES, schedule, lambda step, loss: None)
    found = made.tensors(model)
    return {"weight": found["1.weight"].T, "bias": found["1.bias"]}


def turned(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"1.weight": np.ascontiguousarray(arrays["weight"].T), "1.bias": arrays["bias"]}


@pytest.mark.parametrize("train", [with_numpy, with_torch])
@pytest.mark.parametrize("corrected", [True, False])
def test_plain_descent_with_a_correction_is_as_by_hand(train: Any, corrected: bool) -> None:
    schedule = Schedule(12, 8, 0.2, 3, Correction(0.7, ANCHOR, SHIFT) if corrected else None, plain=True)
    found, expected = train(schedule), by_hand(schedule)
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], atol=2e-5)


def test_a_training_that_does_not_correct_is_refused(private: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.packages import TINY

    session = worker.Session(TINY, "numpy", pack(TINY).manifest.told("numpy"))
    weights.save(START, private / "w")
    weights.save({"x": SAMPLES.x, "y": SAMPLES.y}, private / "data")
    call = {
        "data": str(private / "data"),
        "weights": str(private / "w"),
        "out": str(private / "out"),
        "steps": 2,
        "batch_size": 4,
        "learning_rate": 0.1,
        "seed": 1,
        "pull": 0.5,
        "anchor": str(private / "w"),
    }
    worker.train(session, call, lambda document: None)
    monkeypatch.setattr(type(session.adapter), "corrects", False)
    with pytest.raises(Problem) as caught:
        worker.train(session, call, lambda document: None)
    assert caught.value.code == "package.uncorrected"
    worker.train(session, {**call, "anchor": None}, lambda document: None)
