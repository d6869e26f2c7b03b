"""The platform loses what hospitals handed in: their nodes send it again, and train nothing again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from tests.e2e.test_secure_nodes import HOSPITALS
from tests.hospitals import completed, consented, federation, with_images
from tests.records import left
from tests.world import World, federating_world

from medmesh.embedded.ports import Ports
from medmesh.embedded.testing import RunningServers
from medmesh.learning import isolation
from medmesh_edge.node import running
from medmesh_edge.tables import tasks
from medmesh_federation import results

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(isolation.capability().kind == "none", reason="nothing isolates here"),
]


@pytest.fixture
async def world(servers: RunningServers, private: Path, ports: Ports) -> AsyncIterator[World]:
    async with federating_world(servers, private, ports) as made:
        yield made


@pytest.mark.parametrize("beside", [{}, {"secure": {"threshold": 3}}], ids=["plain", "secure"])
async def test_what_the_platform_lost_is_sent_again_and_not_trained_again(
    world: World, monkeypatch: pytest.MonkeyPatch, beside: dict[str, Any]
) -> None:
    lost: list[str] = []
    aggregate = results.result

    async def after_a_loss(ports: Any, row: Any, situation: Any, given: Any, *further: Any) -> Any:
        if not lost:  # all of them, on the way to the first model
            for one in given:
                await ports.stores.scratch.delete(one.update["sha256"])
                lost.append(one.update["sha256"])
        return await aggregate(ports, row, situation, given, *further)

    monkeypatch.setattr(results, "result", after_a_loss)
    researcher, approver, folders = await with_images(world, HOSPITALS)
    async with AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(running(folder)) for folder in folders.values()]
        made = await federation(
            world, researcher, approver, HOSPITALS, rounds=2, baseline=False, min_participants=3, lease_seconds=20, **beside
        )
        await consented(nodes, made)
        view = await completed(researcher, made)
        trained = [one for one in view.rounds if one.kind == "train"]
        assert [(one.round, one.attempt, one.state, len(one.answers)) for one in trained] == [
            (1, 1, "committed", 3),
            (2, 1, "committed", 3),
        ]
        for node in nodes:
            async with node.site.unit() as uow:
                found = await uow.all(select(tasks.c.round, tasks.c.trained).where(tasks.c.kind == "train").order_by(tasks.c.round))
            assert [tuple(one) for one in found] == [(1, 1), (2, 1)]
        sent = [r for r in await left(world.p, "federation.upload", 9) if r["detail"]["round"] == 1]
        told = sorted(entity["digest"] for r in sent for entity in r["entities"] if entity["type"] == "update")
        assert told == sorted(2 * lost), "each left twice, the same bytes both times"
