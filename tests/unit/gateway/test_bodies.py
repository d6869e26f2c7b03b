"""How somebody is refused of whose body nothing is wanted: answered at once, and heard out, but not for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from starlette.requests import Request

from medmesh.errors import Problem
from medmesh_gateway import bodies

PIECE = 2**20


async def refused(coming: Callable[[int], Any]) -> tuple[list[tuple[int, bytes, bool]], int]:
    """What is sent to who is refused, each as (pieces that had come before, body, whether it goes on), and how many pieces were taken of
    what `coming` says."""
    taken, sent = 0, list[tuple[int, bytes, bool]]()
    scope = {"type": "http", "method": "POST", "path": "/", "headers": []}

    async def receive() -> Any:
        nonlocal taken
        taken += 1
        await asyncio.sleep(0)
        if (piece := coming(taken)) is None:
            await asyncio.Event().wait()
        return piece

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            sent.append((taken, message.get("body", b""), message.get("more_body", False)))

    async with asyncio.timeout(20):
        await bodies.hung_up(Problem("actor.missing", type="/"), Request(scope))(scope, receive, send)
    return sent, taken


def piece(more: bool = True) -> dict[str, Any]:
    return {"type": "http.request", "body": bytes(PIECE), "more_body": more}


@pytest.mark.parametrize("last", [piece(more=False), {"type": "http.disconnect"}], ids=["sent everything", "is gone"])
async def test_the_answer_comes_first_and_the_connection_ends_after_what_was_under_way(last: dict[str, Any]) -> None:
    ((before, answer, goes_on), end), taken = await refused(lambda number: piece() if number < 3 else last)
    assert (before, b"actor.missing" in answer, goes_on) == (0, True, True)
    assert (end, taken) == ((3, b"", False), 3)


async def test_who_sends_without_an_end_is_heard_so_far_and_no_further() -> None:
    sent, taken = await refused(lambda _: piece())
    assert (sent[-1][2], taken) == (False, -(-bodies.MOST_UNHEARD // PIECE))


async def test_who_sends_nothing_more_is_waited_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "LINGER_SECONDS", 0.01)
    sent, _ = await refused(lambda _: None)
    assert (len(sent), sent[-1][2]) == (2, False)
