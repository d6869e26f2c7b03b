"""Strangers who connect to a gateway and say nothing do not keep hospitals out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from tests.world import World, small_world

from medmesh.embedded.ports import Ports
from medmesh.embedded.testing import RunningServers
from medmesh.service import crowd

MOST = 40


@pytest.fixture
async def world(servers: RunningServers, private: Path, ports: Ports) -> AsyncIterator[World]:
    async with small_world(servers, private, ports, settings={"gateway": {"most_connections": MOST}}) as made:
        yield made


async def test_hospitals_are_served_while_strangers_hold_on_to_the_gateway(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crowd, "HEAD_SECONDS", 2.0)
    port = urlsplit(world.url).port
    async with world.node("renji") as stream, world.node("huashan") as other, AsyncExitStack() as stack:
        waiting = asyncio.create_task(stream.request("GET", "/v1/inbox", query={"after": 0, "wait": 8}))
        await asyncio.sleep(0.5)
        silent = []
        for _ in range(2 * MOST):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=("127.0.0.2", 0))
            stack.callback(writer.close)
            silent.append(reader)
        async with asyncio.timeout(5):
            await other.request("GET", "/v1/inbox", query={"after": 0, "wait": 0})
        assert not waiting.done()
        async with asyncio.timeout(6):
            for reader in silent:
                assert await reader.read(1) == b""
        assert (await waiting) is not None
