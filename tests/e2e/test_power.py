"""A hospital's node that loses power: what was committed without waiting for the disk is gone, and nobody can tell by the result."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from tests.hospitals import completed, consented, enrolled, federation, pacs, until
from tests.world import World, small_world

from medmesh.client import Gateway
from medmesh.client.audit import export_log, of_a_hospital
from medmesh.embedded.ports import Ports
from medmesh.embedded.testing import RunningServers
from medmesh.learning import isolation
from medmesh.store.sqlite import Engine, Inline
from medmesh_edge import intake
from medmesh_edge.node import Node, running
from medmesh_edge.ports import site
from medmesh_federation.service import SERVICE as FEDERATION
from medmesh_registry.service import SERVICE as REGISTRY

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(isolation.capability().kind == "none", reason="nothing isolates here"),
]
HOSPITALS, ROUNDS = ("huashan", "renji"), 5
MOMENTS = ((1, ("received", 0)), (2, ("received", 1)), (3, ("sent", 1)), (4, ("released", 1)))
"""When the power goes: (round, (state of its task, how often its training was begun))."""
AFTERWARDS = ((("released", 1),), (None, ("received", 0)), (("trained", 1), ("releasable", 1)), (("releasable", 1),))
"""What the disk may say of that round then: the first is still that of the federation before, what was sent is trained, and what is deleted
is of a round that is over."""
NEWEST = "SELECT round, state, trained FROM tasks WHERE federation = (SELECT federation FROM tasks ORDER BY at DESC LIMIT 1)"


@dataclass
class Disk:
    """What the disk of one store has for certain: a copy as of the last commit that waited for it. After the first other one that is at
    the next of the moments nothing more is written, and the power goes."""

    store: Path
    moments: list[tuple[int, tuple[str, int]]]
    cut: asyncio.Event = field(default_factory=asyncio.Event)
    afterwards: list[tuple[str, int] | None] = field(default_factory=list)

    @property
    def files(self) -> Iterator[tuple[Path, Path]]:
        for end in ("", "-wal"):
            yield self.store.with_name(self.store.name + end), self.store.with_name(f"certain{end}")

    def committed(self, sql: sqlite3.Connection, certain: bool) -> None:
        if certain:
            for now, kept in self.files:
                shutil.copyfile(now, kept)
        elif self.moments and self._reached(tasks(sql), *self.moments[0]):
            self.cut.set()

    def _reached(self, tasks: Mapping[int, tuple[str, int]], number: int, wanted: tuple[str, int]) -> bool:
        # On a busy machine the round may be over before it is noted that its update was sent.
        found = tasks.get(number)
        return found == wanted or (wanted[0], found) == ("sent", ("releasable", 1))

    def back(self) -> None:
        """To what is certain."""
        self.store.with_name(f"{self.store.name}-shm").unlink(missing_ok=True)
        for now, kept in self.files:
            shutil.copyfile(kept, now)
        with closing(sqlite3.connect(self.store)) as sql:
            self.afterwards.append(tasks(sql).get(self.moments.pop(0)[0]))
        self.cut.clear()


def tasks(sql: sqlite3.Connection) -> dict[int, tuple[str, int]]:
    """By round, in the newest federation."""
    return {number: (state, trained) for number, state, trained in sql.execute(NEWEST)}


@contextmanager
def watched(disk: Disk) -> Iterator[None]:
    """Every commit on its store is told; once the power is to go nobody gets at the store."""
    commit, take = Inline.commit, Engine._take

    async def told(self: Inline) -> None:
        await commit(self)
        if Path(self.driver.execute("PRAGMA database_list").fetchone()[2]) == disk.store:
            disk.committed(self.driver, self.settled)

    async def given(self: Engine) -> Inline:
        if disk.cut.is_set() and self._engine.url.database == str(disk.store):
            await asyncio.Event().wait()
        return await take(self)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Inline, "commit", told)
        patched.setattr(Engine, "_take", given)
        yield


@pytest.fixture
async def people(servers: RunningServers, private: Path, ports: Ports) -> AsyncIterator[tuple[World, Gateway, Gateway]]:
    settings: dict[str, dict[str, Any]] = {"federation": {"tick_seconds": 0.1}}
    async with small_world(servers, private, ports, FEDERATION, REGISTRY, settings=settings) as world:
        admin = await world.admin()
        li, wu = [await world.user(admin, who, role) for who, role in (("li", "researcher"), ("wu", "approver"))]
        for hospital in HOSPITALS:
            folder = await enrolled(world, admin, wu, hospital)
            async with site(folder) as opened:
                await intake.ingest(opened, pacs(world.p.folder, hospital, 40), "brain")
        yield world, li, wu


async def federated(world: World, li: Gateway, wu: Gateway, disk: Disk) -> tuple[str, list[dict[str, Any]]]:
    """(SHA-256 of what a federation of both ends with, what is in the log of the first hospital's node), whose node loses power as `disk`
    says."""
    first, second = (world.p.folder / f"node-{hospital}" for hospital in HOSPITALS)
    async with AsyncExitStack() as stack:
        stack.enter_context(watched(disk))
        other, mine = await stack.enter_async_context(running(second)), await stack.enter_async_context(AsyncExitStack())
        node = await mine.enter_async_context(running(first))
        made = await federation(world, li, wu, HOSPITALS, rounds=ROUNDS, local_steps=5, baseline=False, lease_seconds=60)
        await consented((node, other), made)
        for _ in tuple(disk.moments):
            async with asyncio.timeout(60):
                await disk.cut.wait()
            await mine.aclose()
            await asyncio.to_thread(disk.back)
            node = await mine.enter_async_context(running(first))
        view = await completed(li, made)

        records = await logged(node, made["federation"], ROUNDS)
    assert view.model is not None
    return view.model.sha256, records


async def logged(node: Node, federation: str, rounds: int) -> list[dict[str, Any]]:
    """What is in the log of a node, once all that it told is: the last upload is recorded after the platform, which waits for nothing more,
    has it."""

    async def everything() -> list[dict[str, Any]]:
        copy = node.site.layout.folder / "copy"
        await export_log(of_a_hospital(node.gateway), copy)
        bodies = [base64.b64decode(json.loads(line)["body"]) for line in (copy / "bodies.jsonl").read_text().splitlines()]
        found = [one for one in map(json.loads, bodies) if one["src"]["service"] == node.site.emitter]
        async with node.site.unit() as uow:
            told = (await uow.execute(text("SELECT n FROM audit_counter"))).scalar_one()
        last = [one for one in found if one["sub"] == "federation.upload" and one["detail"]["round"] == rounds and federation in str(one)]
        return found if last and found[-1]["n"] == told else []

    found: list[dict[str, Any]] = await until(everything)
    return found


async def test_what_did_not_wait_for_the_disk_is_not_missed(people: tuple[World, Gateway, Gateway]) -> None:
    world, li, wu = people
    store = world.p.folder / f"node-{HOSPITALS[0]}" / "store.db"
    undisturbed, _ = await federated(world, li, wu, Disk(store, []))
    disk = Disk(store, list(MOMENTS))
    model, records = await federated(world, li, wu, disk)
    assert model == undisturbed
    assert all(found in expected for found, expected in zip(disk.afterwards, AFTERWARDS, strict=True)), disk.afterwards
    # Twice in a round is what the platform was told anew: each thing was done, and recorded, once a round of each federation.
    assert [record["n"] for record in records] == list(range(1, len(records) + 1))
    for verb in ("federation.train", "federation.upload"):
        said = Counter(record["detail"]["round"] for record in records if record["sub"] == verb)
        assert said == dict.fromkeys(range(1, ROUNDS + 1), 2), verb
