"""What training code runs in is approved with it: another interpreter, or other packages, train nothing until somebody approved anew."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import select, update
from tests.packages import tiny
from tests.unit.edge.test_privacy import SETTINGS, _knows
from tests.unit.federated.test_plan import plan

from medmesh.contracts.message import ObjectRef
from medmesh.embedded.files import SETTLED_NS
from medmesh.errors import Problem
from medmesh.learning import package as packages
from medmesh.learning.environment import Environment
from medmesh.security import signing, statements
from medmesh.security.signing import Signer
from medmesh.security.statements import PlanApproval
from medmesh_edge import api, code, consent, continuity, doctor, environments, interpreters, pipelines, privacy, samples
from medmesh_edge.interpreters import Interpreters
from medmesh_edge.policy import DEFAULT
from medmesh_edge.ports import Site, site
from medmesh_edge.settings import Layout
from medmesh_edge.tables import federations
from medmesh_edge.workers import Kept

PACKAGE = ObjectRef(sha256="0" * 64, bytes=1)


def runs(torch: str = "2.12.0", **others: str) -> dict[str, Any]:
    versions = {"medmesh": "0.1.0", "torch": torch, **others}
    about = {"python": "CPython 3.11.7", "build": "3.11.7", "programs": {"python": "f" * 64}, "start": {}}
    return {**about, "distributions": {name: [version, f"{name}{version}"] for name, version in versions.items()}}


@dataclass
class Asked:
    """What an interpreter would say, and how often it was asked."""

    place: Path
    said: dict[str, Any] = field(default_factory=runs)
    times: int = 0

    async def __call__(self, *_: Any) -> Environment:
        self.times += 1
        return Environment(self.said, (str(self.place),))

    def install(self, **versions: str) -> None:
        """Something else."""
        self.said = runs(**versions)
        self.place.write_text(str(self.said))


@dataclass
class World:
    """A node that runs, or will, the code of a federation f."""

    node: Site
    asked: Asked
    kept: Kept
    begun: int = 0

    async def row(self) -> Any:
        async with self.node.unit() as uow:
            return await uow.first(select(federations).where(federations.c.federation == "f"))

    async def state(self, **values: Any) -> None:
        async with self.node.unit() as uow:
            await uow.execute(update(federations).values(**values))

    async def works(self) -> Any:
        return await self.kept.of(PACKAGE, plan(), "f")

    async def refused(self) -> Problem:
        with pytest.raises(Problem) as caught:
            await self.works()
        return caught.value

    async def approved(self) -> list[PlanApproval]:
        """What this hospital signed."""
        records = [json.loads(body) for _, _, body in await self.node.database.unreceipted(1000)]
        signed = [statements.unpack(one["detail"]["statement"]) for one in records if one["sub"] == "package.approve"]
        return [statements.read(note.partition("\n\n")[0] + "\n", PlanApproval) for note in signed]


@pytest.fixture
async def world(private: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    read: packages.Package = tiny(private)

    async def fetched(*_: Any) -> packages.Package:
        return read

    async def nothing(*_: Any) -> None:
        return None

    async def size(*_: Any) -> int:
        return 1

    @asynccontextmanager
    async def start(*_: Any, **__: Any) -> AsyncIterator[Any]:
        made.begun += 1
        yield SimpleNamespace(begin=lambda: True)

    for module, name, instead in ((code, "fetch", fetched), (code, "allowed", nothing), (continuity, "view", nothing)):
        monkeypatch.setattr(module, name, instead)
    monkeypatch.setattr(code, "held", lambda *_: read)
    monkeypatch.setattr(pipelines, "check", lambda *_: None)
    monkeypatch.setattr(samples, "size", size)
    monkeypatch.setattr(consent, "refusal", lambda *_: None)
    monkeypatch.setattr(privacy, "cohort", nothing)
    monkeypatch.setattr(continuity, "keys", lambda *_: [SimpleNamespace(name="log")])
    SETTINGS.save(private)
    Layout(private).policy.write_text(DEFAULT, "utf-8")
    (private / "site-packages").write_text("")
    async with site(private) as opened:
        key = Signer.create("hospital:a")
        signing.save(opened.layout.organisation_key, key, None)
        roster = SimpleNamespace(has_hospital=lambda _: True)
        opened.roster_file = lambda: roster  # type: ignore[assignment, return-value]
        asked = Asked(private / "site-packages")
        asked.install()
        opened.interpreters = Interpreters(opened.layout, opened.settings, asked)
        await _knows(opened, "f", plan(), "invited")
        async with opened.unit() as uow:
            await uow.execute(update(federations).values(package=PACKAGE.model_dump()))
        made = World(opened, asked, Kept(opened, None, start))  # type: ignore[arg-type]
        yield made
        await made.kept.close()


async def test_another_torch_trains_nothing_until_somebody_approved_anew(world: World) -> None:
    await consent.approve(world.node, "f", "doctor-zhao")
    await world.works()
    first = world.kept.environment
    world.asked.install(torch="2.13.0", evil="1")
    await world.kept.close()
    said = await world.refused()
    assert said.code == "edge.environment_changed" and world.begun == 1
    for language in ("en", "zh"):
        assert "torch 2.12.0 → 2.13.0, evil – → 1" in said.detail(language)
        assert "medmesh edge approve f" in said.hint(language)
    assert (await world.row()).reason == "edge.environment_changed"
    await consent.approve(world.node, "f", "doctor-qian")
    await world.works()
    assert (world.begun, (await world.row()).reason) == (2, "")
    signed = await world.approved()
    assert [(one.by, one.environment) for one in signed] == [("doctor-zhao", first), ("doctor-qian", world.kept.environment)]
    assert first != world.kept.environment


async def test_a_worker_that_runs_goes_once_something_was_installed_and_costs_a_round_nothing_before(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await consent.approve(world.node, "f", "doctor-zhao")
    there, asked = await world.works(), world.asked.times
    with monkeypatch.context() as nothing:
        nothing.setattr(interpreters, "_stamp", None)  # of the interpreter is looked at
        assert await world.works() is there
    assert world.asked.times == asked
    world.asked.install(torch="2.13.0")
    await world.node.interpreters.look()
    assert (await world.refused()).code == "edge.environment_changed"


async def test_another_federation_whose_approval_is_newer_has_a_worker_of_its_own(world: World) -> None:
    await consent.approve(world.node, "f", "doctor-zhao")
    there = await world.works()
    await _knows(world.node, "g", plan(), "running")
    world.asked.install(torch="2.13.0")
    async with world.node.unit() as uow:
        await environments.approve(uow, "g", Environment(runs("2.13.0")), "doctor-zhao")
    assert await world.kept.of(PACKAGE, plan(), "g") is not there
    assert world.kept.environment == Environment(runs("2.13.0")).digest


async def test_an_interpreter_that_stays_as_it_is_is_asked_once(world: World) -> None:
    await asyncio.sleep(2e-9 * SETTLED_NS)
    await consent.approve(world.node, "f", "doctor-zhao")
    for _ in range(3):
        await world.works()
        await world.kept.close()
    assert (world.begun, world.asked.times) == (3, 1)


async def test_what_was_only_touched_is_asked_again_and_changes_nothing(world: World) -> None:
    await consent.approve(world.node, "f", "doctor-zhao")
    there, asked = await world.works(), world.asked.times
    world.asked.install()
    await world.node.interpreters.of("numpy")
    assert world.asked.times == asked + 1
    assert await world.works() is there


async def test_what_changed_a_moment_ago_is_not_believed_for_long(world: World) -> None:
    """An installation goes on for seconds, within which what was found may have the time of what came after."""
    world.asked.place.write_text("it is being installed")
    await world.node.interpreters.of("numpy")
    await world.node.interpreters.of("numpy")
    assert world.asked.times == 2


async def test_a_hospital_that_does_not_want_to_be_asked_says_so_in_its_policy(world: World) -> None:
    await consent.approve(world.node, "f", "doctor-zhao")
    world.asked.install(torch="2.13.0")
    await world.refused()
    assert await environments.problems(world.node)
    world.node.layout.policy.write_text(DEFAULT.replace('environment = "ask"', 'environment = "any"'), "utf-8")
    await world.works()
    assert world.kept.environment == (await world.node.interpreters.of("numpy")).digest, "it is on record all the same"
    assert await environments.problems(world.node) == []


async def test_what_was_accepted_before_anybody_looked_is_asked_about_once(world: World) -> None:
    await world.state(state="running")
    assert "torch – → 2.12.0" in (await world.refused()).detail()
    await consent.approve(world.node, "f", "doctor-zhao")
    await world.works()


async def test_code_that_the_policy_names_is_approved_with_what_it_runs_in_when_its_plan_is_accepted(world: World) -> None:
    rules = DEFAULT.replace("packages = []", f'packages = ["{PACKAGE.sha256}"]')
    assert rules != DEFAULT
    world.node.layout.policy.write_text(rules, "utf-8")
    await consent.answer_invitations(world.node, None)  # type: ignore[arg-type]
    assert (await world.row()).state == "accepted"
    await world.works()
    assert [(one.by, one.environment) for one in await world.approved()] == [("policy.toml", world.kept.environment)]
    world.asked.install(torch="2.13.0")
    await world.kept.close()
    assert (await world.refused()).code == "edge.environment_changed"


async def test_an_invitation_is_not_accepted_in_something_else_than_was_approved(world: World) -> None:
    await consent.approve(world.node, "f", "doctor-zhao")
    world.asked.install(torch="2.13.0")
    await consent.answer_invitations(world.node, None)  # type: ignore[arg-type]
    row = await world.row()
    assert (row.state, row.reason) == ("invited", "edge.environment_changed")
    await consent.approve(world.node, "f", "doctor-zhao")
    await consent.answer_invitations(world.node, None)  # type: ignore[arg-type]
    row = await world.row()
    assert (row.state, row.reason) == ("accepted", "")


async def test_an_interpreter_that_says_nothing_approves_and_accepts_nothing(world: World) -> None:
    async def silent(*_: Any) -> Environment:
        raise Problem("environment.silent", python="/opt/python", reason="gone")

    await consent.approve(world.node, "f", "doctor-zhao")
    world.node.interpreters = Interpreters(world.node.layout, world.node.settings, silent)
    await consent.answer_invitations(world.node, None)  # type: ignore[arg-type]
    row = await world.row()
    assert (row.state, row.reason) == ("invited", "environment.silent")
    with pytest.raises(Problem) as caught:
        await consent.approve(world.node, "f", "doctor-zhao")
    assert caught.value.code == "environment.silent"


async def test_nothing_is_approved_of_which_nobody_knows_what_it_runs_in(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code, "held", lambda *_: None)
    world.node.settings = world.node.settings.model_copy(update={"python": {"mindspore": Path("/opt/ms")}})
    with pytest.raises(Problem) as caught:
        await consent.approve(world.node, "f", "doctor-zhao")
    assert caught.value.code == "edge.package_not_here"
    assert (await world.row()).approved is None and await world.approved() == []


async def test_people_read_what_it_runs_in_and_what_of_it_is_other(world: World) -> None:
    await consent.approve(world.node, "f", "doctor-zhao")
    before = await environments.since(world.node, "f", "zh")
    assert len(before) == 1 and "torch 2.12.0" in before[0] and (await world.node.interpreters.of("")).digest in before[0]
    world.asked.install(torch="2.13.0")
    shown = await environments.since(world.node, "f", "en")
    assert "torch 2.13.0" in shown[0] and shown[1:] == ["It is not what was approved:", "  torch 2.12.0 → 2.13.0"]
    await world.refused()
    found = await doctor._environments(world.node)
    assert [(one.level, "torch 2.13.0" in one.en, "torch 2.13.0" in one.zh) for one in found[:1]] == [(0, True, True)]
    assert [one.level for one in found] == [0, 2] and all("2.12.0 → 2.13.0" in said for said in (found[1].en, found[1].zh))
    page = {name: [] for name in ("federations", "pipelines", "rounds", "models", "work")} | {
        "datasets": {},
        "hospital": "a",
        "connected": True,
    }
    problems = [one.document() for one in await environments.problems(world.node)]
    for language in ("en", "zh"):
        assert "torch 2.12.0 → 2.13.0" in api._page({**page, "log": None, "environments": problems}, language)
    world.asked.install()
    await world.works()
    assert await environments.problems(world.node) == [], "it is as it was approved again"
