"""The example of the SDK works as it is written, on real servers with real nodes."""

from __future__ import annotations

import asyncio
import importlib.util
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from tests.e2e.test_node import two_hospitals
from tests.hospitals import until
from tests.packages import TINY
from tests.world import World, small_world

from medmesh.cli import session
from medmesh.embedded.ports import Ports
from medmesh.embedded.testing import RunningServers
from medmesh.learning import isolation, weights
from medmesh_edge.node import running
from medmesh_edge.tables import federations
from medmesh_federation.service import SERVICE as FEDERATION
from medmesh_training.service import SERVICE as TRAINING

SDK = Path(__file__).parents[2] / "docs" / "federation" / "sdk.py"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(isolation.capability().kind == "none", reason="nothing isolates here"),
]


@pytest.fixture
async def world(servers: RunningServers, private: Path, ports: Ports) -> AsyncIterator[World]:
    settings = {"federation": {"tick_seconds": 0.1, "require_rehearsal": True}}
    async with small_world(servers, private, ports, FEDERATION, TRAINING, settings=settings) as made:
        yield made


def example() -> Any:
    spec = importlib.util.spec_from_file_location("sdk", SDK)
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def test_the_researchers_part_is_ten_lines() -> None:
    lines = SDK.read_text(encoding="utf-8").split("async with signed_in()")[1].split("\n\n\n")[0].strip().splitlines()
    assert len(lines) - 1 <= 10


async def test_a_federation_from_python(world: World, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    sdk = example()
    async with two_hospitals(world) as (researcher, approver, folders), AsyncExitStack() as stack:
        monkeypatch.setenv("MEDMESH_SESSION", str(world.p.folder / "li.json"))
        session.save(world.url, world.ca, researcher.credentials.session, "li")  # type: ignore[union-attr]
        nodes = [await stack.enter_async_context(running(folder)) for folder in folders.values()]
        model = world.p.folder / "model.safetensors"
        working = asyncio.create_task(sdk.together(TINY, tuple(folders), model))

        async def invited() -> Any:
            async with nodes[0].site.unit() as uow, nodes[1].site.unit() as other:
                return await other.first(select(federations.c.federation)) and await uow.first(select(federations.c.federation))

        federation = (await until(invited)).federation
        for folder in folders.values():
            await sdk.accept(folder, federation)

        async def asked() -> Any:
            return (await approver.request("GET", "/v1/approvals", query={"state": "open"}))["approvals"]

        (approval,) = await until(asked)
        await world.decide(approver, approval["approval"])
        async with asyncio.timeout(120):
            await working
        said = capsys.readouterr().out
        assert "数据不出院" in said
        assert "邀请前已在虚构数据上演练" in said, "its code was run before hospitals were asked, and they are told what that took"
        assert "completed" in said.splitlines()[-len(cells(said)) - 1]
        assert {name for name, _ in cells(said)} == {"federated"}
        assert {where for _, where in cells(said)} == {*folders, "all"}
        assert set(weights.load(model)) == {"weight", "bias"}


def cells(said: str) -> list[tuple[str, str]]:
    return re.findall(r"^(\S+) at (\S+): \d\.\d+ \[", said, re.M)
