"""Evaluation by real nodes: while it trains, at the end, and what of it leaves a hospital."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from tests.e2e.test_node import two_hospitals
from tests.hospitals import completed, consented, federation, until
from tests.world import World, small_world

from medmesh.client.federation import Federation
from medmesh.client.results import cross_site, curve, gains, split, trained
from medmesh.contracts.federation import FederationView
from medmesh.embedded.ports import Ports
from medmesh.embedded.testing import RunningServers
from medmesh.learning import isolation
from medmesh_edge.node import Node, running
from medmesh_edge.policy import DEFAULT
from medmesh_edge.rounds import Rounds
from medmesh_edge.tables import cohorts, tasks
from medmesh_federation.service import SERVICE as FEDERATION

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(isolation.capability().kind == "none", reason="nothing isolates here"),
]


@pytest.fixture
async def world(servers: RunningServers, private: Path, ports: Ports) -> AsyncIterator[World]:
    async with small_world(servers, private, ports, FEDERATION, settings={"federation": {"tick_seconds": 0.1}}) as made:
        yield made


async def run(world: World, researcher: Any, approver: Any, nodes: list[Node], folders: dict[str, Path], **plan: Any) -> FederationView:
    made = await federation(world, researcher, approver, tuple(folders), baseline=False, **plan)
    await consented(nodes, made)
    view = [view async for view in Federation(researcher, made["federation"]).watch(seconds=0.2)][-1]
    assert view.state == "completed", view.failure
    return view


async def test_counts_leave_as_the_plan_and_the_hospital_say_and_time_is_told(world: World) -> None:
    # Half of thirty patients: of which, is their hospital's secret, and of a quarter too few may be left for a count of five.
    async with two_hospitals(world, holdout=0.5) as (researcher, approver, folders), AsyncExitStack() as stack:
        # Code that nobody read is another test's.
        (folders["huashan"] / "policy.toml").write_text(
            DEFAULT.replace("reviewers = 2", "reviewers = 0")
            .replace("ethics = true", "ethics = false")
            .replace("min_samples = 20", "min_samples = 1")
            .replace("min_hospitals = 3", "min_hospitals = 1"),  # its rounds see all images
            encoding="utf-8",
        )
        policy = folders["renji"] / "policy.toml"
        policy.write_text(policy.read_text(encoding="utf-8").replace("small_cell = 0 ", "small_cell = 3 "), encoding="utf-8")
        nodes = [await stack.enter_async_context(running(folder)) for folder in folders.values()]
        view = await run(world, researcher, approver, nodes, folders, evaluate_every=1, small_cell=2, rounds=2)
        answered = [answer for round_ in view.rounds for answer in round_.answers]
        losses = [answer.metrics["loss"] for answer in answered if answer.metrics]
        assert losses and all(float(f"{loss:.3g}") == loss for loss in losses), "no finer than a node tells"
        times = [taken for answer in answered for taken in answer.milliseconds.values()]
        assert times and all(int(float(f"{taken:.2g}")) == taken for taken in times)
        many = {name: {answer.samples for answer in answered if answer.hospital == name} - {None} for name in folders}
        assert all(not number % step for name, step in (("renji", 3), ("huashan", 5)) for number in many[name]) and all(many.values())
        told = [(e.hospital, e.counts) for e in view.evaluation]
        told += [(a.hospital, a.counts) for r in view.rounds for a in r.answers if a.counts is not None]
        assert len(told) == 2 + 2 * 2
        cells = {hospital: [cell for who, table in told if who == hospital for line in table for cell in line] for hospital in folders}
        assert any(cells["huashan"]) and not any(cell % 5 for cell in cells["huashan"]), "as a node begins"
        assert any(cells["renji"]) and not any(cell % 3 for cell in cells["renji"]), "the hospital's own is larger than the plan's"
        assert {one.hospital: one.small_cell for one in view.participants} == {"renji": 3, "huashan": 5}
        told_so = view.model_copy(update={"participants": tuple(p.model_copy(update={"small_cell": 0}) for p in view.participants)})
        for known, plain in zip(cross_site(view), cross_site(told_so), strict=True):
            assert known.high - known.low > plain.high - plain.low, "what a hospital rounded more coarsely is less certain"
        first, second = curve(view)
        assert (first.round, second.round) == (0, 1)
        assert second.value > 0.8 > first.value
        for one in trained(view):
            found = split(one)
            assert found is not None
            assert found.train > 0 and found.evaluate > 0 and found.aggregate > 0
            # A small update goes with the message that says so: how long that takes is not known before.
            assert set(one.answers[0].milliseconds) == {"fetch", "evaluate", "train", "store"}
        async with nodes[0].site.unit() as uow:
            kept = {row.label: sum(len(one["members"]) for one in row.members) for row in await uow.all(select(cohorts))}
        assert set(kept) == {"none", "tumour"} and min(kept.values()) > 2


async def test_each_hospitals_own_model_is_held_against_the_global_one(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async with two_hospitals(world) as (researcher, approver, folders), AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(running(folder)) for folder in folders.values()]
        view = await run(world, researcher, approver, nodes, folders, evaluate_every=1, rounds=1, algorithm="ditto")
        assert [gain.hospital for gain in gains(view)] == sorted(folders)
        assert {e.name for e in view.evaluation} == {"federated", "personal"}
        await without_the_slow(world, researcher, approver, nodes, monkeypatch)


async def without_the_slow(world: World, researcher: Any, approver: Any, nodes: list[Node], patch: pytest.MonkeyPatch) -> None:
    """On the same platform: renji still trains when the first round is over, and what it then hands in is part of the second."""
    train, over, there = Rounds._train, asyncio.Event(), asyncio.Event()

    async def at_its_pace(self: Rounds, opened: Any, plan: Any, event: Any) -> None:
        waits = {("renji", 1): over, ("huashan", 2): there}.get((self.site.settings.hospital, event.round))
        if waits is not None:
            await waits.wait()
        await train(self, opened, plan, event)

    patch.setattr(Rounds, "_train", at_its_pace)
    pace = {"quorum": 1, "staleness": 2, "decay": "1"}
    made = await federation(
        world, researcher, approver, ("huashan", "renji"), baseline=False, rounds=2, pace=pace, min_participants=1, lease_seconds=20
    )
    await consented(nodes, made)
    one = Federation(researcher, made["federation"])

    async def closed() -> bool:
        return any(r.state == "committed" for r in (await one.view()).rounds)

    async def handed_in() -> bool:
        return any(a.hospital == "renji" and a.late for a in (await one.view()).rounds[0].answers)

    await until(closed)
    over.set()
    await until(handed_in)
    there.set()
    view = await completed(researcher, made)
    first, second = view.rounds
    assert {a.hospital: (a.late, a.counted) for a in first.answers} == {"huashan": (False, None), "renji": (True, 2)}
    assert [a.hospital for a in second.answers] == ["huashan"], "who still trained was not told of the second round"
    assert first.model != second.model

    async def released() -> bool:
        async with nodes[1].site.unit() as uow:
            mine = await uow.all(select(tasks.c.round, tasks.c.state).where(tasks.c.federation == made["federation"]))
        return [(row.round, row.state) for row in mine] == [(1, "released")]

    assert await until(released), "its update goes once the round is stored in which it counted"
