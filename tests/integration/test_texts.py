"""What people and hospitals write for federations: a text with a NUL character, which the database cannot hold, is refused at once, and
nothing of it is done."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.federations import living, make_plan, opened, view
from tests.federations import start as begun
from tests.records import Records
from tests.world import World, federating_world

from medmesh.client import Gateway
from medmesh.contracts.federation import SubmitUpdate
from medmesh.contracts.message import ObjectRef
from medmesh.contracts.plan import plan_hash
from medmesh.embedded.ports import Ports
from medmesh.embedded.testing import RunningServers
from medmesh.errors import Problem

NUL = "busy\0now"
TWO = ("huashan", "renji")


@pytest.fixture
async def world(servers: RunningServers, private: Path, ports: Ports) -> AsyncIterator[World]:
    async with federating_world(servers, private, ports) as made:
        yield made


async def answer(door: Gateway, method: str, path: str, body: dict[str, Any] | None = None) -> str:
    """The code of the problem; empty where it was done. It comes before anything that fails would be tried again."""
    async with asyncio.timeout(5):
        try:
            await (door.command(method, path, body or {}) if method == "POST" else door.request(method, path))
        except Problem as problem:
            return problem.code
    return ""


async def test_an_answer_with_nul_is_refused_at_once_and_the_same_without_is_taken(world: World) -> None:
    wanted = await make_plan(world.p, TWO, accept_by=datetime.now(UTC) + timedelta(minutes=5))
    made = await world.p.send(wanted, world.p.person("li", "researcher"))
    assert made.result, made.problem
    here = f"/v1/federations/{made.result['federation']}"
    body = {"plan_hash": plan_hash(wanted.plan), "accept": False}
    async with world.node("huashan") as huashan:
        assert await answer(huashan, "POST", f"{here}/answer", body | {"reason": NUL}) == "store.value"
        assert await answer(huashan, "POST", f"{here}/answer", body | {"accept": True, "signature": NUL}) == "ledger.note"
        states = {one.hospital: (one.state, one.reason) for one in (await view(world.p, made.result["federation"])).participants}
        assert states["huashan"] == ("invited", "")
        assert await answer(huashan, "POST", f"{here}/answer", body | {"reason": "busy now"}) == ""
        states = {one.hospital: (one.state, one.reason) for one in (await view(world.p, made.result["federation"])).participants}
        assert states["huashan"] == ("declined", "busy now")


async def test_no_text_of_a_federation_that_runs_takes_nul_and_what_has_none_is_done(world: World) -> None:
    p, admin = world.p, await world.admin()
    li = await world.user(admin, "li", "researcher")
    federation = await begun(p, TWO, rounds=1, baseline=False)
    here, round_ = f"/v1/federations/{federation}", (await opened(p, 1)).data
    before = (await view(p, federation)).model_dump(include={"state", "participants", "reason", "failure"})
    async with living(p, *TWO), world.node("huashan") as huashan:
        for door, path, body in (
            (li, f"{here}/pause", {}),
            (li, f"{here}/cancel", {}),
            (li, f"{here}/quarantine", {"hospital": "renji"}),
            (huashan, f"{here}/withdrawal", {}),
        ):
            assert await answer(door, "POST", path, body | {"reason": NUL}) == "store.value", path
        assert await answer(li, "GET", "/v1/operations/a%00") == "store.value"
        large = ObjectRef(sha256=round_.base.sha256, bytes=2**24)
        nowhere = SubmitUpdate(federation=f"{federation}\0", round=1, attempt=1, update=large, samples=10)
        done = await p.send(nowhere, p.hospital("huashan"), timeout=5)
        assert done.problem
        assert done.problem["code"] == "store.value"
        after = (await view(p, federation)).model_dump(include={"state", "participants", "reason", "failure"})
        assert after == before, "nothing of it was done"
        assert await answer(li, "POST", f"{here}/pause", {"reason": "busy now"}) == ""
        assert (await view(p, federation)).reason == "busy now"
        failed = {"round": 1, "attempt": 1, "code": NUL}
        assert await answer(huashan, "POST", f"{here}/failures", failed) == "", "who cannot go on is believed, whatever the word"
    assert ("federation", "federation.failure", 8, "unknown") in await Records(p).said()
