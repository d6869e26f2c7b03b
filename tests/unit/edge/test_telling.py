"""What training code can choose of what is said beside an update is coarse."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest

from medmesh_edge import telling
from medmesh_edge.rounds import Rounds


@pytest.mark.parametrize(("said", "told"), [(0.123456789, 0.123), (-1234567.0, -1230000.0), (0.0, 0.0), (9.9999, 10.0)])
def test_a_loss_has_three_digits(said: float, told: float) -> None:
    assert telling.loss(said) == told


def test_a_loss_has_few_values() -> None:
    assert len({telling.loss(1 + n / 100_000) for n in range(100_000)}) <= 102
    assert math.isinf(telling.loss(math.inf)), "what is no number is refused elsewhere"


def test_progress_is_told_in_tenths_of_the_plans_steps() -> None:
    assert len({telling.progress(step, 1000) for step in range(-50, 5000)}) == 11
    assert telling.progress(-1, 20) == (0, 20)
    assert telling.progress(10**30, 20) == (20, 20)
    assert telling.progress(3, 7) == (2, 7)


def test_times_have_two_digits() -> None:
    assert [telling.milliseconds(s) for s in (0.0004, 0.0123, 1.23456, 98.76)] == [0, 12, 1200, 99000]


async def test_progress_is_told_of_a_round_that_lasts_and_of_no_short_one() -> None:
    told: list[tuple[str, Any]] = []

    class Gateway:
        async def request(self, method: str, path: str, document: Any) -> None:
            told.append((path, document["round"]))

    rounds = Rounds(None, Gateway())  # type: ignore[arg-type]
    for number in (1, 2, 2, 2, 3):
        rounds._tell(SimpleNamespace(federation="f", round=number), "train", 1, 2)  # type: ignore[arg-type]
        await rounds.tell_progress()
    assert told == [("/v1/federations/f/progress", 2)] * 2
