"""The accountant against values of Google's dp-accounting 0.6.0 (the same orders) and closed forms; clipping and noise against numpy."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from medmesh.federated.privacy import accountant, clipping
from medmesh.learning import weights

ORACLE = [
    # rate, noise, steps, delta, epsilon of RdpAccountant(orders=ORDERS); all its orders give at most 3 % less
    (256 / 60000, 1.1, 14062, 1e-5, 2.5969811785948815),  # MNIST of the TensorFlow Privacy tutorial, 60 epochs
    (0.01, 4.0, 10000, 1e-5, 1.0354900660362436),  # Abadi et al. 2016: moments accountant gives 1.26
    (1.0, 10.0, 100, 1e-5, 4.752728336819822),
    (0.1, 1.0, 50, 1e-6, 6.789020341167042),
    (0.02, 0.7, 300, 1e-5, 6.519129252707637),
    (1.0, 1.0, 1, 1e-5, 4.752728336819822),
]


@pytest.mark.parametrize(("rate", "noise", "steps", "delta", "wanted"), ORACLE)
def test_epsilon_is_that_of_another_library(rate: float, noise: float, steps: int, delta: float, wanted: float) -> None:
    assert accountant.epsilon(rate, noise, steps, delta) == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize(("order", "wanted"), [(2, 2.8402138324228282e-05), (8, 0.00011575614792991869), (32, 0.0005028946468627525)])
def test_divergence_of_a_sampled_step(order: int, wanted: float) -> None:
    assert accountant.rdp(0.01, 2.0, order) == pytest.approx(wanted, rel=1e-9)
    # Order 2 has a closed form: ln(1 + q^2 (e^(1/s^2) - 1)).
    assert accountant.rdp(0.01, 2.0, 2) == pytest.approx(math.log1p(1e-4 * math.expm1(1 / 4)), rel=1e-9)


def test_no_noise_is_no_privacy_and_the_budget_is_never_exceeded() -> None:
    assert accountant.epsilon(0.5, 0.0, 1, 1e-5) == math.inf
    assert accountant.steps_within(1.0, 0.0, 100.0, 1e-5, 10) == 0
    fits = accountant.steps_within(1.0, 5.0, 3.0, 1e-5, 1000)
    assert accountant.epsilon(1.0, 5.0, fits, 1e-5) <= 3.0 < accountant.epsilon(1.0, 5.0, fits + 1, 1e-5)


def _pair(folder: Path, size: float, numbers: int = 20_000) -> tuple[Path, Path, np.ndarray]:
    difference = np.random.default_rng(1).normal(size=numbers)
    difference *= size / np.linalg.norm(difference)
    weights.save({"w": np.ones(numbers), "n": np.array([3])}, folder / "base")
    weights.save({"w": 1 + difference, "n": np.array([8])}, folder / "model")
    return folder / "base", folder / "model", difference


@pytest.mark.parametrize(("size", "scale"), [(0.5, 1.0), (4.0, 0.25)])
def test_the_difference_is_clipped_and_what_is_no_float_stays(private: Path, size: float, scale: float) -> None:
    base, model, difference = _pair(private, size)
    within = clipping.privatise(base, model, private / "out", clip=1.0, noise=0.0)
    made = weights.load(private / "out")
    np.testing.assert_allclose(made["w"] - 1, difference * scale, atol=1e-12)
    assert made["n"][0] == 3 and within == (scale == 1.0)


def test_noise_has_the_agreed_deviation_and_is_never_the_same(private: Path) -> None:
    base, model, difference = _pair(private, 4.0)
    drawn = []
    for _ in range(2):
        clipping.privatise(base, model, private / "out", clip=1.0, noise=clipping.shared(2.0, 4))
        drawn.append(weights.load(private / "out")["w"] - 1 - difference / 4)
    assert np.std(drawn[0]) == pytest.approx(1.0, rel=0.05)
    assert abs(np.corrcoef(drawn[0], drawn[1])[0, 1]) < 0.05


def test_the_norm_moves_to_the_quantile() -> None:
    norms = np.random.default_rng(2).lognormal(size=400)
    clip = 50.0
    for _ in range(200):
        clip = clipping.adapted(clip, float(np.mean(norms <= clip)))
    assert clip == pytest.approx(float(np.median(norms)), rel=0.05)


def test_a_patient_with_many_images_counts_once() -> None:
    gradients = np.ones((100, 4))
    patients = np.array([0] * 99 + [1])
    total = clipping.per_patient(gradients, patients, 1.0, 0.0, np.zeros)
    np.testing.assert_allclose(total, np.ones(4))  # two patients, each of norm 1: (0.5, 0.5, 0.5, 0.5) twice
