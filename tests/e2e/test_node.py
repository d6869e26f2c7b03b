"""Real nodes against a real platform: enrol, take in, consent, train in the sandbox, be killed, install, classify."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from tests.hospitals import completed, consented, enrolled, federation, pacs, state_of, until
from tests.records import Records, left
from tests.world import World, federating_world

from medmesh.client import Gateway
from medmesh.client.federation import Federation
from medmesh.contracts.federation import FederationView
from medmesh.contracts.ingestion import Catalogue
from medmesh.embedded.ports import Ports
from medmesh.embedded.testing import RunningServers
from medmesh.errors import Problem
from medmesh.learning import isolation, metrics
from medmesh.learning.environment import Environment
from medmesh_edge import consent, described, intake
from medmesh_edge.api import status
from medmesh_edge.node import Node, running
from medmesh_edge.outgoing import queue
from medmesh_edge.ports import site
from medmesh_edge.tables import federations, items, tasks

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(isolation.capability().kind == "none", reason="nothing isolates here"),
]


@pytest.fixture
async def world(servers: RunningServers, private: Path, ports: Ports) -> AsyncIterator[World]:
    async with federating_world(servers, private, ports) as made:
        yield made


@asynccontextmanager
async def two_hospitals(world: World, **settings: Any) -> AsyncIterator[tuple[Gateway, Gateway, dict[str, Path]]]:
    admin = await world.admin()
    researcher = await world.user(admin, "li", "researcher")
    approver = await world.user(admin, "wu", "approver")
    folders = {name: await enrolled(world, admin, approver, name, **settings) for name in ("huashan", "renji")}
    for name, folder in folders.items():
        async with site(folder) as opened:
            outcome = await intake.ingest(opened, pacs(world.p.folder, name), "brain")
            assert (outcome.stored, dict(outcome.rejected)) == (60, {"imaging.not_dicom": 1})
            again = await intake.ingest(opened, world.p.folder / f"pacs-{name}", "brain")
            assert (again.stored, again.known) == (0, 60)
    yield researcher, approver, folders


async def recorded(world: World, *hospitals: str) -> dict[str, dict[str, int]]:
    """What each node left in the log, by verb; with a reason where it refused."""
    found = {hospital: Counter[str]() for hospital in hospitals}
    for record in await Records(world.p).new():
        if (hospital := record["src"]["service"].removeprefix("edge:")) in found:
            found[hospital][":".join(filter(None, (record["sub"], record["why"])))] += 1
    return {hospital: dict(counts) for hospital, counts in found.items()}


async def test_from_enrolment_to_a_model_better_than_chance_with_nothing_identifying_outside(world: World) -> None:
    async with two_hospitals(world) as (researcher, approver, folders), AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(running(folder)) for folder in folders.values()]
        for node in nodes:
            told = await described.descriptor(node.site, "brain")
            async with node.site.unit() as uow:
                await queue(uow, "/v1/catalogue", {"descriptor": told.model_dump()})

        async def published() -> bool:
            return len((await researcher.ask("/v1/catalogue", Catalogue)).descriptors) == 2

        await until(published)
        made = await federation(world, researcher, approver, tuple(folders))
        for node in nodes:
            await until(lambda node=node: state_of(node, made))
            await asyncio.sleep(1.2)
            assert await state_of(node, made) == "invited", "nothing runs before the hospital approved the code"
            await consent.approve(node.site, made["federation"], "doctor-zhao")
            node.site.changed.set()
        view = await completed(researcher, made)
        union: dict[str, list[Any]] = {}
        for entry in view.evaluation:
            union.setdefault(entry.name, []).append(entry.counts)
        assert set(union) == {"federated", "huashan", "renji"}
        assert metrics.balanced_accuracy(metrics.add(union["federated"])) > 0.9

        async def released() -> bool:
            """The hospital's updates are deleted once the round's model is safe."""
            async with nodes[0].site.unit() as uow:
                rows = await uow.all(select(tasks).where(tasks.c.kind == "train"))
            return all(row.state == "released" for row in rows) and all(row.trained == 1 for row in rows)

        await until(released)

        async def shipped() -> bool:
            return all([not await node.site.database.unreceipted() for node in nodes])

        await until(shipped)
        told = await recorded(world, *folders)
        rosters = [records.pop("roster.update", 0) for records in told.values()]
        assert max(rosters) == 1, "whoever was enrolled first took the next version of the roster"
        story = {"edge.ingest": 2, "patient.ingest": 2, "federation.invitation": 1, "package.approve": 1, "federation.consent": 1}
        story |= {"federation.train": 4, "federation.upload": 4, "federation.evaluate": 1, "log.seen": 1, "federation.witnessed": 1}
        assert told == dict.fromkeys(folders, story)
    for path in (world.p.folder / "objects").rglob("*"):
        assert not path.is_file() or b"Canary" not in path.read_bytes()


def cut_off_results(node: Node) -> None:
    """For as long as this node lives no result of it gets through."""
    whole = node.gateway.raw

    async def cut(method: str, path: str, *arguments: Any, **named: Any) -> Any:
        if "/uploads/" in path or path.endswith("/updates"):
            raise Problem("client.unreachable", url="test", reason="test")
        return await whole(method, path, *arguments, **named)

    node.gateway.raw = cut


async def test_a_node_that_is_killed_after_training_does_not_train_that_round_again(world: World) -> None:
    async with two_hospitals(world) as (researcher, approver, folders), AsyncExitStack() as stack:
        steady = await stack.enter_async_context(running(folders["huashan"]))
        made = await federation(world, researcher, approver, tuple(folders), rounds=2, baseline=False, lease_seconds=30)
        for place, name in enumerate(folders):
            async with AsyncExitStack() as brief:
                node = steady if place == 0 else await brief.enter_async_context(running(folders[name]))
                if place == 1:
                    cut_off_results(node)
                await until(lambda node=node: state_of(node, made))
                await consent.approve(node.site, made["federation"], "doctor-zhao")
                node.site.changed.set()

                async def accepted(node: Node = node) -> bool:
                    return await state_of(node, made) in ("accepted", "running")

                await until(accepted)
                if place == 0:
                    continue

                async def trained(node: Node = node) -> Any:
                    async with node.site.unit() as uow:
                        return await uow.first(select(tasks).where(tasks.c.round == 1, tasks.c.state.in_(["trained", "sent"])))

                await until(trained, 90)
        again = await stack.enter_async_context(running(folders["renji"]))

        async def finished() -> bool:
            return await state_of(again, made) == "completed"

        await until(finished, 90)
        async with again.site.unit() as uow:
            rows = await uow.all(select(tasks).order_by(tasks.c.round))
        assert [(row.round, row.trained) for row in rows] == [(1, 1), (2, 1)]
        uploads = [(r["agents"][0]["who"], r["detail"]["round"]) for r in await left(world.p, "federation.upload", 4)]
        assert sorted(uploads) == [(f"hospital:{name}", number) for name in sorted(folders) for number in (1, 2)]


async def test_an_approval_is_of_one_plan_and_the_next_with_the_same_code_is_asked_about_again(world: World) -> None:
    async with two_hospitals(world) as (researcher, _, folders), AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(running(folder)) for folder in folders.values()]
        first = await federation(world, researcher, None, tuple(folders))
        await consented(nodes, first)
        for node in nodes:
            await until(lambda node=node: is_state(node, first, "accepted"))
        worse = await federation(world, researcher, None, tuple(folders), rounds=900, learning_rate="9", seed=4)
        for node in nodes:
            await until(lambda node=node: is_state(node, worse, "invited"))
        await asyncio.sleep(1.5)
        assert [await state_of(node, worse) for node in nodes] == ["invited", "invited"]
        policy, (asked, named) = folders["renji"] / "policy.toml", nodes
        code = (await researcher.ask(f"/v1/federations/{worse['federation']}", FederationView)).plan.package
        policy.write_text(policy.read_text().replace("packages = []", f'packages = ["{code}"]'))
        named.site.changed.set()
        await until(lambda: is_state(named, worse, "accepted"))
        assert await state_of(asked, worse) == "invited", "whose policy does not name the code"
        await consent.decline(asked.site, worse["federation"], "not so")
        with pytest.raises(Problem) as late:
            await consent.approve(asked.site, worse["federation"], "doctor-zhao")
        assert late.value.code == "edge.nothing_to_approve"


async def is_state(node: Node, made: dict[str, Any], wanted: str) -> bool:
    return await state_of(node, made) == wanted


async def test_the_policy_refuses_with_the_rule_and_a_person_can_decline(world: World) -> None:
    async with two_hospitals(world) as (researcher, approver, folders), AsyncExitStack() as stack:
        policy = folders["huashan"] / "policy.toml"
        policy.write_text(policy.read_text().replace('initiators = ["*"]', 'initiators = ["person:somebody@platform"]'))
        nodes = [await stack.enter_async_context(running(folder)) for folder in folders.values()]
        made = await federation(world, researcher, approver, tuple(folders))
        await until(lambda: state_of(nodes[1], made))
        await consent.decline(nodes[1].site, made["federation"], "not this year")
        nodes[1].site.changed.set()

        async def failed() -> Any:
            view = await researcher.ask(f"/v1/federations/{made['federation']}", FederationView)
            return view if view.state == "failed" else None

        view = await until(failed)
        assert view.failure == "federation.quorum"
        assert {p.hospital: p.state for p in view.participants} == {"huashan": "declined", "renji": "declined"}
        async with nodes[0].site.unit() as uow:
            row = await uow.first(select(federations))
        assert row is not None
        assert row.reason == "policy.initiator"

        async def shipped() -> bool:
            return all([not await node.site.database.unreceipted() for node in nodes])

        await until(shipped)
        told = await recorded(world, *folders)
        assert told["huashan"]["federation.consent:policy.initiator"] == 1
        assert told["renji"]["federation.consent"] == 1
        policy.write_text("[federation]\ninitiator = 3\n")
        with pytest.raises(Problem) as caught:
            nodes[0].site.policy()
        assert caught.value.code == "policy.invalid"
        assert "initiator" in str(caught.value)


async def test_wrong_label_files_take_in_nothing(world: World) -> None:
    admin = await world.admin()
    approver = await world.user(admin, "wu", "approver")
    folder = await enrolled(world, admin, approver, "huashan")
    source = pacs(world.p.folder, "huashan", 4)
    cases = {
        "file,wrong\n0.dcm,none\n": "intake.labels",
        "file,label\n0.dcm,none\n0.dcm,tumour\n": "intake.labels",
        "file,label\n0.dcm,\n": "intake.labels",
        "file,label\nmissing.dcm,none\n": "intake.labels_missing",
    }
    async with site(folder) as opened:
        for text, code in cases.items():
            (source / "labels.csv").write_text(text)
            with pytest.raises(Problem) as caught:
                await intake.ingest(opened, source, "brain")
            assert caught.value.code == code
        async with opened.unit() as uow:
            assert await uow.all(select(items)) == []


async def test_what_runs_in_something_else_than_was_approved_trains_once_it_is_approved_anew(world: World) -> None:
    async with two_hospitals(world) as (researcher, approver, folders), AsyncExitStack() as stack:
        nodes = {name: await stack.enter_async_context(running(folder)) for name, folder in folders.items()}
        rules = {"rounds": 8, "local_steps": 100, "baseline": False, "min_participants": 1}
        made = await federation(world, researcher, None, tuple(folders), **rules)
        await consented(nodes.values(), made)
        for node in nodes.values():
            await until(lambda node=node: _is(node, made, "accepted"))
        renji = nodes["renji"]
        there = await renji.site.interpreters.of("numpy")
        other = json.loads(json.dumps(there.inventory))
        other["distributions"]["numpy"][0] = "0.1"

        async def updated(*_: Any) -> Environment:
            return Environment(other, there.places)

        renji.site.interpreters.ask, renji.site.interpreters._known = updated, {}
        await _started(world, researcher, approver, made)

        async def refused() -> bool:
            async with renji.site.unit() as uow:
                return await uow.first(select(tasks).where(tasks.c.code == "edge.environment_changed")) is not None

        await until(refused)
        assert "numpy" in (await status(renji))["environments"][0]["title"]
        await consent.approve(renji.site, made["federation"], "doctor-zhao")
        view = await completed(researcher, made)
        assert (await status(renji))["environments"] == []

        async def shipped() -> bool:
            return all([not await node.site.database.unreceipted() for node in nodes.values()])

        await until(shipped)
        records = [record for record in await Records(world.p).new() if record["sub"] == "federation.train"]
    answered = [len(round_.answers) for round_ in view.rounds]
    assert answered[-1] == 2, answered
    ran = {(one["src"]["org"], one["why"], one["detail"].get("environment", "")) for one in records}
    assert ran == {
        ("huashan", "", there.digest),
        ("renji", "edge.environment_changed", ""),
        ("renji", "", Environment(other).digest),
    }


async def _is(node: Node, made: dict[str, Any], state: str) -> bool:
    return await state_of(node, made) == state


async def _started(world: World, researcher: Gateway, approver: Gateway, made: dict[str, Any]) -> None:
    body = {"action": "federation.start", "target": made["federation"], "digest": made["plan_hash"]}
    await world.decide(approver, (await researcher.command("POST", "/v1/approvals", body))["approval"])


async def test_a_round_is_held_against_what_it_asks_for_and_not_against_what_it_might(world: World) -> None:
    """The hospital's policy became stricter after it accepted a plan with a range."""
    async with two_hospitals(world) as (researcher, approver, folders), AsyncExitStack() as stack:

        def least(hospital: str, before: int, now: int) -> None:
            policy = folders[hospital] / "policy.toml"
            text = policy.read_text("utf-8")
            assert f"min_batch = {before} " in text
            policy.write_text(text.replace(f"min_batch = {before} ", f"min_batch = {now} "), "utf-8")

        nodes = [await stack.enter_async_context(running(folder)) for folder in folders.values()]
        least("renji", 8, 4)

        async def failed(changed: dict[str, str]) -> dict[str, str]:
            """Hospital to why it took no part in the only round of a federation whose batch may be 4 to 16."""
            least("huashan", 8, 4)
            ranges = {"batch_size": {"low": "4", "high": "16"}}
            made = await federation(
                world, researcher, None, tuple(folders), rounds=1, baseline=False, min_participants=1, ranges=ranges, lease_seconds=30
            )
            for node in nodes:
                await until(lambda node=node: state_of(node, made))
                await consent.approve(node.site, made["federation"], "doctor-zhao")
                node.site.changed.set()

            async def accepted() -> bool:
                return all([await state_of(node, made) == "accepted" for node in nodes])

            await until(accepted)
            least("huashan", 4, 8)
            one = Federation(researcher, made["federation"])
            if changed:
                await one.adjust(**changed)
            await world.decide(approver, await one.request_start())
            await completed(researcher, made)
            found = {}
            for name, node in zip(folders, nodes, strict=True):
                async with node.site.unit() as uow:
                    (row,) = await uow.all(select(tasks).where(tasks.c.federation == made["federation"], tasks.c.kind == "train"))
                found[name] = row.code if row.state == "failed" else ""
            return found

        assert await failed({}) == {"huashan": "", "renji": ""}, "it asks for 8, as the policy wants"
        assert await failed({"batch_size": "4"}) == {"huashan": "policy.batch", "renji": ""}
