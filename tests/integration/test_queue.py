"""What a federation waits for, its turn, and who is not asked again, on real servers with pretended hospitals."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.federations import SETTINGS, accept, alive, living, make_plan, opened, start, submit, view
from tests.platform import Platform, platform

from medmesh.contracts.federation import (
    AdjustFederation,
    CancelFederation,
    FederationCompleted,
    FederationStarted,
    ParticipantDropped,
    ReportFailure,
    RoundOpened,
)
from medmesh.contracts.message import Command
from medmesh.contracts.plan import Plan
from medmesh.embedded.testing import RunningServers
from medmesh.federated.chain import agreed
from medmesh.service.runtime import running as another
from medmesh_federation import queue
from medmesh_federation.coordinator import Coordinator
from medmesh_federation.service import SERVICE

THREE = ("huashan", "renji", "tongji")


@pytest.fixture
async def p(servers: RunningServers, private: Path) -> AsyncIterator[Platform]:
    settings = {"federation": {**SETTINGS["federation"], "running_per_hospital": 1, "running_per_initiator": 2}}
    async with platform(servers, private, SERVICE, settings=settings) as made:
        yield made


async def do(p: Platform, command: Command, who: str = "li") -> None:
    done = await p.send(command, p.hospital(who) if who in THREE else p.person(who, "researcher"))
    assert done.succeeded, done.problem


async def running(p: Platform, federation: str) -> None:
    await p.wait(FederationStarted, lambda event: event.data.federation == federation)


async def waits(p: Platform, federation: str, *wanted: str) -> None:
    """As people see it; a while may pass until it is so."""
    found: tuple[str, ...] = ()
    try:
        async with asyncio.timeout(10):
            while (found := (await view(p, federation)).waiting) != wanted:
                await alive(p, *THREE)
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise AssertionError(f"{found} instead of {wanted}") from None


async def test_what_it_waits_for_is_said_until_it_runs(p: Platform) -> None:
    late = datetime.now(UTC) + timedelta(hours=1)
    wanted = await make_plan(p, THREE, accept_by=late, start_at=late)
    done = await p.send(wanted, p.person("li", "researcher"))
    federation = str((done.result or {})["federation"])
    await waits(p, federation, "answer:huashan", "answer:renji", "answer:tongji", "approval", "time")
    await accept(p, federation, wanted.plan, "huashan", "renji")
    await waits(p, federation, "answer:tongji", "approval", "time")
    await accept(p, federation, wanted.plan, "tongji")
    await waits(p, federation, "approval", "time")


async def test_a_hospital_works_for_as_many_as_it_may_and_the_next_begins_when_one_is_over(p: Platform) -> None:
    first = await start(p, ("huashan", "renji"))
    await running(p, first)
    second = await start(p, ("renji", "tongji"))
    await waits(p, second, "busy:renji")
    assert (await view(p, second)).state == "queued"
    assert ((await view(p, second)).ahead, (await view(p, second)).not_before) == (0, None), "nothing is known of the first yet"
    third = await start(p, ("renji", "xiehe"))
    await waits(p, third, "busy:renji")
    assert (await view(p, third)).ahead == 1
    for hospital in ("huashan", "renji"):
        assert (await submit(p, (await opened(p, 1)).data, hospital, 1.0)).succeeded
    await opened(p, 2)
    soonest = (await view(p, second)).not_before
    assert soonest is not None
    assert soonest > datetime.now(UTC), "two rounds of the first are left"
    await do(p, CancelFederation(federation=first, reason="enough"))
    await running(p, second)
    assert (await view(p, second)).waiting == ()


async def test_the_older_begins_first_also_where_the_younger_is_looked_at_first(p: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    first = await start(p, ("huashan", "renji"))
    await running(p, first)
    older = await start(p, ("renji", "tongji"))
    younger = await start(p, ("renji", "xiehe"))
    open_ = Coordinator._open

    async def backwards(self: Coordinator) -> list[str]:
        return (await open_(self))[::-1]

    monkeypatch.setattr(Coordinator, "_open", backwards)
    async with living(p, "renji", "tongji", "xiehe"):
        for federation in (older, younger):
            await waits(p, federation, "busy:renji")
        await do(p, CancelFederation(federation=first, reason="enough"))
        await running(p, older)
        assert (await view(p, younger)).state == "queued"


async def test_two_coordinators_do_not_start_what_only_one_of_may_run(p: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each looks at a federation of its own when a hospital becomes free, and takes its time between looking and starting."""
    first = await start(p, ("huashan", "renji"))
    await running(p, first)
    waiting = [await start(p, ("renji", other), min_participants=1) for other in ("tongji", "xiehe")]
    for federation in waiting:
        await waits(p, federation, "busy:renji")
    looked, quotas = set[str](), queue.quotas

    async def slowly(uow: Any, row: Any, ports: Any) -> tuple[str, ...]:
        found = await quotas(uow, row, ports)
        if not found and row.state == "queued":
            looked.add(row.federation)
            await asyncio.sleep(1.5)
        return found

    monkeypatch.setattr(queue, "quotas", slowly)
    settings = p.runtimes["federation"].settings.model_copy(update={"port": 0})
    async with another(SERVICE, settings), living(p, "renji", "tongji", "xiehe"):
        await do(p, CancelFederation(federation=first, reason="enough"))
        await p.wait(FederationStarted, lambda event: event.data.federation in waiting)
        await asyncio.sleep(4)
        started = [event.data.federation for event in p.emitted(FederationStarted) if event.data.federation in waiting]
        assert len(started) == 1
        (left,) = set(waiting) - set(started)
        assert (await view(p, left)).state == "queued"
    assert started[0] in looked


async def test_a_person_has_as_many_running_as_one_may(p: Platform) -> None:
    p.runtimes["federation"].ports.settings = p.runtimes["federation"].ports.settings.model_copy(update={"running_per_initiator": 1})
    first = await start(p, ("huashan", "renji"))
    await running(p, first)
    second = await start(p, ("tongji", "xiehe"))
    async with asyncio.timeout(10):
        while (await view(p, second)).waiting != ("initiator",):
            await alive(p, "tongji", "xiehe")
            await asyncio.sleep(0.1)


async def test_a_hospital_that_fails_too_often_is_not_asked_again_and_what_it_gave_stays_said(p: Platform) -> None:
    federation = await start(p, THREE, rounds=4, max_drops=2)
    for number in (1, 2, 3, 4):
        round_ = (await opened(p, number)).data
        fails = number in (2, 3)
        assert ("tongji" in round_.hospitals) == (number < 4)
        if fails:
            about = {"federation": federation, "round": round_.round, "attempt": round_.attempt}
            await do(p, ReportFailure(**about, code="worker.failed"), "tongji")
        for hospital in round_.hospitals:
            if not (fails and hospital == "tongji"):
                assert (await submit(p, round_, hospital, float(number))).succeeded
        await alive(p, *THREE)
    completed = (await p.wait(FederationCompleted)).data
    assert completed.participants == ("huashan", "renji")
    assert completed.contributors == THREE, "its first update is in the model"
    assert completed.rounds == 4
    dropped = [(e.data.round, e.data.excluded) for e in p.emitted(ParticipantDropped)]
    assert dropped == [(2, False), (3, True)]
    seen = {one.hospital: one for one in (await view(p, federation)).participants}
    assert (seen["tongji"].state, seen["tongji"].drops) == ("excluded", 2)
    assert [r["detail"]["excluded"] for r in await p.audited("federation") if r["sub"] == "federation.drop"] == [False, True]
    assert len(p.emitted(RoundOpened)) == 4


async def test_what_an_initiator_may_change_is_changed_from_the_next_round_on(p: Platform) -> None:
    ranges = {"learning_rate": {"low": "0.05", "high": "0.2"}, "local_steps": {"low": "1", "high": "9"}}
    federation = await start(p, ("huashan", "renji"), ranges=ranges)
    first = (await opened(p, 1)).data

    async def adjust(who: str, **values: str) -> str:
        done = await p.send(AdjustFederation(federation=federation, changed=values), p.person(who, "researcher"))  # type: ignore[arg-type]
        return str(done.problem["code"]) if done.problem else ""

    assert await adjust("li", learning_rate="0.21") == "federation.outside"
    assert await adjust("li", batch_size="9") == "federation.outside"
    assert await adjust("wang", learning_rate="0.2") == "federation.initiator"
    assert await adjust("li", learning_rate="0.2", local_steps="7") == ""
    assert await adjust("li", learning_rate="0.2", local_steps="7") == "", "again"
    assert (await view(p, federation)).changed == {"learning_rate": "0.2", "local_steps": "7"}
    for hospital in first.hospitals:
        assert (await submit(p, first, hospital, 1.0)).succeeded
    second = (await opened(p, 2)).data
    assert (first.changed, first.steps) == ({}, 5)
    assert (second.changed, second.steps) == ({"learning_rate": "0.2", "local_steps": "7"}, 7)
    assert second.previous == first.chain
    found = Plan.model_validate((await view(p, federation)).plan.model_dump())
    assert agreed(found, second).learning_rate == "0.2", "a node accepts it"
    records = [r for r in await p.audited("federation") if r["sub"] == "federation.adjust" and r["out"] == 0]
    assert [r["detail"] for r in records if r["detail"]] == [{"learning_rate": "0.2", "local_steps": "7"}]
