"""Training through a pipeline on real nodes: bound by the plan, applied once at the edge, named in the model's lineage and the log."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select
from tests.e2e.test_node import two_hospitals
from tests.hospitals import completed, consented, federation, until
from tests.packages import piped
from tests.records import Records
from tests.world import World, small_world

from medmesh.contracts.federation import FederationView
from medmesh.contracts.registry import ModelList
from medmesh.embedded.ports import Ports
from medmesh.embedded.testing import RunningServers
from medmesh.federated.plan import explain
from medmesh.learning import isolation, metrics
from medmesh.learning.package import pack
from medmesh.pipelines import steps
from medmesh_edge.node import Node, running
from medmesh_edge.outputs import at_most
from medmesh_edge.settings import Settings
from medmesh_edge.tables import federations, outputs, tasks
from medmesh_federation.service import SERVICE as FEDERATION
from medmesh_registry.service import SERVICE as REGISTRY

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(isolation.capability().kind == "none", reason="nothing isolates here"),
]


@pytest.fixture
async def world(servers: RunningServers, private: Path, ports: Ports) -> AsyncIterator[World]:
    async with small_world(servers, private, ports, FEDERATION, REGISTRY, settings={"federation": {"tick_seconds": 0.1}}) as made:
        yield made


async def made_at(node: Node) -> int:
    async with node.site.unit() as uow:
        return int((await uow.execute(select(func.count()).select_from(outputs))).scalar_one())


async def test_a_model_is_trained_through_a_pipeline_and_its_lineage_names_it(
    world: World, private: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = piped(private)
    stated = pack(package).manifest.images().pipeline
    assert stated is not None
    calls, whole = [0], steps.Window.apply

    def apply(self: Any, data: Any) -> Any:
        calls[0] += 1
        return whole(self, data)

    async with two_hospitals(world) as (researcher, approver, folders), AsyncExitStack() as stack:
        monkeypatch.setattr(steps.Window, "apply", apply)
        nodes = [await stack.enter_async_context(running(folder)) for folder in folders.values()]
        made = await federation(world, researcher, approver, tuple(folders), package=package, rounds=2)
        view = await researcher.ask(f"/v1/federations/{made['federation']}", FederationView)
        assert stated.hash[:16] in "".join(explain(view.plan)), "the hospital reads which pipeline it is"
        await consented(nodes, made)
        view = await completed(researcher, made)
        union = metrics.add([entry.counts for entry in view.evaluation if entry.name == "federated"])
        assert metrics.balanced_accuracy(union) > 0.9
        assert calls == [120] and [await made_at(node) for node in nodes] == [60, 60], "each image went through once, over all rounds"

        async def registered() -> Any:
            return (await researcher.ask("/v1/models", ModelList)).models

        (model,) = await until(registered)
        assert model.lineage.pipeline == stated.hash

        async def shipped() -> bool:
            return all([not await node.site.database.unreceipted() for node in nodes])

        await until(shipped)
        named = {
            (record["src"]["service"], record["sub"])
            for record in await Records(world.p).new()
            if any(one["type"] == "pipeline" and one["digest"] == stated.hash for one in record["entities"])
        }
        assert named == {("edge:huashan", "federation.train"), ("edge:renji", "federation.train"), ("registry", "model.register")}


async def test_a_node_with_another_version_of_a_step_declines_before_anything_runs(
    world: World, private: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with two_hospitals(world) as (researcher, approver, folders), AsyncExitStack() as stack:
        made = await federation(world, researcher, approver, tuple(folders), package=piped(private))
        monkeypatch.setattr(steps.Window, "version", 2)
        nodes = [await stack.enter_async_context(running(folder)) for folder in folders.values()]

        async def over() -> FederationView | None:
            view = await researcher.ask(f"/v1/federations/{made['federation']}", FederationView)
            return view if view.state == "failed" else None

        view = await until(over)
        assert {p.state for p in view.participants} == {"declined"} and view.failure == "federation.quorum"
        for node in nodes:
            async with node.site.unit() as uow:
                row = await uow.first(select(federations.c.reason))
            assert row is not None and row.reason == "pipelines.version"
            assert await made_at(node) == 0


async def test_a_round_that_has_no_room_for_its_outputs_says_so_and_the_next_one_with_room_goes_through(
    world: World, private: Path
) -> None:
    async with two_hospitals(world) as (researcher, approver, folders):
        small = {name: Settings.load(folder).model_copy(update={"pipelines_gib": 1e-6}) for name, folder in folders.items()}
        for name, folder in folders.items():
            small[name].save(folder)
        package = piped(private)
        async with AsyncExitStack() as stack:
            nodes = [await stack.enter_async_context(running(folder)) for folder in folders.values()]
            made = await federation(world, researcher, approver, tuple(folders), package=package, rounds=1)
            await consented(nodes, made)

            async def why() -> bool:
                failed = select(tasks.c.code).where(tasks.c.state == "failed")
                found = []
                for node in nodes:
                    async with node.site.unit() as uow:
                        found += [{row.code for row in await uow.all(failed)}]
                return found == [{"pipelines.full"}] * 2

            await until(why)
            assert [await made_at(node) for node in nodes] == [0, 0]
        each = at_most(pack(package).manifest.images())
        for name, folder in folders.items():  # as much as is needed, and no more
            small[name].model_copy(update={"pipelines_gib": 60 * each / 2**30}).save(folder)
        async with AsyncExitStack() as stack:
            nodes = [await stack.enter_async_context(running(folder)) for folder in folders.values()]
            made = await federation(world, researcher, approver, tuple(folders), package=package, rounds=1)
            await consented(nodes, made)
            await completed(researcher, made)
            assert [await made_at(node) for node in nodes] == [60, 60]
