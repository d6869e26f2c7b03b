"""The small-cell rule: what it tells is right on average, says nothing of few, and tells nothing new to whoever subtracts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medmesh.federated.cells import cohort, told

NAMES = [f"s{n:04d}" for n in range(400)]


def table(truth: list[int], predicted: list[int], *, key: bytes = b"k", smallest: int = 5) -> np.ndarray:
    given = told(np.array(truth), np.array(predicted), NAMES[: len(truth)], classes=2, smallest=smallest, key=key)
    return np.array(given)


def test_without_a_rule_the_counts_are_exact() -> None:
    truth, predicted = [0, 0, 0, 1, 1], [0, 1, 0, 1, 0]
    for smallest in (0, 1):
        assert table(truth, predicted, smallest=smallest).tolist() == [[2, 1], [1, 1]]


def test_counts_are_multiples_right_on_average_and_the_same_when_asked_again() -> None:
    truth, predicted = [0] * 13 + [1] * 22, [0] * 11 + [1] * 2 + [0] * 3 + [1] * 19
    found = [table(truth, predicted, key=b"%d" % n) for n in range(3000)]
    assert all((one % 5 == 0).all() for one in found)
    np.testing.assert_allclose(np.mean(found, axis=0), [[11, 2], [3, 19]], atol=0.2)
    assert {one[0, 1] for one in found} == {0, 5}
    assert (table(truth, predicted) == table(truth, predicted)).all()


def test_nothing_in_a_cell_is_told_as_nothing() -> None:
    assert all(table([0] * 9, [0] * 9, key=b"%d" % n)[1].tolist() == [0, 0] for n in range(50))


def test_two_evaluations_that_differ_by_one_sample_are_rounded_independently() -> None:
    truth = [0] * 43
    one, other = [0] * 42 + [1], [0] * 43
    steps = [table(truth, other, key=b"%d" % n)[0, 0] - table(truth, one, key=b"%d" % n)[0, 0] for n in range(2000)]
    # Rounded by one draw alike, 43 and 42 would differ by 0 or 5 only: never downwards. Who subtracts sees noise of both signs.
    assert min(steps) < 0 < max(steps)
    np.testing.assert_allclose(np.mean(steps), 1, atol=0.25)


items = st.frozensets(st.sampled_from(NAMES[:30]))


@given(items, items, st.integers(1, 6))
def test_who_is_counted_changes_by_several_at_once(first: frozenset[str], now: frozenset[str], smallest: int) -> None:
    before = cohort(frozenset(), first, smallest, b"k")
    after = cohort(before, now, smallest, b"k")
    assert after <= now
    assert not after or len(after) >= smallest
    for change in (after - before, before - after):
        assert not change or len(change) >= min(smallest, len(before) or smallest)
    assert cohort(after, now, smallest, b"k") in (after, now), "newcomers wait; nobody leaves without need"


@pytest.mark.parametrize(("arrived", "counted"), [(4, 20), (5, 25)])
def test_newcomers_wait_until_they_are_enough(arrived: int, counted: int) -> None:
    before = frozenset(NAMES[:20])
    assert len(cohort(before, before | frozenset(NAMES[20 : 20 + arrived]), 5, b"k")) == counted


def test_whoever_is_forgotten_takes_others_along() -> None:
    before = frozenset(NAMES[:20])
    after = cohort(before, before - {NAMES[3]}, 5, b"k")
    assert len(after) == 15 and NAMES[3] not in after
    assert cohort(frozenset(NAMES[:6]), frozenset(NAMES[:5]), 5, b"k") == frozenset(), "fewer than five are nobody"
