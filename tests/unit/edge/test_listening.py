"""A node streams again as soon as the platform is back, and polls only where streams do not come through."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest

from medmesh_edge.listening import POLL_SECONDS, Listening


def played(
    listening: Listening, seconds: float, streams: Callable[[float], bool], there: Callable[[float], bool], *, facts: bool = True
) -> list[tuple[float, str]]:
    """(when, what) of everything that is tried: a stream that comes through lasts five minutes, with a fact in each where there are
    `facts`; one that is swallowed is given up after 15 seconds."""
    now, tried = 0.0, []
    while now < seconds:
        began, polling = now, listening.polls(now)
        tried.append((now, "poll" if polling else "stream"))
        if not there(now):
            now += 0.5
            listening.failed(now, began, polling=polling, unreachable=True)
        elif polling:
            now += 25
            listening.polled()
        elif streams(now):
            for _ in range(5):
                now += 60
                if facts:
                    listening.heard(now)
            listening.failed(now, began, polling=False, unreachable=True)
        else:
            now += 15
            listening.failed(now, began, polling=False, unreachable=True)
    return tried


@pytest.mark.parametrize("facts", [True, False], ids=["busy", "idle"])
def test_while_the_platform_is_started_anew_nobody_takes_to_polling(facts: bool) -> None:
    tried = played(Listening(), 4000, streams=lambda now: True, there=lambda now: now % 1000 > 5, facts=facts)
    assert all(what == "stream" for now, what in tried if now % 1000 > 60), "it goes on streaming after every outage"
    assert sum(what == "poll" for _, what in tried) > 1, "what the outage is, is not known before"


def test_where_streams_are_swallowed_polls_take_their_place_and_a_stream_is_tried_now_and_then() -> None:
    tried = played(Listening(), 6 * POLL_SECONDS, streams=lambda now: False, there=lambda now: True)
    streamed = [now for now, what in tried if what == "stream" and now > 120]
    assert 4 <= len(streamed) <= 6
    assert all(after - before >= POLL_SECONDS for before, after in pairwise(streamed))


def test_a_network_that_is_mended_is_streamed_through_again() -> None:
    tried = played(Listening(), 4000, streams=lambda now: now > 1000, there=lambda now: True)
    assert {what for now, what in tried if now > 1000 + POLL_SECONDS + 60} == {"stream"}
