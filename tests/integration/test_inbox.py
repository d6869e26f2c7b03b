"""A hospital's inbox at the gateway: in order, from its cursor on, once; what an open stream is handed and what wakes it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select
from tests.world import World, small_world

from medmesh.contracts.federation import FederationFailed, RoundKind, RoundOpened, RoundStored
from medmesh.contracts.message import ObjectRef
from medmesh.embedded.ports import Ports
from medmesh.embedded.testing import RunningServers
from medmesh.errors import Problem
from medmesh_gateway import inbox
from medmesh_gateway.tables import inboxes


async def test_a_hospital_reads_its_own_inbox_in_order_and_goes_on_after_its_cursor(world: World) -> None:
    async with world.node("renji") as renji, world.node("huashan") as huashan:
        for n in range(5):
            await world.p.publish(FederationFailed(federation=f"f{n}", code="x", hospitals=("renji",)), source="federation")
        await world.p.publish(FederationFailed(federation="both", code="x", hospitals=("huashan", "renji")), source="federation")
        got: list[tuple[int, str]] = []
        async with asyncio.timeout(20):
            async for cursor, event in renji.inbox(0):
                assert "actor" not in event
                got.append((cursor, event["data"]["federation"]))
                if len(got) == 6:
                    break
        assert got == [(1, "f0"), (2, "f1"), (3, "f2"), (4, "f3"), (5, "f4"), (6, "both")]
        assert [cursor for cursor, _ in await renji.poll(4, 0)] == [5, 6]
        assert [event["data"]["federation"] for _, event in await huashan.poll(0, 5)] == ["both"]
        waiting = asyncio.create_task(renji.poll(6, 20))
        await asyncio.sleep(0.3)
        await world.p.publish(FederationFailed(federation="late", code="x", hospitals=("renji",)), source="federation")
        assert [cursor for cursor, _ in await asyncio.wait_for(waiting, 5)] == [7]


async def test_of_what_is_for_each_alone_a_hospital_reads_its_own_on_its_stream_and_again_from_the_table(world: World) -> None:
    ours, theirs = {"huashan": "for renji", "renji": "its own"}, {"renji": "for huashan"}
    told = RoundOpened(
        federation="f",
        round=2,
        attempt=1,
        kind=RoundKind.TRAIN,
        plan_hash="0" * 64,
        base=ObjectRef(sha256="0" * 64, bytes=1),
        steps=1,
        seed=1,
        deadline=datetime.now(UTC),
        hospitals=("renji", "ruijin", "huashan"),
        sealed={"renji": ours, "huashan": theirs},
    )
    async with world.node("renji") as renji, world.node("huashan") as huashan, world.node("ruijin") as ruijin, asyncio.timeout(30):
        stream = renji.inbox(0)
        await world.p.publish(FederationFailed(federation="before", code="x", hospitals=("renji",)), source="federation")
        await anext(stream)
        await world.p.publish(told, source="federation")
        cursor, event = await anext(stream)
        assert (cursor, event["data"]["shares"], event["data"]["round"]) == (2, ours, 2)
        for node, shares in ((renji, ours), (huashan, theirs), (ruijin, {})):
            (_, again) = (await node.poll(0, 5))[-1]
            assert RoundOpened.model_validate(again["data"]).shares == shares
            assert "sealed" not in again["data"]


async def test_an_open_stream_is_handed_what_is_committed_and_looks_at_the_table_for_what_it_missed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked, read = list[int](), inbox.read

    async def watched(database: Any, hospital: str, after: int) -> Any:
        found = await read(database, hospital, after)
        looked.append(len(found))
        return found

    monkeypatch.setattr(inbox, "read", watched)

    async def tell(n: int) -> None:
        await world.p.publish(FederationFailed(federation=f"f{n}", code="x", hospitals=("renji",)), source="federation")

    async with world.node("renji") as renji, asyncio.timeout(30):
        await tell(1)
        stream = renji.inbox(0)
        assert (await anext(stream))[0] == 1
        before = len(looked)
        for n in (2, 3, 4):
            await tell(n)
            assert (await anext(stream))[0] == n
        assert not any(looked[before:]), "what is handed over is not read"
        monkeypatch.setattr(inbox.Ear, "hand", lambda ear, fact: ear.bell.set() if fact.cursor == 5 else None)
        await tell(5)
        assert (await anext(stream))[0] == 5, "what was not handed over is found in the table"
        await stream.aclose()


async def test_that_a_round_is_stored_goes_with_the_next_fact_or_with_the_next_sign_of_life(
    servers: RunningServers, private: Path, ports: Ports
) -> None:
    model = ObjectRef(sha256="0" * 64, bytes=1)

    async def stored(p: Any, number: int) -> None:
        await p.publish(RoundStored(federation="f", round=number, attempt=1, model=model, hospitals=("renji",)), source="federation")

    async def failed(p: Any) -> None:
        await p.publish(FederationFailed(federation="f", code="x", hospitals=("renji",)), source="federation")

    made = small_world(servers, private, ports, settings={"gateway": {"alive_seconds": 8.0}})
    async with made as world, world.node("renji") as renji, asyncio.timeout(60):
        await failed(world.p)
        stream = renji.inbox(0)
        assert (await anext(stream))[0] == 1
        coming = asyncio.ensure_future(anext(stream))
        await stored(world.p, 1)
        await delivered(world, 2)
        assert not (await asyncio.wait([coming], timeout=0.3))[0], "nobody is woken for it"
        await failed(world.p)
        assert [(await coming)[1]["type"], (await anext(stream))[1]["type"]] == [RoundStored.subject(), FederationFailed.subject()]
        await stored(world.p, 2)
        assert (await anext(stream))[1]["data"]["round"] == 2, "nor does it wait for ever"
        await stored(world.p, 3)
        await delivered(world, 5)
        assert [event["data"]["round"] for _, event in await renji.poll(4, 0)] == [3]
        await stream.aclose()


async def delivered(world: World, last: int) -> None:
    """Return when the inbox of renji holds so many facts."""
    async with world.p.runtimes["gateway"].unit() as uow:
        while (await uow.execute(select(func.count()).select_from(inboxes))).scalar_one() < last:
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("after", ["-1", str(2**63), "9" * 5000])
async def test_a_cursor_that_nothing_can_have_is_refused(world: World, after: str) -> None:
    async with world.node("renji") as renji:
        for query, headers in (({"after": after}, {}), ({}, {"Last-Event-ID": after.lstrip("-") * 20})):
            with pytest.raises(Problem) as caught:
                await renji.raw("GET", "/v1/inbox", query=query, headers=headers)
            assert caught.value.code == "request.invalid"


async def test_of_a_hospitals_streams_the_newest_stay_open(world: World) -> None:
    """A node whose network was cut comes back to a gateway where its last streams still look open: it is they that go."""

    async def tell(n: int) -> None:
        await world.p.publish(FederationFailed(federation=f"f{n}", code="x", hospitals=("renji", "huashan")), source="federation")

    async with world.node("renji") as renji, world.node("huashan") as huashan, asyncio.timeout(60):
        await tell(1)
        other = huashan.inbox(0)
        streams = [renji.inbox(0) for _ in range(inbox.MOST + 1)]
        for stream in (other, *streams):
            assert (await anext(stream))[0] == 1
        with pytest.raises(Problem) as caught:
            await anext(streams[0])
        assert (caught.value.code, caught.value.params) == ("inbox.displaced", {"hospital": "renji", "most": inbox.MOST})
        await tell(2)
        for stream in (other, *streams[1:]):
            assert (await anext(stream))[0] == 2
        for stream in (other, *streams[1:]):
            await stream.aclose()


async def test_a_displaced_stream_that_nobody_reads_is_cut_off(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    doorbells = world.p.runtimes["gateway"].ports.doorbells
    monkeypatch.setattr(inbox, "PATIENCE", 0.3)
    written, large = inbox.written, list[int]()

    def more_than_the_network_holds(fact: Any) -> list[bytes | memoryview]:
        if large:
            return written(fact)
        large.append(fact.cursor)
        return [*written(fact), *[b": %s\n\n" % (b"x" * 250_000)] * 256]

    monkeypatch.setattr(inbox, "written", more_than_the_network_holds)
    async with world.node("renji") as renji, asyncio.timeout(60):
        for n in range(2):
            await world.p.publish(FederationFailed(federation=f"f{n}", code="x", hospitals=("renji",)), source="federation")
        await delivered(world, 2)
        async with renji.stream("/v1/inbox", query={"after": 0}, headers={"Accept": "text/event-stream"}, read=60):
            await until(lambda: large)
            (stuck,) = doorbells._ears["renji"]
            streams = [renji.inbox(0) for _ in range(inbox.MOST)]
            for stream in streams:
                assert (await anext(stream))[0] == 1
            assert stuck.displaced
            await until(lambda: stuck not in doorbells._ears["renji"])
            for stream in streams:
                assert (await anext(stream))[0] == 2
                await stream.aclose()


async def until(ready: Callable[[], Any]) -> Any:
    while not (found := ready()):
        await asyncio.sleep(0.05)
    return found
