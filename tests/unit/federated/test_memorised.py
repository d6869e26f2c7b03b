"""What a model has memorised, against scipy's statistic, against draws by chance, and on a model that did memorise."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from medmesh.federated.memorised import FALSE_ALARMS, advantage, losses, measure


@pytest.mark.parametrize("ties", [False, True])
def test_the_advantage_is_the_one_sided_statistic_of_kolmogorov_and_smirnov(ties: bool) -> None:
    generator = np.random.default_rng(1)
    for n, m in ((1, 1), (5, 3), (40, 200), (333, 20)):
        mine, others = generator.exponential(0.5, n), generator.exponential(1.0, m)
        if ties:
            mine, others = np.round(mine, 1), np.round(others, 1)
        assert advantage(mine, others) == pytest.approx(stats.ks_2samp(mine, others, alternative="greater").statistic)
    assert advantage(np.zeros(4), np.ones(9)) == 1.0
    assert advantage(np.ones(4), np.zeros(9)) == 0.0, "worse on its own patients than on others gives nobody away"


def test_a_patients_loss_is_the_mean_of_the_samples_cross_entropy() -> None:
    logits = np.array([[0.0, 0.0], [100.0, 0.0], [np.log(3), 0.0]], dtype=np.float32)
    found = losses(logits, np.array([0, 1, 0]), np.array([7, 7, 2]))
    assert found == pytest.approx([-np.log(0.75), (np.log(2) + 100) / 2])


@pytest.mark.parametrize(("n", "m"), [(20, 5), (60, 15), (200, 50), (1000, 250)])
@pytest.mark.parametrize("rounds", [1, 20])
def test_by_chance_something_is_found_no_more_often_than_is_said(n: int, m: int, rounds: int) -> None:
    """4,000 federations' worth of draws where patients of both kinds have the same losses."""
    generator, draws = np.random.default_rng(n + rounds), 4000
    found = [measure(generator.standard_normal(n), generator.standard_normal(m), rounds) for _ in range(draws)]
    alarms = sum(one.surely > 0 for one in found)
    # Three standard deviations above what may be expected of so many.
    expected = draws * FALSE_ALARMS / rounds
    assert alarms <= expected + 3 * expected**0.5, alarms / draws


def test_a_model_that_learnt_its_patients_by_heart_is_found_and_one_that_learnt_the_rule_is_not() -> None:
    """Logistic regression by hand: 150 patients in 400 dimensions are separable whatever their labels, in 2 they are not."""

    def trained(dimensions: int) -> float:
        generator = np.random.default_rng(7)
        x = generator.standard_normal((450, dimensions))
        y = (x[:, 0] + 0.5 * generator.standard_normal(450) > 0).astype(np.int64)
        w = np.zeros(dimensions)
        for _ in range(400):
            p = 1 / (1 + np.exp(-x[:150] @ w))
            w -= 0.5 * x[:150].T @ (p - y[:150]) / 150
        logits = np.stack([np.zeros(450), x @ w], axis=1).astype(np.float32)
        each = losses(logits, y, np.arange(450))
        return measure(each[:150], each[150:], 10).surely

    assert trained(2) == 0.0
    assert trained(400) > 0.2
