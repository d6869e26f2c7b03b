"""The worker of a node has addresses for the data that it is given, and is another one when they have grown."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tests.packages import tiny
from tests.unit.edge.test_privacy import SETTINGS, _knows
from tests.unit.federated.test_plan import plan

from medmesh.contracts.message import ObjectRef
from medmesh.errors import Problem
from medmesh.learning import isolation, weights
from medmesh.learning import package as packages
from medmesh.learning.host import Worker, worker
from medmesh_edge import code, environments, samples
from medmesh_edge.policy import DEFAULT
from medmesh_edge.ports import site
from medmesh_edge.settings import Layout
from medmesh_edge.workers import Kept

GIB = 2**30


@dataclass
class Started:
    """What was started with how many addresses, and how often the code was looked at."""

    sizes: list[int] = field(default_factory=list)
    begun: list[int] = field(default_factory=list)
    looked: int = 0


@pytest.fixture
async def kept(private: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Kept, Started]]:
    read: packages.Package = tiny(private)
    said = Started()

    async def fetched(*_: Any) -> packages.Package:
        return read

    async def allowed(*_: Any) -> None:
        said.looked += 1

    async def approved(*_: Any) -> str:
        return ""

    async def size(*_: Any) -> int:
        return said.sizes.pop(0) if said.sizes else 1

    @asynccontextmanager
    async def start(_package: Any, _folder: Path, *, limits: Any, **_: Any) -> AsyncIterator[Any]:
        said.begun.append(limits.mapped_bytes)
        yield SimpleNamespace(begin=lambda: True)

    monkeypatch.setattr(code, "fetch", fetched)
    monkeypatch.setattr(code, "allowed", allowed)
    monkeypatch.setattr(samples, "size", size)
    monkeypatch.setattr(environments, "allowed", approved)
    SETTINGS.save(private)
    Layout(private).policy.write_text(DEFAULT, "utf-8")
    async with site(private) as opened:
        roster = object()
        opened.roster_file = lambda: roster  # type: ignore[assignment, return-value]
        for name in ("f", "g"):
            await _knows(opened, name, plan(), "running")
        made = Kept(opened, None, start)  # type: ignore[arg-type]
        yield made, said
        await made.close()


PACKAGE = ObjectRef(sha256="0" * 64, bytes=1)


async def test_a_worker_has_addresses_for_its_data_and_goes_when_they_grew(kept: tuple[Kept, Started]) -> None:
    one, said = kept
    said.sizes += [8 * GIB, 8 * GIB + 1, 20 * GIB, 20 * GIB]
    found = [await one.of(PACKAGE, plan(), "f") for _ in range(4)]
    assert said.begun[0] > 16 * GIB and said.begun[1] > 40 * GIB and len(said.begun) == 2, (
        "twice: what was given before may be mapped still"
    )
    assert found[0] is found[1] and found[2] is found[3] and found[1] is not found[2]


async def test_a_worker_goes_when_the_hospitals_rules_are_others(kept: tuple[Kept, Started]) -> None:
    """They say which code may run, and how much it may take."""
    one, said = kept
    first = await one.of(PACKAGE, plan(), "f")
    assert await one.of(PACKAGE, plan(), "f") is first
    one.site.layout.policy.write_text(DEFAULT.replace("small_cell = 5 ", "small_cell = 6 "), "utf-8")
    assert await one.of(PACKAGE, plan(), "f") is not first
    assert (len(said.begun), said.looked) == (2, 2)


BUSY = """
import time


def train(model, samples, schedule, on_step):
    end = time.process_time() + schedule.learning_rate
    while time.process_time() < end:
        pass
    return 0.0
"""


@pytest.mark.skipif(isolation.capability().kind == "none", reason="nothing isolates here")
async def test_the_limit_of_processor_time_is_one_of_a_round(
    kept: tuple[Kept, Started], private: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = kept
    read = tiny(private / "busy", BUSY)

    async def fetched(*_: Any) -> packages.Package:
        return read

    monkeypatch.setattr(code, "fetch", fetched)
    one.start = worker
    one.site.layout.policy.write_text(DEFAULT.replace("cpu_seconds = 3600", "cpu_seconds = 4"), "utf-8")
    weights.save({"x": np.zeros((16, 1, 8, 8), np.uint8), "y": np.arange(16) % 2}, private / "data")

    async def round_(seconds: float) -> Worker:
        mine = await one.of(PACKAGE, plan(), "f")
        first, data = str(mine.folder / "w0"), mine.give(private / "data", "data")
        await mine.call("initial", seed=3, out=first)
        values = {"steps": 1, "batch_size": 4, "learning_rate": seconds, "seed": 1}
        await mine.call("train", weights=first, data=data, out=str(mine.folder / "w1"), **values)
        return mine

    ran = [(await round_(1.3)).pid for _ in range(7)]
    assert 1 < len(set(ran)) < len(ran), "it stays, and is another before its time ends in the middle of a round"
    with pytest.raises(Problem) as caught:
        await round_(60)
    assert (caught.value.code, caught.value.params) == ("worker.processor", {"seconds": 4})


async def test_another_federation_has_a_worker_of_its_own(kept: tuple[Kept, Started]) -> None:
    """What code remembers of one, in memory or in files, is nothing to the initiator of the other, though the package is the same."""
    one, said = kept
    first = await one.of(PACKAGE, plan(), "f")
    second = await one.of(PACKAGE, plan(), "g")
    assert second is not first
    assert await one.of(PACKAGE, plan(), "g") is second
    assert (len(said.begun), said.looked) == (2, 2)


async def test_who_is_believed_is_looked_at_again_when_the_roster_is_another(kept: tuple[Kept, Started]) -> None:
    one, said = kept
    first = await one.of(PACKAGE, plan(), "f")
    assert await one.of(PACKAGE, plan(), "f") is first
    roster = object()
    one.site.roster_file = lambda: roster  # type: ignore[assignment, return-value]
    assert await one.of(PACKAGE, plan(), "f") is first
    assert (len(said.begun), said.looked) == (1, 2)
