"""How long the supervisor waits before it starts again what died."""

from __future__ import annotations

from itertools import accumulate, repeat

import pytest

from medmesh.embedded.supervisor import pause


@pytest.mark.parametrize(("was_ready", "longest"), [(True, 0.5), (False, 10.0)])
def test_what_can_start_is_not_kept_waiting_for_long(was_ready: bool, longest: float) -> None:
    pauses = list(accumulate(repeat(0.0, 10), lambda before, _: pause(before, was_ready=was_ready, lived=1.0)))[1:]
    assert pauses[0] == 0.2
    assert pauses == sorted(pauses)
    assert max(pauses) == longest


def test_after_a_long_life_the_next_start_is_soon() -> None:
    assert pause(10.0, was_ready=False, lived=31.0) == pause(0.0, was_ready=False, lived=0.0)
