"""Three real nodes train under secure aggregation: the platform never holds a model of one of them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from tests.hospitals import completed, consented, federation, until, with_images
from tests.packages import tiny
from tests.records import left
from tests.world import World, federating_world

from medmesh.contracts.federation import FederationView
from medmesh.embedded.ports import Ports
from medmesh.embedded.testing import RunningServers
from medmesh.learning import isolation
from medmesh_edge import secure
from medmesh_edge.node import running
from medmesh_edge.tables import secure_attempts, secure_opened, secure_phases, tasks

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(isolation.capability().kind == "none", reason="nothing isolates here"),
]
HOSPITALS = ("huashan", "renji", "xiehe")


@pytest.fixture
async def world(servers: RunningServers, private: Path, ports: Ports) -> AsyncIterator[World]:
    async with federating_world(servers, private, ports) as made:
        yield made


@pytest.mark.parametrize("small", [True, False], ids=["made in memory", "made of files"])
async def test_rounds_commit_and_only_masked_vectors_leave(world: World, monkeypatch: pytest.MonkeyPatch, small: bool) -> None:
    if not small:
        monkeypatch.setattr(secure, "SMALL", 0)
    researcher, approver, folders = await with_images(world, HOSPITALS)
    async with AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(running(folder)) for folder in folders.values()]
        wanted: dict[str, Any] = {"rounds": 2, "baseline": False, "min_participants": 3, "lease_seconds": 20}
        wanted |= {"evaluate_every": 1, "small_cell": 5}
        made = await federation(world, researcher, approver, HOSPITALS, secure={"threshold": 3}, **wanted)
        await consented(nodes, made)
        view = await completed(researcher, made)
        committed = [one for one in view.rounds if one.state == "committed"]
        assert [one.round for one in committed] == [1, 2, 3]
        for one in committed:
            assert len(one.answers) == 3
            quiet = [answer.samples == 1 and not answer.metrics and answer.counts is None for answer in one.answers]
            assert all(quiet), "nothing is said about one hospital"
            assert all(answer.bytes > (8 * 131 if one.kind == "train" else 8 * 5) for answer in one.answers)
            # What is known of evaluations is exactly the sum of what the nodes counted.
            told = [await counted(node, one.round) for node in nodes]
            tables = [found if one.kind == "train" else found[0] for found in told]
            sums = tuple(tuple(sum(cells) for cells in zip(*lines, strict=True)) for lines in zip(*tables, strict=True))
            assert sums == (one.sum.counts if one.kind == "train" and one.sum else view.evaluation[0].counts)
            assert sum(map(sum, sums)) and all(cell % 5 == 0 for table in tables for line in table for cell in line)

        async def forgotten() -> bool:
            left = []
            for node in nodes:
                async with node.site.unit() as uow:
                    left += await uow.all(select(secure_attempts))
            return not left

        await until(forgotten)
        for node in nodes:
            async with node.site.unit() as uow:
                assert len(await uow.all(select(secure_opened))) == 3, "which list was signed is never forgotten"
        # Only the first round exchanges keys and shares by themselves; nobody's vector was missing, so that nobody was asked over whom.
        phases = {1: ("keys", "shares", "reveal"), 2: ("reveal",), 3: ("reveal",)}
        said = await left(world.p, "federation.secure", 3 * 5 + 3 * 5 + 5)
        answered = Counter((r["src"]["service"], r["detail"]["round"], r["detail"]["phase"]) for r in said)
        uploads = await left(world.p, "federation.upload", 3 * 3)
        sent = Counter((r["agents"][0]["who"], r["detail"]["round"], r["detail"]["masks"]) for r in uploads)
        assert sent == {(f"hospital:{name}", number, len(HOSPITALS)): 1 for name in HOSPITALS for number in (1, 2, 3)}
        wanted_of = {(f"edge:{name}", number, phase): 1 for name in HOSPITALS for number in phases for phase in phases[number]}
        assert {key: n for key, n in answered.items() if key[0].startswith("edge:")} == wanted_of
        collected = [(number, phase) for number in phases for phase in phases[number]]
        assert {(r["detail"]["round"], r["detail"]["phase"]) for r in said if r["act"] == "C"} == set(collected)
        assert {r["src"]["service"] for r in await left(world.p, "federation.witnessed", 3)} >= {f"edge:{name}" for name in HOSPITALS}
    await asyncio.sleep(0)


async def counted(node: Any, number: int) -> Any:
    """As the node keeps it, to go masked."""
    async with node.site.unit() as uow:
        return (await uow.first(select(tasks).where(tasks.c.round == number))).counts


SLOW = """

def train(model, samples, schedule, on_step):
    import time

    for step in range(1, schedule.steps + 1):
        time.sleep(0.2)
        on_step(step, 0.0)
    return 0.0
"""


async def test_phases_are_answered_beside_the_training(world: World) -> None:
    """Keys and shares of a round are exchanged while its training runs, which takes ten seconds here."""
    researcher, approver, folders = await with_images(world, HOSPITALS)
    tiny(world.p.folder, SLOW)
    async with AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(running(folder)) for folder in folders.values()]
        wanted: dict[str, Any] = {"rounds": 1, "baseline": False, "min_participants": 3, "lease_seconds": 20, "local_steps": 50}
        slow = world.p.folder / "package-source"
        short = {"threshold": 3, "ring": 32, "bits": 12}
        made = await federation(world, researcher, approver, HOSPITALS, slow, secure=short, **wanted)
        await consented(nodes, made)

        async def masked() -> Any:
            """A hospital has all it needs for its masks, and no model yet."""
            async with nodes[0].site.unit() as uow:
                done = select(secure_phases).where(secure_phases.c.phase == "vectors")
                task = await uow.first(select(tasks))
                assert task is None or task.state == "received", "trained before its phases were answered"
                return await uow.first(done)

        assert await until(masked, 60)

        async def finished() -> Any:
            view = await researcher.ask(f"/v1/federations/{made['federation']}", FederationView)
            assert view.state not in ("failed", "cancelled"), view.failure
            return view if view.state == "completed" else None

        view = await until(finished, 60)
        assert all(4 * 131 < answer.bytes < 8 * 131 for one in view.rounds for answer in one.answers), "numbers of 32 bits"
        for node in nodes:
            await until(lambda node=node: _no_keys(node))


async def _no_keys(node: Any) -> bool:
    return not list(node.site.layout.keys.glob("attempt-*"))
