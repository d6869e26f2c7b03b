"""`medmesh federation quarantine|release|rollback|adjust` as a person types them, in both languages, and what is shown of what they did."""

from __future__ import annotations

import asyncio
import csv
import io
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.federations import accept, living, make_plan, opened, submit
from tests.world import World, small_world

from medmesh import cli
from medmesh.cli import session
from medmesh.client import Gateway
from medmesh.client.federation import Federation
from medmesh.contracts.federation import RoundCommitted
from medmesh.contracts.plan import Range, plan_hash
from medmesh.embedded.ports import Ports
from medmesh.embedded.testing import RunningServers
from medmesh.errors import Problem
from medmesh_federation.service import SERVICE as FEDERATION

THREE = ("huashan", "renji", "tongji")
TWO = ("huashan", "tongji")


@pytest.fixture
async def world(servers: RunningServers, private: Path, ports: Ports) -> AsyncIterator[World]:
    async with small_world(servers, private, ports, FEDERATION, settings={"federation": {"tick_seconds": 0.1}}) as made:
        yield made


@dataclass
class Terminal:
    """One person's, in a language."""

    monkeypatch: pytest.MonkeyPatch
    capsys: pytest.CaptureFixture[str]

    async def type(self, *words: str, language: str = "en") -> tuple[int, str, str]:
        """(exit code, what was printed, what was said beside it)."""
        self.monkeypatch.setenv("MEDMESH_LANG", language)
        self.capsys.readouterr()

        def run() -> int:
            with pytest.raises(SystemExit) as ended:
                cli.main(["federation", *words])
            return int(ended.value.code or 0)

        code = await asyncio.to_thread(run)
        said = self.capsys.readouterr()
        return code, said.out, said.err


async def begun(world: World, li: Gateway, wu: Gateway) -> str:
    """A federation of three, begun."""
    p, now = world.p, datetime.now(UTC)
    values: dict[str, Any] = {"accept_by": now + timedelta(seconds=120), "start_at": now, "lease_seconds": 120, "rounds": 5}
    values |= {"evaluate_every": 1, "ranges": {"learning_rate": Range(low="0.01", high="0.2")}}
    wanted = await make_plan(p, THREE, **values)
    made = await li.command("POST", "/v1/federations", wanted.model_dump(mode="json"))
    await accept(p, made["federation"], wanted.plan, *THREE)
    assert made["plan_hash"] == plan_hash(wanted.plan)
    await world.decide(wu, await Federation(li, made["federation"]).request_start())
    return str(made["federation"])


async def trained(world: World, number: int, right: int, who: tuple[str, ...], attempt: int = 1) -> None:
    one = (await opened(world.p, number, attempt)).data
    for hospital in who:
        counts = ((right, 10 - right), (10 - right, right))
        assert (await submit(world.p, one, hospital, float(number), counts=counts)).succeeded
    await world.p.wait(RoundCommitted, lambda event: event.data.round == number, timeout=60)


async def test_what_people_type_and_see(world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    admin = await world.admin()
    li, wu = [await world.user(admin, name, role) for name, role in (("li", "researcher"), ("wu", "approver"))]
    monkeypatch.setenv("MEDMESH_SESSION", str(world.p.folder / "li.json"))
    session.save(world.url, world.ca, li.credentials.session, "li")  # type: ignore[union-attr]
    at = Terminal(monkeypatch, capsys)
    for command in ("quarantine", "release", "rollback", "adjust"):
        code, out, _ = await at.type(command, "--help")
        assert (code, f"medmesh federation {command} FEDERATION" in out) == (0, True), "an example"

    async with living(world.p, *THREE):
        one = await begun(world, li, wu)
        steered = Federation(li, one)
        await trained(world, 1, 5, THREE)
        await opened(world.p, 2)

        # Quarantine: at once; its end waits for others, and that is shown.
        assert (await at.type("quarantine", one, "renji"))[0] == 2, "without a reason"
        code, _, err = await at.type("quarantine", one, "nobody", "--reason", "who", language="zh")
        assert (code, "医院 nobody 未参与联邦" in err) == (1, True)
        code, out, err = await at.type("quarantine", one, "renji", "--reason", "miscalibrated")
        assert (code, json.loads(out)) == (0, {"state": "quarantined"})
        assert f"medmesh federation release {one} renji --request" in err
        assert (await at.type("quarantine", one, "renji", "--reason", "again"))[0] == 0, "it is already"
        for language, wanted in (("en", "renji is in quarantine (miscalibrated)"), ("zh", "renji 已被隔离（miscalibrated）")):
            assert wanted in (await at.type("show", one, language=language))[1]
        code, _, err = await at.type("release", one, "tongji", "--request")
        assert (code, "not in this quarantine" in err) == (1, True)
        code, out, _ = await at.type("release", one, "renji")
        assert (code, out.startswith(f"medmesh approval request federation.release {one}/renji ")) == (0, True)
        code, out, err = await at.type("release", one, "renji", "--request", language="zh")
        asked = json.loads(out)
        assert (code, "解除对 renji 的隔离 待审批（0/1）" in err, asked["approval"] in err) == (0, True, True)
        assert "the release of renji waits for approval (0/1)" in (await at.type("show", one))[1]
        assert asked["summary"] == {"federation": "tiny-model", "hospital": "renji", "reason": "miscalibrated"}
        await trained(world, 2, 9, TWO)
        await opened(world.p, 3)
        await world.decide(wu, asked["approval"])

        async def back() -> None:
            while {p.hospital: p.state for p in (await steered.view()).participants}["renji"] == "quarantined":
                await asyncio.sleep(0.05)

        await asyncio.wait_for(back(), 60)
        assert "quarantine" not in (await at.type("show", one))[1]

        # Ranges: what is outside is refused in words, and changes nothing.
        code, _, err = await at.type("adjust", one, "--learning-rate", "0.5")
        assert (code, "does not let this be changed" in err, (await steered.view()).changed) == (1, True, {})
        code, _, err = await at.type("adjust", one, "--steps", "6", language="zh")
        assert (code, "医院签署的方案不允许如此更改" in err) == (1, True)
        code, out, _ = await at.type("adjust", one, "--learning-rate", "0.05")
        assert (code, json.loads(out)) == (0, {"changed": {"learning_rate": "0.05"}})

        # Roll-back: nothing before others approved.
        await trained(world, 3, 7, TWO)
        await opened(world.p, 4)
        assert (await at.type("rollback", one))[0] == 2
        assert (await at.type("rollback", one, "--round", "-1"))[0] == 2
        code, _, err = await at.type("rollback", one, "--round", "4", language="zh")
        assert (code, "无法回退到第 4 轮" in err) == (1, True)
        assert (await at.type("rollback", one, "--round", "3"))[0] == 1, "nothing lies after it"
        code, out, err = await at.type("rollback", one, "--round", "1", "--request")
        asked = json.loads(out)
        assert (code, asked["summary"]["undone"]) == (0, "2, 3")
        assert "going back to round 1 waits for approval (0/1)" in err
        assert not any(r.undone for r in (await steered.view()).rounds)
        await world.decide(wu, asked["approval"])
        await opened(world.p, 4, 2)
        code, out, _ = await at.type("show", one)
        assert "rounds undone: 2, 3; it went on from round 1" in out
        assert [line.split()[2:4] for line in out.splitlines() if line.strip().startswith("round 2.1")] == [["train", "undone"]]
        assert "已撤销轮次：2, 3；其后自第 1 轮继续" in (await at.type("show", one, language="zh"))[1]
        code, _, err = await at.type("rollback", one, "--round", "2")
        assert (code, "it was undone itself" in err) == (1, True)

        following = asyncio.create_task(steered.watch(0.2).__anext__())
        await following
        await trained(world, 4, 6, THREE, attempt=2)
        await trained(world, 5, 8, THREE)
        await opened(world.p, 6)
        with pytest.raises(Problem):
            await steered.request_rollback(9)

        # What is drawn and listed claims nothing of the rounds that are undone.
        code, out, _ = await at.type("plot", one, "--out", str(world.p.folder / "drawn"))
        assert code == 0, out
        rows = list(csv.DictReader(io.StringIO((world.p.folder / "drawn.csv").read_text())))
        said = {(r["round"], r["attempt"], r["state"], r["model_of_round"], r["value"]) for r in rows if r["metric"] == "balanced_accuracy"}
        assert said == {
            ("1", "1", "committed", "0", "0.5"),
            ("2", "1", "undone", "1", "0.9"),
            ("3", "1", "undone", "2", "0.7"),
            ("4", "2", "committed", "1", "0.6"),
            ("5", "1", "committed", "4", "0.8"),
        }
        assert (await at.type("cancel", one, "--reason", "enough"))[0] == 0
        code, out, _ = await at.type("watch", one)
        assert (code, "rounds undone: 2, 3" in out) == (1, True), "it did not complete"
        assert (await at.type("result", one))[0] == 1
        code, _, err = await at.type("quarantine", one, "renji", "--reason", "late")
        assert code == 1 and err


async def test_what_was_revoked_over_the_gateway_is_asked_for_again(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    admin = await world.admin()
    li, wu = [await world.user(admin, name, role) for name, role in (("li", "researcher"), ("wu", "approver"))]
    monkeypatch.setenv("MEDMESH_SESSION", str(world.p.folder / "li.json"))
    session.save(world.url, world.ca, li.credentials.session, "li")  # type: ignore[union-attr]
    at, now = Terminal(monkeypatch, capsys), datetime.now(UTC)
    wanted = await make_plan(world.p, THREE, accept_by=now + timedelta(days=3), start_at=now + timedelta(days=2))
    one = Federation(li, (await li.command("POST", "/v1/federations", wanted.model_dump(mode="json")))["federation"])
    await accept(world.p, one.federation, wanted.plan, *THREE)
    approval = await one.request_start()
    await world.decide(wu, approval)

    async def state(wanted: str) -> None:
        async with asyncio.timeout(30):
            while (await one.view()).state != wanted:
                await asyncio.sleep(0.05)

    async with living(world.p, *THREE):
        await state("queued")
        for language, text in (("en", "which is too early: it will need another"), ("zh", "早于可开始时间，届时须重新申请")):
            assert text in (await at.type("show", one.federation, language=language))[1], "an approval holds a day"
        await li.command("POST", f"/v1/approvals/{approval}/revocation", {"reason": "second thoughts"})
        await state("ready")
        for language, text in (("en", "was revoked: it needs another"), ("zh", "启动审批已被撤销")):
            assert text in (await at.type("show", one.federation, language=language))[1]
        await world.decide(wu, await one.request_start())
        await state("queued")
