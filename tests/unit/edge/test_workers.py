"""The worker of a node has addresses for the data that it is given, and is another one when they have grown."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.packages import tiny
from tests.unit.edge.test_privacy import SETTINGS, _knows
from tests.unit.federated.test_plan import plan

from medmesh.contracts.message import ObjectRef
from medmesh.learning import package as packages
from medmesh_edge import code, samples
from medmesh_edge.policy import DEFAULT
from medmesh_edge.ports import site
from medmesh_edge.settings import Layout
from medmesh_edge.workers import Kept

GIB = 2**30


async def test_a_worker_has_addresses_for_its_data_and_goes_when_they_grew(private: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    read: packages.Package = tiny(private)

    async def fetched(*_: Any) -> packages.Package:
        return read

    async def fine(*_: Any) -> None:
        return None

    async def size(*_: Any) -> int:
        return sizes.pop(0)

    monkeypatch.setattr(code, "fetch", fetched)
    monkeypatch.setattr(code, "allowed", fine)
    monkeypatch.setattr(samples, "size", size)
    begun: list[int] = []

    @asynccontextmanager
    async def start(_package: Any, _folder: Path, *, limits: Any, **_: Any) -> AsyncIterator[Any]:
        begun.append(limits.mapped_bytes)
        yield object()

    SETTINGS.save(private)
    Layout(private).policy.write_text(DEFAULT, "utf-8")
    async with site(private) as opened:
        await _knows(opened, "f", plan(), "running")
        kept = Kept(opened, None, start)  # type: ignore[arg-type]
        found = []
        for needed in (8 * GIB, 8 * GIB + 1, 20 * GIB, 20 * GIB):
            sizes.append(needed)
            found.append(await kept.of(ObjectRef(sha256="0" * 64, bytes=1), plan(), "f"))
        await kept.close()
    assert begun[0] > 16 * GIB and begun[1] > 40 * GIB and len(begun) == 2, "twice: what was given before may be mapped still"
    assert found[0] is found[1] and found[2] is found[3] and found[1] is not found[2]
