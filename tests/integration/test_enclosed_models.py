"""A round's model that comes with the fact that opens the round: who gets it, what is recorded, and what a node makes of it."""

from __future__ import annotations

import asyncio
import hashlib
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select
from tests.forging import invited, small_scene
from tests.hospitals import state_of, until
from tests.records import arrived, left
from tests.world import World

from medmesh.client.gateway import Gateway
from medmesh.client.transfer import download
from medmesh.contracts.federation import FederationFailed, RoundKind, RoundOpened
from medmesh.contracts.message import ObjectRef
from medmesh.embedded.ports import Ports
from medmesh.embedded.testing import RunningServers
from medmesh.store.objects.port import ENCLOSED
from medmesh_edge import fetching
from medmesh_gateway import inbox
from medmesh_gateway.tables import inboxes

HOSPITALS = ("huashan", "renji")


async def opened(world: World, number: int, base: ObjectRef) -> None:
    await world.p.publish(
        RoundOpened(
            federation="f",
            round=number,
            attempt=1,
            kind=RoundKind.TRAIN,
            plan_hash="0" * 64,
            base=base,
            steps=1,
            seed=1,
            deadline=datetime.now(UTC) + timedelta(hours=1),
            hospitals=HOSPITALS,
        ),
        source="federation",
    )


class Hearing:
    """A hospital's open stream: (round, the bytes that came along) of what it heard."""

    def __init__(self, node: Gateway, takes: bool = True) -> None:
        self._along: bytes | None = None
        self._stream = node.inbox(0, enclosed=self._take if takes else None)

    def _take(self, data: bytes) -> None:
        assert self._along is None
        self._along = data

    async def next(self) -> tuple[Any, bytes | None]:
        self._along = None
        _, event = await asyncio.wait_for(anext(self._stream), 20)
        return event["data"].get("round"), self._along


async def greeted(world: World, *streams: Hearing) -> None:
    """A fact before the rounds, so that every stream is open."""
    await world.p.publish(FederationFailed(federation="before", code="x", hospitals=HOSPITALS), source="federation")
    for stream in streams:
        await stream.next()


async def test_it_goes_along_open_streams_that_ask_for_it_and_each_is_recorded(world: World) -> None:
    data = os.urandom(700_000)
    small = await world.p.stores.scratch.put(data)
    large = await world.p.stores.scratch.put(os.urandom(ENCLOSED + 1))
    gone = ObjectRef(sha256=hashlib.sha256(b"nobody has it").hexdigest(), bytes=13)
    async with world.node("renji") as renji, world.node("huashan") as huashan:
        asking, plain = Hearing(renji), Hearing(huashan, takes=False)
        await greeted(world, asking, plain)
        for number, base in enumerate((small, large, gone), 1):
            await opened(world, number, base)
        assert [await asking.next() for _ in range(3)] == [(1, data), (2, None), (3, None)]
        assert [await plain.next() for _ in range(3)] == [(1, None), (2, None), (3, None)]
        (record,) = await left(world.p, "object.read")
        assert record["agents"][0]["who"] == "hospital:renji"
        assert [one["digest"] for one in record["entities"]] == [small.sha256]
        assert record["detail"] == {"start": 0, "end": len(data)}
        later = Hearing(renji)
        assert [await later.next() for _ in range(4)] == [(None, None), (1, None), (2, None), (3, None)], "what is read again is fetched"
        assert len(await left(world.p, "object.read")) == 1


async def test_who_does_not_read_is_kept_little_for_and_misses_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds of many federations at once: what does not fit is fetched, and recorded is what came."""
    doorbells, hear = list[inbox.Doorbells](), inbox.Doorbells.listen

    def heard(self: inbox.Doorbells, *given: Any) -> inbox.Ear:
        doorbells.append(self)
        return hear(self, *given)

    def kept() -> list[inbox.Fact]:
        return [fact for ear in doorbells[0]._ears["renji"] for fact in ear._handed]

    monkeypatch.setattr(inbox.Doorbells, "listen", heard)
    models: list[bytes] = []

    async def one_more() -> None:
        models.append(os.urandom(1_000_000))
        await opened(world, len(models), await world.p.stores.scratch.put(models[-1]))

    async def all_there() -> bool:
        async with world.p.runtimes["gateway"].unit() as uow:
            return bool((await uow.execute(select(func.max(inboxes.c.cursor)))).scalar_one() == 1 + len(models))

    async def stays() -> bool:
        """Whether what was handed is not taken: the stream that would, runs in this loop, and gets many turns of it."""
        for _ in range(50):
            if not kept():
                return False
            await asyncio.sleep(0.01)
        return True

    async with world.node("renji") as renji:
        slow = Hearing(renji)
        await greeted(world, slow)
        # One after the other, for each to come with its model: of many at once most come without, and may all fit into the connection.
        while not await stays():
            assert len(models) < 40, "no connection holds so much"
            await one_more()
            await until(all_there, 60)
        full = len(models)
        for _ in range(12):
            await one_more()
        await until(all_there, 60)
        assert len(kept()) == 1 + 12, "the stream is not read, and its connection full"
        assert sum(len(fact.enclosed) for fact in kept()) <= 2 * ENCLOSED
        got = [await slow.next() for _ in models]
        assert [number for number, _ in got] == [*range(1, len(models) + 1)]
        assert [data for _, data in got] == models[:full] + [None] * 12
        await arrived(world.p)
        assert len(await left(world.p, "object.read")) == full
        await opened(world, 100, await world.p.stores.scratch.put(models[0]))
        assert await slow.next() == (100, models[0]), "again, once what waited was read"


@pytest.mark.parametrize("spoilt", [False, True])
async def test_a_node_fetches_no_model_that_came_and_trusts_none_with_another_digest(
    servers: RunningServers, private: Path, ports: Ports, monkeypatch: pytest.MonkeyPatch, spoilt: bool
) -> None:
    fetched: list[str] = []

    async def counted(gateway: Gateway, ref: ObjectRef, target: Path, **how: Any) -> Path:
        if target.parent.name == "models":
            fetched.append(ref.sha256)
        return await download(gateway, ref, target, **how)

    monkeypatch.setattr(fetching, "download", counted)
    if spoilt:
        take = fetching.Fetched.enclosed
        monkeypatch.setattr(fetching.Fetched, "enclosed", lambda self, data: take(self, data[:-1] + bytes([data[-1] ^ 1])))
    async with small_scene(servers, private, ports) as scene:
        made = await invited(scene, HOSPITALS, approved=True, rounds=2)
        for name in HOSPITALS:
            node = scene.nodes[name]

            async def over(node: Any = node) -> bool:
                return await state_of(node, made) == "completed"

            await until(over, 90)
    assert len(fetched) == (4 if spoilt else 0), "a model for each of two hospitals and rounds"
