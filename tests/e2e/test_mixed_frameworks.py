"""One federation, three frameworks: PyTorch, MindSpore, and one that somebody wrote and installed beside medmesh."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from tests.frameworks import INTERPRETERS
from tests.hospitals import completed, consented, enrolled, federation, pacs, until
from tests.packages import TWINS
from tests.records import Records
from tests.world import World, small_world

from medmesh.embedded.ports import Ports
from medmesh.embedded.testing import RunningServers
from medmesh.learning import isolation, metrics, weights
from medmesh.store.objects.port import fetch
from medmesh_edge import intake
from medmesh_edge.node import running
from medmesh_edge.ports import site
from medmesh_federation.service import SERVICE as FEDERATION

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("frameworks"),
    pytest.mark.skipif(isolation.capability().kind == "none", reason="nothing isolates here"),
]
HOSPITALS = {"huashan": "torch", "renji": "mindspore", "tongji": "handmade"}


@pytest.fixture
async def world(servers: RunningServers, private: Path, ports: Ports) -> AsyncIterator[World]:
    async with small_world(servers, private, ports, FEDERATION, settings={"federation": {"tick_seconds": 0.1}}) as made:
        yield made


async def test_hospitals_with_different_frameworks_train_one_model(world: World) -> None:
    admin = await world.admin()
    researcher, approver = await world.user(admin, "li", "researcher"), await world.user(admin, "wu", "approver")
    async with AsyncExitStack() as stack:
        nodes = {}
        for hospital, framework in HOSPITALS.items():
            interpreter = INTERPRETERS[framework]()
            # The one with PyTorch trains in two processes: nobody else can tell.
            chosen = {"frameworks": (framework,), "python": {framework: interpreter}} if interpreter else {"worker_processes": 2}
            folder = await enrolled(world, admin, approver, hospital, **chosen)
            async with site(folder) as opened:
                assert (await intake.ingest(opened, pacs(world.p.folder, hospital), "brain")).stored == 60
            nodes[hospital] = await stack.enter_async_context(running(folder))
        rules = {"rounds": 2, "local_steps": 20, "learning_rate": "0.05", "min_participants": 3, "round_deadline_seconds": 120}
        made = await federation(world, researcher, approver, tuple(HOSPITALS), package=TWINS, **rules)
        await consented(nodes.values(), made)
        view = await completed(researcher, made, 240)

        async def shipped() -> bool:
            return all([not await node.site.database.unreceipted() for node in nodes.values()])

        await until(shipped)
        records = [record for record in await Records(world.p).new() if record["sub"] == "federation.train"]
    assert [len(round_.answers) for round_ in view.rounds] == [3, 3, 3, 3]
    ran = {record["src"]["service"].removeprefix("edge:"): record["detail"]["framework"] for record in records}
    assert ran == HOSPITALS
    for hospital in HOSPITALS:
        counts = [entry.counts for entry in view.evaluation if (entry.hospital, entry.name) == (hospital, "federated")]
        assert metrics.balanced_accuracy(metrics.add(counts)) > 0.9
    model = await fetch(world.p.stores.kept, view.model, world.p.folder / "model")
    weights.check(model, view.plan.signature)
    assert weights.load(model)["1.num_batches_tracked"] == 0, "whole numbers are never averaged"
