"""A model that is lost for good, as people see it: that their federation waits, since when and why, and the command that ends it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tests.federations import accept, living, make_plan, opened, submit
from tests.integration.test_lost_models import THREE, losing
from tests.integration.test_steering_commands import Terminal
from tests.world import World, small_world

from medmesh.cli import session
from medmesh.client.federation import Federation
from medmesh.client.plot import figure
from medmesh.contracts.federation import FederationCompleted, ModelGone, RoundCommitted
from medmesh.contracts.plan import Privacy
from medmesh.embedded.ports import Ports
from medmesh.embedded.testing import RunningServers
from medmesh_federation.service import SERVICE as FEDERATION


@pytest.fixture
async def world(servers: RunningServers, private: Path, ports: Ports) -> AsyncIterator[World]:
    async with small_world(servers, private, ports, FEDERATION, settings={"federation": {"tick_seconds": 0.1}}) as made:
        yield made


async def test_what_is_shown_ends_it(world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The last round's, with noise that is drawn once: its federation cannot end before people went back to the round before it."""
    p, admin = world.p, await world.admin()
    li, wu = [await world.user(admin, name, role) for name, role in (("li", "researcher"), ("wu", "approver"))]
    monkeypatch.setenv("MEDMESH_SESSION", str(p.folder / "li.json"))
    session.save(world.url, world.ca, li.credentials.session, "li")  # type: ignore[union-attr]
    at, now, lost = Terminal(monkeypatch, capsys), datetime.now(UTC), losing(monkeypatch, 2)
    privacy = Privacy(unit="hospital", epsilon="50", delta="0.00001", clip="1", noise="1")
    about = {"accept_by": now + timedelta(seconds=120), "start_at": now, "lease_seconds": 120, "rounds": 2, "baseline": False}
    wanted = await make_plan(p, THREE, privacy=privacy, min_participants=3, **about)
    one = (await li.command("POST", "/v1/federations", wanted.model_dump(mode="json")))["federation"]
    await accept(p, one, wanted.plan, *THREE)
    seen = Federation(li, one)
    await world.decide(wu, await seen.request_start())
    async with living(p, *THREE):
        for number in (1, 2):
            round_ = (await opened(p, number)).data
            for hospital, value in zip(THREE, (1.0, 2.0, 4.0), strict=True):
                assert (await submit(p, round_, hospital, 10 * number + value)).succeeded
        first, last = [(await p.wait(RoundCommitted, lambda e, n=n: e.data.round == n, timeout=60)).data.model for n in (1, 2)]
        async with asyncio.timeout(60):
            while (view := await seen.view()).gone is None:
                await asyncio.sleep(0.1)
        assert last.sha256 in lost
        told = (await p.wait(ModelGone)).data
        assert (told.federation, told.round, told.why, told.hospitals) == (one, 2, "noise", THREE), "their nodes show it, too"
        assert (view.state, view.gone.round, view.gone.why, view.gone.back) == ("running", 2, "noise", 1)
        assert now < view.gone.since < datetime.now(UTC)
        how, when = f"medmesh federation rollback {one} --round 1 --request", f"{view.gone.since:%Y-%m-%d %H:%M} UTC"
        words = {
            "en": "the model of round 2 is lost and cannot be made again (the platform's noise",
            "zh": "第 2 轮的模型已丢失，无法重新生成",
        }
        for language, wanted_text in words.items():
            _, out, _ = await at.type("show", one, language=language)
            (line,) = [line for line in out.splitlines() if wanted_text in line]
            assert when in line and line.endswith(how)
        assert "the model of round 2 is lost for good" in figure(view).get_suptitle()
        watching = asyncio.create_task(at.type("watch", one))
        while "is lost" not in capsys.readouterr().out:
            await asyncio.sleep(0.2)

        # As it is shown.
        code, out, err = await at.type(*how.split()[2:])
        assert code == 0, err
        (asked,) = await seen.awaited()
        await world.decide(wu, asked.approval)
        done = (await p.wait(FederationCompleted, timeout=60)).data
    assert (done.model, done.rounds, done.undone) == (first, 1, (2,)), "what is undone keeps it from its end no longer"
    assert (await watching)[0] == 0
    view = await seen.view()
    assert view.gone is None and "lost" not in figure(view).get_suptitle()
    assert "is lost" not in (await at.type("show", one))[1]
