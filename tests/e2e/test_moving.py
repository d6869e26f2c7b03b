"""Real nodes over a bad network, with a codec: the federation ends, with fewer bytes, and nothing of the residuals is left behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from sqlalchemy import func, select
from tests.hospitals import completed, consented, enrolled, federation, pacs, until
from tests.proxies import network
from tests.store import swept_though_named
from tests.world import World, small_world

from medmesh.embedded.ports import Ports
from medmesh.embedded.testing import RunningServers
from medmesh.federated import codecs
from medmesh.learning import isolation, weights
from medmesh.store.objects.port import fetch
from medmesh_edge import intake
from medmesh_edge.node import running
from medmesh_edge.ports import site
from medmesh_edge.settings import Settings
from medmesh_edge.tables import residuals, tasks
from medmesh_federation.service import SERVICE as FEDERATION

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(isolation.capability().kind == "none", reason="nothing isolates here"),
]
NAMES = ("huashan", "renji")


@pytest.fixture
async def world(servers: RunningServers, private: Path, ports: Ports) -> AsyncIterator[World]:
    async with small_world(servers, private, ports, FEDERATION, settings={"federation": {"tick_seconds": 0.1}}) as made:
        yield made


async def through(world: World, stack: AsyncExitStack) -> list[Path]:
    """Hospitals with images whose way to the platform is cut twice, and slow and lossy."""
    admin = await world.admin()
    approver = await world.user(admin, "wu", "approver")
    folders = []
    for name in NAMES:
        folder = await enrolled(world, admin, approver, name)
        async with site(folder) as opened:
            await intake.ingest(opened, pacs(world.p.folder, name), "brain")
        port, between = await stack.enter_async_context(network(urlsplit(world.url).port or 0))
        between.delay, between.loss, between.cut_after = 0.05, 0.02, [30_000, 60_000]
        Settings.load(folder).model_copy(update={"gateway": f"https://127.0.0.1:{port}"}).save(folder)
        folders.append(folder)
    return folders


@pytest.mark.parametrize("codec", ["none", "int8"])
async def test_a_federation_over_a_bad_network_ends_as_over_a_good_one(
    world: World, codec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = swept_though_named(monkeypatch)
    async with AsyncExitStack() as stack:
        folders = await through(world, stack)
        nodes = [await stack.enter_async_context(running(folder)) for folder in folders]
        researcher, approver = await world.user(await world.sign_in("sun"), "li", "researcher"), await world.sign_in("wu")
        made = await federation(world, researcher, approver, NAMES, baseline=False, codec=codec, lease_seconds=30)
        await consented(nodes, made)
        view = await completed(researcher, made)
        assert [r.state for r in view.rounds] == ["committed"] * 3
        assert all(r.attempt == 1 for r in view.rounds), "nothing of this is worth another attempt"

        async def swept() -> bool:
            async with nodes[0].site.unit() as uow:
                left = (await uow.execute(select(func.count()).select_from(residuals))).scalar_one()
                done = await uow.all(select(tasks.c.state, tasks.c.trained))
            return left == 0 and {(row.state, row.trained) for row in done} == {("released", 1)}

        await until(swept)
        assert named == []
        model = weights.load(await fetch(world.p.stores.kept, view.model, tmp_path / "model"))
        assert all(np.isfinite(array).all() for array in model.values())
        assert np.abs(model["weight"]).max() > 0.01, "it learned"
        size = sum(array.nbytes for array in model.values())
        sent = {answer.bytes for r in view.rounds for answer in r.answers}
        if codec == "int8":
            assert max(sent) < size + 200, sent  # the model of the test is small: the header counts
            assert codecs.wire_bytes(codecs.sent(view.plan)) < 0.3 * size
        await asyncio.sleep(0)
