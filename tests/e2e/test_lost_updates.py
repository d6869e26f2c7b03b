"""The platform loses what hospitals handed in, or what was made of it: their nodes send it again, and train nothing again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from tests.e2e.test_secure_nodes import HOSPITALS
from tests.hospitals import completed, consented, federation, until, with_images
from tests.records import left
from tests.world import World, federating_world

from medmesh.embedded.ports import Ports
from medmesh.embedded.testing import RunningServers
from medmesh.learning import isolation
from medmesh_edge.node import running
from medmesh_edge.tables import tasks
from medmesh_federation import remaking, results, steps
from medmesh_federation.tables import rounds

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


@pytest.mark.parametrize("opened", [False, True], ids=["before the next round opens", "while the next round is open"])
async def test_a_committed_model_that_is_lost_with_its_updates_is_made_again(
    world: World, monkeypatch: pytest.MonkeyPatch, opened: bool
) -> None:
    """Also where nodes were told already to begin with it: they wait for it, and nobody fails."""
    lost, ended, early = list[str](), list[str](), list[bool]()
    commit, begin, store, remake = results.commit, steps.open_round, results.store, remaking.remake

    async def lose(ports: Any, *hashes: str) -> None:
        lost.extend(hashes)
        for file in ports.models.folder.glob("*/*"):  # all there is beside the kept store
            file.unlink()
        for sha256 in hashes:  # which has the same bytes of the federation before
            await ports.stores.kept.delete(sha256)

    async def committed(uow: Any, row: Any, situation: Any, made: Any, milliseconds: int) -> None:
        await commit(uow, row, situation, made, milliseconds)
        if ended and not opened and not lost:
            await lose(uow.ports, made.model.sha256, made.state.sha256)

    async def begins(uow: Any, row: Any, *further: Any) -> None:
        await begin(uow, row, *further)
        if ended and opened and not lost and row.state_object:
            await lose(uow.ports, row.model["sha256"], row.state_object["sha256"])

    async def stored(*given: Any) -> None:
        async def gone() -> bool:
            return not ended or bool(lost)

        await until(gone)
        await store(*given)

    async def remade(runtime: Any, ports: Any, row: Any) -> Any:
        early.append(await begun(runtime, 2))
        return await remake(runtime, ports, row)

    async def begun(runtime: Any, number: int) -> bool:
        async with runtime.unit() as uow:
            return bool(await uow.all(select(rounds.c.round).where(rounds.c.federation == made["federation"], rounds.c.round == number)))

    monkeypatch.setattr(results, "commit", committed)
    monkeypatch.setattr(steps, "open_round", begins)
    monkeypatch.setattr(results, "store", stored)
    monkeypatch.setattr(remaking, "remake", remade)
    researcher, approver, folders = await with_images(world, HOSPITALS)
    async with AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(running(folder)) for folder in folders.values()]
        for _ in range(2):
            wanted: dict[str, Any] = {"rounds": 2, "baseline": False, "min_participants": 3, "lease_seconds": 20}
            made = await federation(world, researcher, approver, HOSPITALS, algorithm="fedadam", **wanted)
            await consented(nodes, made)
            view = await completed(researcher, made)
            assert [(one.round, one.attempt, one.state, len(one.answers)) for one in view.rounds[:2]] == [
                (1, 1, "committed", 3),
                (2, 1, "committed", 3),
            ]
            assert view.model is not None
            ended.append(view.model.sha256)
        for node in nodes:
            async with node.site.unit() as uow:
                assert {tuple(one) for one in await uow.all(select(tasks.c.trained).where(tasks.c.kind == "train"))} == {(1,)}
    assert set(early) == {opened}, "no round is opened that would begin with what is not there"
    assert lost and ended[0] == ended[1], "as if nothing had been lost"
