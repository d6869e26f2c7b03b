"""A node that loses power in rounds of secure sums: what leaves it, or is destroyed of it, rests on what the disk had by then."""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from tests.e2e.test_power import Disk, logged, tasks, watched
from tests.hospitals import completed, consented, federation, with_images
from tests.world import World, federating_world

from medmesh.client import Gateway
from medmesh.embedded.ports import Ports
from medmesh.embedded.testing import RunningServers
from medmesh.learning import isolation
from medmesh.security.keyring.file import FileKeys
from medmesh.store.objects.encrypted import EncryptedStore
from medmesh.store.prepared import Prepared
from medmesh_edge.node import Node, running
from medmesh_edge.tables import secure_opened
from medmesh_edge.tables import tasks as task_table

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(isolation.capability().kind == "none", reason="nothing isolates here"),
]
HOSPITALS, ROUNDS = ("huashan", "renji", "xiehe"), 5
CUTS = ((1, "noted as sent"), (2, "vector"), (3, "reveal"), (4, "key destroyed"), (5, "update deleted"))
"""After what of a round the power goes: a commit that the disk was not waited for, then what leaves the node or is destroyed of it."""
OVER = ("releasable", "released")
TRAINED = Prepared(select(task_table.c.round).where(task_table.c.round == 1, task_table.c.state == "trained"))


@dataclass
class Effects(Disk):
    """A disk, against which everything is held that leaves its node, or is destroyed of it, and that nobody can take back."""

    moments: list[tuple[int, tuple[str, int]]] = field(default_factory=list)
    cuts: list[tuple[int, str]] = field(default_factory=list)
    federation: str = ""
    wrong: list[str] = field(default_factory=list)
    found: Counter[tuple[int, str]] = field(default_factory=Counter)

    def committed(self, sql: sqlite3.Connection, certain: bool) -> None:
        super().committed(sql, certain)
        for number, (state, _) in tasks(sql).items() if not certain else ():
            if state == "sent" and (number, "noted as sent") not in self.found:
                self.happened(number, "noted as sent")

    def happened(self, number: int, what: str) -> None:
        if self.cut.is_set():
            return  # there is no power
        self.found[number, what] += 1
        if self.cuts and self.cuts[0] == (number, what):
            self.cuts.pop(0)
            self.cut.set()

    def rests_on(self, number: int, what: str, query: str, *values: Any) -> None:
        """Something happens now, of which the disk must answer `query`."""
        if not self.cut.is_set() and not self.asked(query, *values):
            self.wrong.append(f"round {number}: {what}")

    def asked(self, query: str, *values: Any) -> Sequence[Any]:
        """Of a copy of what is certain: looked at, it would change."""
        for _, kept in self.files:
            shutil.copyfile(kept, kept.with_name(kept.name.replace("certain", "looked-at")))
        with closing(sqlite3.connect(self.store.with_name("looked-at"))) as sql:
            return sql.execute(query, values).fetchall()

    def back(self) -> None:
        """To what is certain; see `Disk.back`."""
        self.moments.append((0, ("", 0)))
        super().back()

    def number_of(self, label: str) -> int | None:
        """Of the round whose secrets a key wraps."""
        for number in range(1, ROUNDS + 1):
            if label == f"attempt-{hashlib.sha256(f'{self.federation}:{number}:1'.encode()).hexdigest()[:24]}":
                return number
        return None


@contextmanager
def effects(disk: Effects) -> Iterator[None]:
    """Of keys and objects in the folder of its node; what leaves is told by `listening`."""
    destroy, remove, ours = FileKeys.destroy, EncryptedStore.remove, disk.store.parent

    def destroyed(self: FileKeys, label: str, version: int) -> None:
        number = disk.number_of(label) if self.folder.is_relative_to(ours) else None
        if number is not None:
            secrets = "SELECT count(*) = 0 FROM secure_attempts WHERE federation = ? AND round = ?"
            disk.rests_on(number, "key destroyed", f"SELECT 1 WHERE ({secrets})", disk.federation, number)
        destroy(self, label, version)
        if number is not None:
            disk.happened(number, "key destroyed")

    def removed(self: EncryptedStore, sha256: str) -> None:
        of = 'SELECT round, state FROM tasks WHERE federation = ? AND "update" LIKE ?'
        for number, state in disk.asked(of, disk.federation, f"%{sha256}%") if disk.federation else ():
            if state not in OVER:
                disk.wrong.append(f"round {number}: update deleted while the disk says {state}")
        remove(self, sha256)
        for number, _ in disk.asked(of, disk.federation, f"%{sha256}%") if disk.federation else ():
            disk.happened(number, "update deleted")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(FileKeys, "destroy", destroyed)
        patched.setattr(EncryptedStore, "remove", removed)
        yield


def listening(disk: Effects, node: Node) -> Node:
    """A node of which everything is held against the disk that it says to the platform about a round."""
    command = node.gateway.command

    async def said(method: str, path: str, body: Any = None, **further: Any) -> Any:
        kind, number = path.rsplit("/", 1)[-1], (body or {}).get("round")
        place = (disk.federation, number)
        if kind == "updates":
            made = "SELECT 1 FROM tasks WHERE federation = ? AND round = ? AND state IN ('trained', 'sent')"
            disk.rests_on(number, "vector of what was trained", made, *place)
            disk.rests_on(number, "vector with its masks", "SELECT 1 FROM secure_attempts WHERE federation = ? AND round = ?", *place)
            shares = "SELECT 1 FROM secure_phases WHERE federation = ? AND round = ? AND phase = 'vectors'"
            disk.rests_on(number, "vector under masks with others", shares, *place)
            if number < ROUNDS:
                ahead = "SELECT 1 FROM secure_attempts WHERE federation = ? AND round = ?"
                disk.rests_on(number, "keys of the next round", ahead, disk.federation, number + 1)
        if kind == "secure" and body["phase"] == "reveal":
            disk.rests_on(number, "the list that is opened", "SELECT 1 FROM secure_opened WHERE federation = ? AND round = ?", *place)
        answer = await command(method, path, body, **further)
        if kind == "updates":
            disk.happened(number, "vector")
        if kind == "secure":
            disk.happened(number, body["phase"])
        return answer

    node.gateway.command = said  # type: ignore[method-assign]
    return node


def after_training(other: Node, first: Node) -> None:
    """In the first round others seal their shares when `first` has trained: those of later rounds come with the round."""
    command = other.gateway.command

    async def said(method: str, path: str, body: Any = None, **further: Any) -> Any:
        if path.endswith("/secure") and (body["round"], body["phase"]) == (1, "shares"):
            while not await first.site.database.look(TRAINED):
                await asyncio.sleep(0.02)
        return await command(method, path, body, **further)

    other.gateway.command = said  # type: ignore[method-assign]


@pytest.fixture
async def people(servers: RunningServers, private: Path, ports: Ports) -> AsyncIterator[tuple[World, Gateway, Gateway, list[Path]]]:
    async with federating_world(servers, private, ports) as world:
        researcher, approver, folders = await with_images(world, HOSPITALS)
        yield world, researcher, approver, list(folders.values())


async def federated(people: tuple[World, Gateway, Gateway, list[Path]], disk: Effects) -> tuple[str, list[dict[str, Any]]]:
    """(SHA-256 of what a federation ends with, what is in the log of the first hospital's node), whose node loses power as `disk` says."""
    world, li, wu, (first, *others) = people
    async with AsyncExitStack() as stack:
        stack.enter_context(watched(disk))
        stack.enter_context(effects(disk))
        nodes = [await stack.enter_async_context(running(folder)) for folder in others]
        mine = await stack.enter_async_context(AsyncExitStack())
        node = listening(disk, await mine.enter_async_context(running(first)))
        plan: dict[str, Any] = {"rounds": ROUNDS, "local_steps": 5, "baseline": False, "min_participants": 3, "lease_seconds": 60}
        made = await federation(world, li, wu, HOSPITALS, secure={"threshold": 3}, **plan)
        disk.federation = made["federation"]
        for other in nodes:
            after_training(other, node)
        await consented((node, *nodes), made)
        for _ in tuple(disk.cuts):
            async with asyncio.timeout(90):
                await disk.cut.wait()
            await mine.aclose()
            await asyncio.to_thread(disk.back)
            node = listening(disk, await mine.enter_async_context(running(first)))
        view = await completed(li, made)
        records = await logged(node, made["federation"], ROUNDS)
        async with node.site.unit() as uow:
            theirs = task_table.c.federation == made["federation"]
            done = await uow.all(select(task_table.c.round, task_table.c.trained).where(theirs, task_table.c.kind == "train"))
            assert {one.round: one.trained for one in done} == dict.fromkeys(range(1, ROUNDS + 1), 1), "nothing is trained again"
            signed = await uow.all(select(secure_opened.c.round).where(secure_opened.c.federation == made["federation"]))
            assert Counter(one.round for one in signed) == Counter(one.round for one in view.rounds), "one sum of each round is opened"
    assert view.model is not None
    assert all((one.attempt, one.state) == (1, "committed") for one in view.rounds)
    return view.model.sha256, records


async def test_a_power_cut_opens_no_second_sum_trains_nothing_again_and_tells_nothing_twice(
    people: tuple[World, Gateway, Gateway, list[Path]],
) -> None:
    store = people[-1][0] / "store.db"
    undisturbed, _ = await federated(people, Effects(store))
    disk = Effects(store, cuts=list(CUTS))
    model, records = await federated(people, disk)
    assert model == undisturbed
    assert not disk.wrong, "left or was destroyed before the disk knew why"
    assert not disk.cuts
    assert [record["n"] for record in records] == list(range(1, len(records) + 1))
    mine = [r for r in records if any(entity["id"] == disk.federation for entity in r["entities"])]
    assert not [r for r in mine if r["out"]], "nothing failed"
    for verb in ("federation.train", "federation.upload"):
        said = Counter(r["detail"]["round"] for r in mine if r["sub"] == verb)
        assert {number: said[number] for number in range(1, ROUNDS + 1)} == dict.fromkeys(range(1, ROUNDS + 1), 1), verb
    phases = Counter((r["detail"]["round"], r["detail"]["phase"]) for r in mine if r["sub"] == "federation.secure")
    assert set(phases.values()) == {1}, json.dumps([*map(str, phases)])
