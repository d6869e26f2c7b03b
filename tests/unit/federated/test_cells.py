"""The small-cell rule: what it tells is right on average, says nothing of few, and tells nothing new to whoever subtracts."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medmesh.federated.cells import Group, counted, joined, rounded, told, without

NAMES = [f"s{n:04d}" for n in range(400)]


def table(truth: list[int], predicted: list[int], *, key: bytes = b"k", smallest: int = 5, patients: list[str] | None = None) -> np.ndarray:
    names = NAMES[: len(truth)]
    given = told(np.array(truth), np.array(predicted), names, patients or names, classes=2, smallest=smallest, key=key)
    return np.array(given)


def test_without_a_rule_the_counts_are_exact() -> None:
    truth, predicted = [0, 0, 0, 1, 1], [0, 1, 0, 1, 0]
    for smallest in (0, 1):
        assert table(truth, predicted, smallest=smallest, patients=["p"] * 5).tolist() == [[2, 1], [1, 1]]


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


def test_a_patient_counts_once_however_many_samples_are_his() -> None:
    """Twenty patients with one sample each, right; one with ten, of which seven are wrong."""
    predicted = [0] * 20 + [0] * 3 + [1] * 7
    patients = NAMES[:20] + ["many"] * 10
    found = [table([0] * 30, predicted, key=b"%d" % n, patients=patients) for n in range(3000)]
    assert {one[0, 1] for one in found} == {0, 5}, "seven of one patient are no cell of seven"
    np.testing.assert_allclose(np.mean(found, axis=0), [[20.3, 0.7], [0, 0]], atol=0.2)
    thirds = [p for name in NAMES[:15] for p in [name] * 3]
    assert table([0] * 45, [0] * 45, patients=thirds).tolist() == [[15, 0], [0, 0]], "what is whole is told as it is"


class History:
    """Evaluations of one class by a changing `smallest`, on patients who come and go, with ever so many samples."""

    def __init__(self) -> None:
        self.groups: tuple[Group, ...] = ()
        self.told: list[tuple[int, frozenset[str]]] = []

    def evaluate(self, now: dict[str, str], smallest: int) -> frozenset[str]:
        self.groups = joined(self.groups, now, smallest, b"k")
        found = counted(self.groups, now, smallest)
        assert found <= now.keys()
        self.told.append((smallest, found))
        return found


SAMPLES = {f"s{patient}-{number}": f"p{patient}" for patient in range(24) for number in range(3)}
evaluations = st.lists(st.tuples(st.frozensets(st.sampled_from(sorted(SAMPLES))), st.integers(2, 9)), min_size=2, max_size=7)
grown = st.lists(st.tuples(st.integers(0, len(SAMPLES)), st.integers(2, 9)), min_size=2, max_size=8)


def check(history: History, samples: dict[str, str] = SAMPLES) -> None:
    for (k, one), (other_k, other) in combinations([(0, frozenset[str]()), *history.told], 2):
        for left in (one - other, other - one):
            patients = {samples[sample] for sample in left}
            assert not patients or len(patients) >= min(k or other_k, other_k), (history.told, left)


@given(evaluations)
def test_any_two_evaluations_differ_by_nobody_or_several_patients(asked: list[tuple[frozenset[str], int]]) -> None:
    history = History()
    for present, smallest in asked:
        history.evaluate({sample: SAMPLES[sample] for sample in present}, smallest)
    check(history)


@given(grown, st.sets(st.sampled_from(sorted(set(SAMPLES.values()))), max_size=4))
def test_so_do_those_on_patients_who_come_one_after_the_other_and_of_whom_some_go(asked: list[tuple[int, int]], gone: set[str]) -> None:
    history, order = History(), sorted(SAMPLES)
    for place, (many, smallest) in enumerate(asked):
        there = order[:many]
        if place > len(asked) // 2:
            there = [sample for sample in there if SAMPLES[sample] not in gone]
        history.evaluate({sample: SAMPLES[sample] for sample in there}, smallest)
    check(history)


def people(*numbers: int, samples: int = 1) -> dict[str, str]:
    return {f"p{n}-{sample}": f"p{n}" for n in numbers for sample in range(samples)}


def test_a_larger_number_in_between_shows_nobody() -> None:
    history = History()
    first = history.evaluate(people(*range(30)), 5)
    assert len(first) == 30
    assert history.evaluate(people(*range(31)), 100) == frozenset()
    assert history.evaluate(people(*range(31)), 5) == first, "the newcomer waits as he would have without"
    assert len(history.evaluate(people(*range(31)), 10)) == 30, "groups of five are counted by ten together"
    assert len(history.evaluate(people(*range(35)), 5)) == 35


def test_a_smaller_number_in_between_shows_no_more_than_its_own() -> None:
    history, everybody = History(), people(*range(37))
    first = history.evaluate(people(*range(30)), 5)
    assert len(history.evaluate(people(*range(32)), 2)) == 32
    assert history.evaluate(people(*range(32)), 5) == first
    assert len(history.evaluate(people(*range(35)), 5)) == 30, "those three alone are too few, and the two are told apart already"
    assert len(history.evaluate(people(*range(35)), 3)) == 33
    assert len(history.evaluate(people(*range(35)), 5)) == 30, "five, of whom three were seen without the two"
    assert len(history.evaluate(people(*range(37)), 2)) == 37
    assert len(history.evaluate(people(*range(37)), 5)) == 37
    check(history, everybody)


def test_one_patient_is_no_newcomers_however_many_samples_are_his() -> None:
    history, before = History(), people(*range(20))
    first = history.evaluate(before, 5)
    assert history.evaluate(before | people(77, samples=6), 5) == first
    assert history.evaluate(before | people(3, samples=6), 5) == first, "nor are further samples of one who is counted"
    assert len(history.evaluate(before | people(3, 4, 5, 6, 7, samples=6), 5)) == 20 + 5 * 5


def test_whoever_leaves_does_so_with_others_and_comes_back_with_them() -> None:
    history, everybody = History(), people(*range(20))
    first = history.evaluate(everybody, 5)
    left = history.evaluate(people(*range(19)), 5)
    assert len(left) == 15
    assert history.evaluate(people(*range(19), 50, 51, 52, 53), 5) == left, "the others do not join newcomers"
    assert history.evaluate(everybody, 5) == first


def test_a_forgotten_patient_is_named_nowhere_and_whoever_was_with_him_is_counted_no_more() -> None:
    history = History()
    history.evaluate(people(*range(20)), 5)
    history.groups = without(history.groups, frozenset({"p7"}))
    assert "p7" not in repr(history.groups).replace("'", " ").replace("-", " ").split()
    again = history.evaluate(people(*range(20)), 5)
    assert len(again) == 15, "taken in again, he is another"
    assert len(history.evaluate(people(7, *range(20, 24)), 5)) == 5


@pytest.mark.parametrize("number", range(5, 12))
def test_how_many_there_are_is_told_in_multiples_right_on_average(number: int) -> None:
    found = [rounded(dict.fromkeys(NAMES[:number], 1), 5, b"%d" % n) for n in range(3000)]
    assert not any(one % 5 for one in found) and min(found) >= 5
    np.testing.assert_allclose(np.mean(found), number, atol=0.2)
    assert rounded(dict.fromkeys(NAMES[:number], 1), 0, b"") == number


def test_how_many_samples_there_are_shows_no_patient_who_has_many() -> None:
    usual = dict.fromkeys(NAMES[:61], 3)
    alone = [rounded(usual, 5, b"%d" % n) for n in range(2000)]
    beside = [rounded({**usual, "many": 500}, 5, b"%d" % n) for n in range(2000)]
    assert not any(one % 20 for one in alone + beside), "five patients' worth"
    np.testing.assert_allclose([np.mean(alone), np.mean(beside)], [183, 187], atol=1.5)
    assert {b - a for a, b in zip(alone, beside, strict=True)} >= {-20, 0, 20}, "the difference is of chance"
