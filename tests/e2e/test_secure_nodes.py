"""Three real nodes train under secure aggregation: the platform never holds a model of one of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from tests.hospitals import enrolled, federation, pacs, state_of, until
from tests.world import World, small_world

from medmesh.contracts.federation import FederationView
from medmesh.embedded.ports import Ports
from medmesh.embedded.testing import RunningServers
from medmesh.learning import isolation
from medmesh_edge import consent, intake
from medmesh_edge.node import running
from medmesh_edge.ports import site
from medmesh_edge.tables import secure_attempts, secure_opened
from medmesh_federation.service import SERVICE as FEDERATION
from medmesh_ingestion.service import SERVICE as INGESTION
from medmesh_registry.service import SERVICE as REGISTRY

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(isolation.capability().kind == "none", reason="nothing isolates here"),
]
HOSPITALS = ("huashan", "renji", "xiehe")


@pytest.fixture
async def world(servers: RunningServers, private: Path, ports: Ports) -> AsyncIterator[World]:
    settings = {"federation": {"tick_seconds": 0.1}, "ingestion": {"key": private / "keys" / "ingestion.key"}}
    async with small_world(servers, private, ports, FEDERATION, REGISTRY, INGESTION, settings=settings) as made:
        yield made


async def test_rounds_commit_and_only_masked_vectors_leave(world: World) -> None:
    admin = await world.admin()
    researcher, approver = await world.user(admin, "li", "researcher"), await world.user(admin, "wu", "approver")
    folders = {name: await enrolled(world, admin, approver, name) for name in HOSPITALS}
    for name, folder in folders.items():
        async with site(folder) as opened:
            await intake.ingest(opened, pacs(world.p.folder, name), "brain")
    async with AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(running(folder)) for folder in folders.values()]
        wanted: dict[str, Any] = {"rounds": 2, "baseline": False, "min_participants": 3, "lease_seconds": 20}
        made = await federation(world, researcher, approver, HOSPITALS, secure={"threshold": 3}, **wanted)
        for node in nodes:
            await until(lambda node=node: state_of(node, made))
            await consent.approve(node.site, made["federation"], "doctor-zhao")
            node.site.changed.set()

        async def finished() -> Any:
            view = await researcher.ask(f"/v1/federations/{made['federation']}", FederationView)
            assert view.state not in ("failed", "cancelled"), view.failure
            return view if view.state == "completed" else None

        view = await until(finished, 120)
        committed = [one for one in view.rounds if one.state == "committed"]
        assert [one.round for one in committed] == [1, 2]
        for one in committed:
            assert len(one.answers) == 3
            # Nothing is said about one hospital.
            assert all(answer.bytes > 8 * 131 and answer.samples == 1 and not answer.metrics for answer in one.answers), (
                "nothing is said about one hospital"
            )

        async def forgotten() -> bool:
            left = []
            for node in nodes:
                async with node.site.unit() as uow:
                    left += await uow.all(select(secure_attempts))
            return not left

        await until(forgotten)
        for node in nodes:
            async with node.site.unit() as uow:
                assert len(await uow.all(select(secure_opened))) == 2, "which list was signed is never forgotten"
    await asyncio.sleep(0)
