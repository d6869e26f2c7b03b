"""An application that is made when it is asked for something first."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx

from medmesh.errors import Problem
from medmesh.service.asgi import Application, Lazily, Observed


async def _hello(_scope: Any, _receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})


def _client(app: Application) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://node")


async def test_it_is_made_once_for_the_first_who_ask_and_not_for_a_look_at_its_health() -> None:
    made = 0

    async def make() -> Application:
        nonlocal made
        made += 1
        await asyncio.sleep(0.01)
        return _hello

    async def ready() -> dict[str, str]:
        return {}

    async with _client(Observed(Lazily(make), "example", ready)) as http:
        assert [(await http.get(path)).status_code for path in ("/health/live", "/health/ready", "/metrics")] == [200] * 3
        assert made == 0
        answers = await asyncio.gather(*(http.get("/") for _ in range(3)))
    assert [answer.text for answer in answers] == ["hello"] * 3
    assert made == 1


async def test_where_it_cannot_be_made_the_next_request_tries_again() -> None:
    outcomes = [Problem("request.unavailable"), None]

    async def make() -> Application:
        if (problem := outcomes.pop(0)) is not None:
            raise problem
        return _hello

    async def ready() -> dict[str, str]:
        return {}

    async with _client(Observed(Lazily(make), "example", ready)) as http:
        assert (await http.get("/")).status_code == 500
        assert (await http.get("/")).text == "hello"
