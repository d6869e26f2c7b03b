"""Intervals from counts: held against their definition, by simulation."""

from __future__ import annotations

import numpy as np
import pytest

from medmesh.federated.cells import told
from medmesh.learning.metrics import balanced_accuracy, difference, interval, missing


def test_the_interval_of_one_class_is_jeffreys() -> None:
    # Brown, Cai, DasGupta 2001: 2.5 % and 97.5 % of Beta(x + 1/2, n - x + 1/2); for 8 of 10, scipy.stats.beta.ppf gives these.
    low, high = interval([[8, 2], [0, 0]], draws=400_000)
    assert (low, high) == (pytest.approx(0.4972, abs=2e-3), pytest.approx(0.9557, abs=2e-3))


def test_what_was_rounded_has_a_wider_interval_which_still_holds_the_truth() -> None:
    dice, held, width = np.random.default_rng(3), 0, []
    truth = np.repeat([0, 1], [60, 45])
    for trial in range(200):
        predicted = np.where(dice.random(105) < 0.8, truth, 1 - truth)
        names = [f"{trial}-{n}" for n in range(105)]
        counts = told(truth, predicted, names, names, classes=2, smallest=5, key=b"k")
        exact = told(truth, predicted, names, names, classes=2)
        low, high = interval(counts, steps=[[5]], draws=1000)
        width.append((high - low) - (interval(exact, draws=1000)[1] - interval(exact, draws=1000)[0]))
        held += low <= 0.8 <= high
    assert held >= 180, "95 % of 200, less what chance may take"
    assert np.mean(width) > 0


def test_several_tables_count_together() -> None:
    one, other = [[30, 10], [5, 35]], [[20, 0], [0, 20]]
    assert interval([one, other]) == interval(np.add(one, other))
    assert interval([[0, 0], [0, 0]]) == (0.0, 1.0)


def test_of_a_sum_each_part_was_rounded_for_itself() -> None:
    """As wide as of the tables themselves; as if the sum had been rounded once it would be too narrow."""
    parts = [[[20, 5], [10, 25]]] * 6
    total = np.add.reduce(parts)
    apart, together, once = (
        high - low for low, high in (interval(parts, steps=[[5]] * 6), interval(total, steps=[[5] * 6]), interval(total, steps=[[5]]))
    )
    assert abs(together - apart) < 0.01 * apart
    assert once < 0.98 * apart


def test_each_hospitals_own_rule_is_in_the_interval() -> None:
    """Coarser counts of one hospital widen what is said of it, and of all together by no more than that."""
    table = [[20, 5], [10, 25]]
    fine, coarse = interval(table, steps=[[5]]), interval(table, steps=[[20]])
    assert coarse[0] < fine[0] and fine[1] < coarse[1]
    wide = [high - low for low, high in (interval([table] * 2, steps=steps) for steps in ([[5]] * 2, [[5], [20]], [[20]] * 2))]
    assert wide == sorted(wide) and wide[0] < 0.95 * wide[2]
    assert interval([table, table], steps=[[0], [1]]) == interval([table, table]), "what was not rounded is exact"


def test_a_difference_is_no_more_certain_than_its_parts() -> None:
    good, bad = [[90, 10], [10, 90]], [[60, 40], [40, 60]]
    low, high = difference(good, bad)
    assert low < balanced_accuracy(good) - balanced_accuracy(bad) < high
    assert difference(good, good)[0] < 0 < difference(good, good)[1]
    assert difference(good, bad, steps=[[5]])[0] < low
    assert difference([[0, 0], [0, 0]], bad) == (-1.0, 1.0)


def test_a_class_is_missing_where_nothing_is_of_it_whatever_was_predicted() -> None:
    assert [missing(table) for table in ([[0, 0], [3, 4]], [[3, 0], [4, 0]], [[0, 0], [0, 0]])] == [1, 0, 2]
    assert balanced_accuracy([[0, 0], [0, 4]]) == 1.0
