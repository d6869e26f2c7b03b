"""DP-SGD with a patient as the unit: every adapter that says it does it does the same as plain numpy, and nothing else is believed."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from tests.packages import TINY
from tests.unit.learning.test_corrections import START, turned

from medmesh.errors import Problem
from medmesh.federated.privacy.clipping import per_patient
from medmesh.learning import weights, worker
from medmesh.learning.adapter import Private, Samples, Schedule, adapter, draws, float_input
from medmesh.learning.package import pack

DICE = np.random.default_rng(5)
PATIENTS = np.repeat(np.arange(20), 2)
PATIENTS[:19] = 0  # one with many images
SAMPLES = Samples(DICE.integers(0, 256, (40, 1, 8, 8), dtype=np.uint8), DICE.integers(0, 2, 40), PATIENTS)


def schedule(steps: int = 6, *, rate: float = 1.0, noise: float = 1e-9, clip: float = 0.05) -> Schedule:
    return Schedule(steps, 8, 0.2, 3, plain=True, private=Private(rate, clip, noise))


def by_hand(wanted: Schedule) -> dict[str, np.ndarray]:
    """float64, everybody in every step, no noise to speak of."""
    w = np.concatenate([START["weight"].ravel(), START["bias"]]).astype(np.float64)
    assert wanted.private is not None
    for _ in range(wanted.steps):
        rows = []
        for patient in np.unique(PATIENTS):
            own = patient == PATIENTS
            x, y = float_input(SAMPLES.x[own]).reshape(own.sum(), -1).astype(np.float64), SAMPLES.y[own]
            z = x @ w[:128].reshape(64, 2) + w[128:]
            p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
            p[np.arange(len(y)), y] -= 1
            rows.append(np.concatenate([(x.T @ p / len(y)).ravel(), p.mean(axis=0)]))
        w -= wanted.learning_rate * per_patient(np.array(rows), wanted.private.clip, 0.0, np.zeros) / wanted.batch_size
    return {"weight": w[:128].reshape(64, 2), "bias": w[128:]}


def with_numpy(wanted: Schedule, samples: Samples = SAMPLES) -> dict[str, np.ndarray]:
    model = {name: array.copy() for name, array in START.items()}
    adapter("numpy").train(ModuleType("model"), model, samples, wanted, lambda step, loss: None)
    return model


def with_torch(wanted: Schedule, samples: Samples = SAMPLES, **module: Any) -> dict[str, np.ndarray]:
    torch = pytest.importorskip("torch")
    package: Any = ModuleType("model")
    vars(package).update(module)
    model, made = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2)), adapter("torch")
    made.assign(model, turned(START))
    made.train(package, model, samples, wanted, lambda step, loss: None)
    found = made.tensors(model)
    return {"weight": found["1.weight"].T, "bias": found["1.bias"]}


@pytest.mark.parametrize("train", [with_numpy, with_torch])
def test_each_patient_counts_once_and_is_clipped(train: Any) -> None:
    found, expected = train(schedule()), by_hand(schedule())
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], atol=2e-6)


@pytest.mark.parametrize("train", [with_numpy, with_torch])
def test_one_patient_moves_a_step_by_no_more_than_the_norm(train: Any) -> None:
    without = Samples(SAMPLES.x[19:], SAMPLES.y[19:], PATIENTS[19:])
    one, other = train(schedule(1)), train(schedule(1), without)
    moved = np.sqrt(sum(float(np.sum((one[name] - other[name]) ** 2)) for name in one))
    assert 0 < moved <= 0.2 * 0.05 / 8 * 1.01


@pytest.mark.parametrize("train", [with_numpy, with_torch])
def test_noise_is_there_also_when_nobody_is_drawn_and_never_the_same(train: Any) -> None:
    found = [train(schedule(1, rate=1e-12, noise=2.0, clip=3.0)) for _ in range(2)]
    drawn = [np.concatenate([(one[name] - START[name]).ravel() for name in one]) / 0.2 * 8 for one in found]
    assert np.std(drawn[0]) == pytest.approx(6.0, rel=0.25)
    assert abs(np.corrcoef(*drawn)[0, 1]) < 0.4


def test_patients_are_drawn_by_chance_and_with_all_that_is_theirs() -> None:
    taken = list(draws(SAMPLES, schedule(4000, rate=0.3)))
    patients = len(np.unique(PATIENTS))
    assert np.mean([len(step) for step in taken]) == pytest.approx(0.3 * patients, rel=0.05)
    assert len({len(step) for step in taken}) > 4, "how many are drawn is chance, too"
    assert all(len(one) == np.sum(PATIENTS[one[0]] == PATIENTS) for step in taken[:50] for one in step)


def test_a_loss_that_no_vectorisation_knows_and_an_augmentation_see_one_patient_at_a_time() -> None:
    torch = pytest.importorskip("torch")
    seen: list[int] = []

    def augment(x: Any, generator: Any) -> Any:
        seen.append(len(x))
        return x

    def loss(logits: Any, y: Any) -> Any:
        assert torch.bincount(y).sum() == len(y)
        return torch.nn.functional.cross_entropy(logits, y)

    found = with_torch(schedule(1), augment=augment, loss=loss)
    np.testing.assert_allclose(found["bias"], by_hand(schedule(1))["bias"], atol=2e-6)
    assert sorted(seen) == sorted(np.unique(PATIENTS, return_counts=True)[1])


@pytest.mark.parametrize("layer", ["BatchNorm1d", "SyncBatchNorm", "InstanceNorm1d"])
def test_layers_that_remember_patients_beside_the_weights_are_refused(layer: str) -> None:
    torch = pytest.importorskip("torch")
    norm = torch.nn.InstanceNorm1d(64, track_running_stats=True) if layer == "InstanceNorm1d" else getattr(torch.nn, layer)(64)
    model = torch.nn.Sequential(torch.nn.Flatten(), norm, torch.nn.Linear(64, 2))
    with pytest.raises(Problem) as caught:
        adapter("torch").train(ModuleType("model"), model, SAMPLES, schedule(), lambda step, loss: None)
    assert caught.value.code == "privacy.package"
    assert layer in caught.value.document()["title"]


@pytest.mark.parametrize("how", ["framework", "package"])
def test_a_training_that_does_not_clip_by_patient_is_refused(private: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    session = worker.Session(TINY, "numpy", pack(TINY).manifest.told("numpy"))
    weights.save(START, private / "w")
    weights.save({"x": SAMPLES.x, "y": SAMPLES.y, "patients": PATIENTS}, private / "data")
    files = {"data": str(private / "data"), "weights": str(private / "w"), "out": str(private / "out")}
    call = {**files, "steps": 2, "batch_size": 4, "learning_rate": 0.1, "seed": 1, "private": {"rate": 0.5, "clip": 1.0, "noise": 1.0}}
    worker.train(session, call, lambda document: None)
    first = weights.load(private / "out")["weight"]
    worker.train(session, call, lambda document: None)
    assert not np.array_equal(first, weights.load(private / "out")["weight"]), "no seed of the platform's makes the noise"
    if how == "framework":
        monkeypatch.setattr(type(session.adapter), "private", False)
    else:
        monkeypatch.setattr(session.module, "train", lambda *a: 0.0, raising=False)
    with pytest.raises(Problem) as caught:
        worker.train(session, call, lambda document: None)
    assert caught.value.code == "privacy.package"
