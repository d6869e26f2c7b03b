"""The accountant against values of Google's dp-accounting 0.6.0 (the same orders) and closed forms; clipping and noise against numpy."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from pydantic import ValidationError
from tests.unit.federated.test_plan import plan

from medmesh.contracts.plan import Plan
from medmesh.contracts.privacy import Privacy
from medmesh.errors import Problem
from medmesh.federated.aggregation import ALGORITHMS, Algorithm, Local, compatible
from medmesh.federated.plan import explain
from medmesh.federated.privacy import accountant, budget, clipping, noise
from medmesh.federated.trainer import Trainer
from medmesh.learning import weights
from medmesh.learning.host import Worker

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
    clipping.privatise(base, model, private / "out", clip=1.0, count=0.0)
    made = weights.load(private / "out")
    np.testing.assert_allclose(made["w"] - 1, difference * scale, atol=1e-12)
    assert made["n"][0] == 3
    assert made[clipping.WITHIN.name][0] == (0.5 if scale == 1.0 else -0.5)


def test_noise_has_the_agreed_deviation_and_is_never_the_same(private: Path) -> None:
    base, model, difference = _pair(private, 4.0)
    drawn = []
    for _ in range(2):
        clipping.privatise(base, model, private / "out", clip=1.0, noise=clipping.shared(2.0, 4))
        drawn.append(weights.load(private / "out")["w"] - 1 - difference / 4)
    assert np.std(drawn[0]) == pytest.approx(1.0, rel=0.05)
    assert abs(np.corrcoef(drawn[0], drawn[1])[0, 1]) < 0.05


def test_noise_is_normal_as_another_library_says() -> None:
    stats = pytest.importorskip("scipy.stats")
    drawn = noise.normal(100_001, np.random.default_rng(5).bytes)
    assert len(drawn) == 100_001 and np.isfinite(drawn).all()
    assert stats.kstest(drawn, "norm").pvalue > 0.01
    np.testing.assert_array_equal(drawn, noise.normal(100_001, np.random.default_rng(5).bytes))
    assert not np.array_equal(noise.normal(8), noise.normal(8))


def test_noise_on_a_model_leaves_what_is_no_float_and_what_stays(private: Path) -> None:
    base, _, _ = _pair(private, 1.0)
    noise.add(base, private / "kept", 3.0, without=frozenset({"w"}))
    assert (private / "kept").read_bytes() == base.read_bytes()
    noise.add(base, private / "out", 3.0)
    made = weights.load(private / "out")
    assert np.std(made["w"] - 1) == pytest.approx(3.0, rel=0.05) and made["n"][0] == 3


def test_the_norm_moves_to_the_quantile() -> None:
    norms = np.random.default_rng(2).lognormal(size=400)
    clip = 50.0
    for _ in range(200):
        clip = clipping.adapted(clip, float(np.mean(norms <= clip)))
    assert clip == pytest.approx(float(np.median(norms)), rel=0.05)


def test_what_patients_give_is_clipped_to_a_norm_and_added() -> None:
    gradients = np.array([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])
    np.testing.assert_allclose(clipping.per_patient(gradients, 1.0, 0.0, np.zeros), [0.9, 1.2])


def test_what_several_mechanisms_spend_is_what_their_divergences_add_up_to() -> None:
    """Gaussians without sampling have a closed form (1 / noise^2 add up); sampled ones, and an order of no meaning."""
    parts = [accountant.Part(1.0, 2.0, 3), accountant.Part(1.0, 5.0, 10), accountant.Part(1.0, 2.0, 1)]
    assert accountant.composed(parts, 1e-5) == pytest.approx(accountant.epsilon(1.0, (4 / 4 + 10 / 25) ** -0.5, 1, 1e-5), rel=1e-12)
    sampled = [accountant.Part(0.1, 1.0, 30), accountant.Part(0.1, 1.0, 20)]
    assert accountant.composed(sampled, 1e-6) == pytest.approx(6.789020341167042, rel=1e-9), "of another library, as below"
    mixed = [*parts, *sampled]
    assert accountant.composed(mixed, 1e-6) == accountant.composed(mixed[::-1], 1e-6)
    apart = accountant.composed(parts, 1e-6) + accountant.composed(sampled, 1e-6)
    assert max(accountant.composed(parts, 1e-6), accountant.composed(sampled, 1e-6)) < accountant.composed(mixed, 1e-6) < apart
    assert accountant.composed([], 1e-6) == 0.0 == accountant.composed([accountant.Part(1.0, 2.0, 0)], 1e-6)


def test_a_ledger_of_a_plan_is_the_accountants_and_both_releases_of_an_adaptive_round_are_counted() -> None:
    hospital = plan(privacy=Privacy(unit="hospital", epsilon="100", delta="1e-5", clip="1", noise="1"))
    assert budget.spent(hospital, 1) == pytest.approx(4.752728336819822, rel=1e-9)  # of another library, as above
    patient = plan(local_steps=5, privacy=Privacy(unit="patient", epsilon="7", delta="1e-6", clip="1", noise="1", rate="0.1"))
    assert budget.spent(patient, 10) == pytest.approx(6.789020341167042, rel=1e-9)
    assert budget.affordable(patient, 10) and not budget.affordable(patient, 11)
    adaptive = Privacy(unit="hospital", epsilon="100", delta="1e-5", clip="1", noise="1", quantile="0.5")
    # Renyi divergences of Gaussians add as 1/noise^2; the count's sensitivity is 1/2.
    together = 1 / budget.multiplier(adaptive) ** 2 + (0.5 / (budget.COUNT_NOISE * 1.0)) ** 2
    assert together == pytest.approx(1.0, rel=1e-12)


def test_a_plan_says_how_many_rounds_its_budget_allows_and_one_that_allows_none_is_refused() -> None:
    values = {"unit": "hospital", "delta": "1e-5", "clip": "1", "noise": "4"}
    two = plan(rounds=9, privacy=Privacy(**values, epsilon="1.7"))
    fits = budget.rounds_within(two)
    assert 1 <= fits < 9
    assert budget.spent(two, fits) <= 1.7 < budget.spent(two, fits + 1)
    assert f"at most {fits} of 9 rounds" in "\n".join(explain(two))
    with pytest.raises(Problem) as caught:
        compatible(plan(privacy=Privacy(**values, epsilon="0.1")))
    assert caught.value.code == "plan.budget"
    assert "A single round spends" in caught.value.document()["title"]


async def test_more_steps_than_the_ledger_counts_are_not_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Longer(Algorithm):
        NAME = "longer"

        def steps(self, plan: Plan, samples: int) -> int:
            return plan.local_steps + 1

    monkeypatch.setitem(ALGORITHMS, "longer", Longer)
    private = plan(algorithm="longer", privacy=PATIENT)
    with pytest.raises(Problem) as caught:  # it has no worker that could train
        await Trainer(cast(Worker, None), private, "", 1).update(Local(private, tmp_path / "base", tmp_path, 9))
    assert (caught.value.code, caught.value.params["steps"], caught.value.params["planned"]) == ("privacy.algorithm_steps", 6, 5)


HOSPITAL = {"unit": "hospital", "epsilon": "50", "delta": "1e-5", "clip": "1", "noise": "2"}
PATIENT = {**HOSPITAL, "unit": "patient", "rate": "0.1"}


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"privacy": {**HOSPITAL, "noise": "0"}}, "0 < privacy.noise <= 1000"),
        ({"privacy": {**HOSPITAL, "delta": "0.5"}}, "0 < privacy.delta <= 0.1"),
        ({"privacy": {**HOSPITAL, "epsilon": "NaN"}}, "privacy.epsilon is NaN"),
        ({"privacy": {**HOSPITAL, "clip": "much"}}, "privacy.clip is much"),
        ({"privacy": {**HOSPITAL, "rate": "0.5"}}, "plan.privacy_rate"),
        ({"privacy": {**PATIENT, "quantile": "0.5"}}, "plan.privacy_quantile"),
        ({"privacy": HOSPITAL, "baseline": True}, "plan.privacy_baseline"),
        ({"privacy": PATIENT, "baseline": True}, "plan.privacy_baseline"),
        ({"privacy": PATIENT, "evaluate_every": 1}, "plan.privacy_evaluated"),
        ({"privacy": HOSPITAL, "codec": "int8"}, "plan.privacy_codec"),
    ],
)
def test_a_plan_that_contradicts_its_privacy_is_refused_with_the_reason(changed: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        plan(**changed)


@pytest.mark.parametrize(
    ("algorithm", "privacy", "refused"),
    [
        *((name, HOSPITAL, False) for name in ("fedavg", "fedprox", "fedavgm", "fedadam", "ditto")),
        *((name, HOSPITAL, True) for name in ("scaffold", "fednova", "fedamp", "median", "trimmed-mean", "krum", "norm-clipping")),
        *((name, PATIENT, False) for name in ("fedavg", "scaffold", "median", "fedamp")),
        ("fednova", PATIENT, True),
    ],
)
def test_algorithms_that_need_more_than_the_noised_mean_are_refused(algorithm: str, privacy: dict[str, str], refused: bool) -> None:
    parties = tuple("abcdefg")
    wanted = plan(algorithm=algorithm, privacy=privacy, participants=parties, min_participants=7)
    if not refused:
        compatible(wanted)
        return
    with pytest.raises(Problem) as caught:
        compatible(wanted)
    assert caught.value.code.startswith("privacy.algorithm")


@pytest.mark.parametrize(
    ("changed", "english", "chinese"),
    [
        ({"privacy": HOSPITAL}, "added by the platform: it protects against everybody who gets the model, not against", "噪声由平台加入"),
        (
            {"privacy": HOSPITAL, "secure": {"threshold": 3}, "min_participants": 3},
            "its share of the noise before masking",
            "各自份额的噪声",
        ),
        ({"privacy": PATIENT}, "for a single patient: epsilon at most 50 at delta 1e-5", "单个患者"),
    ],
)
def test_a_hospital_reads_what_is_hidden_from_whom_and_what_is_not(changed: dict[str, Any], english: str, chinese: str) -> None:
    words, other = "\n".join(explain(plan(**changed))), "\n".join(explain(plan(**changed), "zh"))
    assert english in words and chinese in other
    assert "It hides" in words and "所隐藏的是" in other
    assert "the loss" not in words and "损失" not in other, "neither samples nor a loss leave"
    assert "neither differential privacy" not in words and "不含差分隐私" not in other
