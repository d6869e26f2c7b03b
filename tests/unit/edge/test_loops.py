"""How a node's loops go on: what one could not do, it tries again soon, although nobody wakes it."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.unit.edge.test_privacy import SETTINGS

from medmesh.errors import Problem
from medmesh.tasks import end
from medmesh_edge import inbox
from medmesh_edge.node import Node
from medmesh_edge.ports import site


@pytest.fixture
async def node(private: Path) -> AsyncIterator[Node]:
    SETTINGS.save(private)
    async with site(private) as at:
        made = Node(at, None)  # type: ignore[arg-type]
        yield made
        made.archive.close()
        made.tiering.close()


@pytest.mark.parametrize(
    "error", [Problem("client.unreachable", url="https://127.0.0.1", reason="ConnectError"), RuntimeError("a fault of ours")]
)
async def test_what_failed_is_tried_again_soon_and_then_waits_to_be_woken(node: Node, error: Exception) -> None:
    tries, bell, went_on = 0, asyncio.Event(), asyncio.Event()

    async def step() -> bool:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise error
        went_on.set()
        return False

    going = asyncio.create_task(node._loop("rounds", step, bell))
    try:
        async with asyncio.timeout(10):  # its pause is a second; what idles waits half a minute
            await went_on.wait()
        await asyncio.sleep(1.5)
        assert tries == 2, "what is done is not done again"
        went_on.clear()
        bell.set()
        async with asyncio.timeout(10):
            await went_on.wait()
    finally:
        await end(going)


class Starting:
    """A gateway that is away for a few tries, and streams once it is back."""

    def __init__(self) -> None:
        self.asked, self.streamed = list[str](), asyncio.Event()

    async def poll(self, after: int, wait: float) -> list[Any]:
        self.asked.append("poll")
        return []

    async def inbox(self, after: int, opened: Any, enclosed: Any) -> AsyncIterator[Any]:
        self.asked.append("stream")
        if len(self.asked) <= 3:
            raise Problem("client.unreachable", url="https://127.0.0.1", reason="ConnectError")
        self.streamed.set()
        await asyncio.Event().wait()
        yield None


async def test_a_node_streams_again_once_the_platform_is_back(node: Node) -> None:
    gateway = Starting()
    node.gateway = gateway  # type: ignore[assignment]
    going = asyncio.create_task(node._inbox())
    try:
        async with asyncio.timeout(20):
            await gateway.streamed.wait()
        assert gateway.asked == ["stream"] * 3 + ["poll", "stream"]
        assert node.last_problem is None
    finally:
        await end(going)


async def test_a_fact_that_could_not_be_taken_in_is_tried_again_and_less_and_less_often(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it was: a full disk, a fault of ours. The node's other work goes on meanwhile."""
    failed, taken = list[int](), asyncio.Event()

    async def take(_site: Any, place: int, _document: Any) -> None:
        if len(failed) < 2:
            raise sqlite3.OperationalError("database or disk is full")
        taken.set()

    def noted(_name: str, _error: Exception, failures: int) -> None:
        failed.append(failures)

    class Telling:
        async def inbox(self, after: int, opened: Any, enclosed: Any) -> AsyncIterator[Any]:
            yield 1, {}
            await asyncio.Event().wait()

    monkeypatch.setattr(inbox, "take", take)
    monkeypatch.setattr(node, "_failed", noted)
    node.gateway = Telling()  # type: ignore[assignment]
    going = asyncio.create_task(node._inbox())
    try:
        async with asyncio.timeout(20):
            await taken.wait()
        assert failed == [1, 2], "each time it is waited longer"
    finally:
        await end(going)


async def test_a_store_that_cannot_be_looked_at_for_a_moment_does_not_stop_who_looks(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    connect, fails = node.site.database.engine.connect, 1

    def connected() -> Any:
        nonlocal fails
        if fails:
            fails -= 1
            raise sqlite3.OperationalError("database is locked")
        return connect()

    monkeypatch.setattr(node.site.database.engine, "connect", connected)
    bell = node.site.changed.of("rounds")
    going = asyncio.create_task(node._watch())
    try:
        async with asyncio.timeout(20):
            await bell.wait()
    finally:
        await end(going)
