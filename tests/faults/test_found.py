"""Faults that the killing found, each in the small."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from medmesh.bus.declarations import Handlers
from medmesh.contracts.governance import ApprovalGranted, ApprovalRefused
from medmesh.service.asgi import Observed
from medmesh.service.http import new_application
from medmesh.store.objects.directory import DirectoryStore
from medmesh.store.objects.port import fetch


class SlowStore(DirectoryStore):
    """Gives an object away in small pieces."""

    async def read(self, sha256: str, start: int = 0, end: int | None = None) -> AsyncIterator[bytes]:
        data = self.path(sha256).read_bytes()[start:end]
        for place in range(0, len(data), 10):
            await asyncio.sleep(0)
            yield data[place : place + 10]


async def test_many_that_fetch_one_object_at_once_all_get_it_whole(tmp_path: Path) -> None:
    store, data = SlowStore(tmp_path / "store", durable=False), bytes(range(256)) * 4
    ref = await store.put(data)
    got = await asyncio.gather(*(fetch(store, ref, tmp_path / "copy") for _ in range(8)))
    assert {hashlib.sha256(path.read_bytes()).hexdigest() for path in got} == {ref.sha256}


async def _ask(error: Exception) -> list[dict[str, Any]]:
    app = new_application("test", is_transient=lambda found: isinstance(found, ConnectionError))

    @app.get("/")
    async def fails() -> None:
        raise error

    async def ready() -> dict[str, str]:
        return {}

    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": "/", "raw_path": b"/", "query_string": b"", "headers": [], "http_version": "1.1"}
    await Observed(app, "test", ready)({**scope, "server": ("test", 80), "client": ("test", 1), "scheme": "http"}, receive, send)
    return sent


async def test_what_breaks_inside_is_answered_once_as_a_problem_that_says_whether_to_try_again() -> None:
    for error, status, code in ((ConnectionResetError(), 503, "request.unavailable"), (KeyError("x"), 500, "request.failed")):
        sent = await _ask(error)
        assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
        assert sent[0]["status"] == status
        assert json.loads(sent[1]["body"])["code"] == code


def test_one_at_a_time_is_one_in_flight() -> None:
    """Otherwise what a killed process had fetched ahead comes again after what followed it."""
    handlers = Handlers("test")

    @handlers.on(ApprovalGranted, concurrency=1)
    async def ordered(event: Any, uow: Any) -> None: ...

    @handlers.on(ApprovalRefused)
    async def unordered(event: Any, uow: Any) -> None: ...

    first, second = (consumer.spec().max_in_flight for consumer in handlers.consumers)
    assert (first, second) == (1, 32)
