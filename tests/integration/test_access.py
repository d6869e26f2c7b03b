"""Labels, clearances and the site's policy on running services: what people see, what it takes to change that, and what the log says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from tests.platform import platform
from tests.records import left
from tests.world import World, small_world

from medmesh.client import Gateway
from medmesh.client.doors import open_door
from medmesh.contracts.ingestion import Catalogue, ListDescriptors
from medmesh.embedded.ports import Ports
from medmesh.embedded.testing import RunningServers
from medmesh.errors import Problem
from medmesh.security.access import BUILT_IN, Rules
from medmesh.security.labels import Label, Level
from medmesh.service.labels import give
from medmesh.service.policies import Policies
from medmesh_ingestion.service import SERVICE as INGESTION

SITE = """@id("site.no-catalogue-for-huashan")
forbid (principal, action == Action::"catalogue.read", resource)
when { principal.organisation == "huashan" };
"""


@pytest.fixture
async def world(servers: RunningServers, private: Path, ports: Ports) -> AsyncIterator[World]:
    async with small_world(
        servers, private, ports, INGESTION, settings={"ingestion": {"key": private / "secrets" / "project.key"}}
    ) as made:
        yield made


async def publish(world: World, hospital: str, dataset: str, *, within: bool = False) -> None:
    document = {"dataset": dataset, "version": 1, "modality": "US", "samples": 100, "patients": 50, "labels": {"normal": 100}}
    async with world.node(hospital) as node:
        await node.command("POST", "/v1/catalogue", {"descriptor": document, "within": within})


async def seen(person: Gateway) -> set[str]:
    """The data sets of the catalogue that a person sees, with their labels."""
    found = (await person.request("GET", "/v1/catalogue"))["descriptors"]
    return {f"{one['hospital']}/{one['descriptor']['dataset']} {one['label']['level']}" for one in found}


async def code(call: Awaitable[Any]) -> str:
    """The problem's code, or ""."""
    try:
        await call
    except Problem as problem:
        return problem.code
    return ""


async def problem(person: Gateway, path: str) -> Problem:
    with pytest.raises(Problem) as caught:
        await person.request("GET", path)
    return caught.value


async def until(check: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(30):
        while not await check():
            await asyncio.sleep(0.1)


async def label(admin: Gateway, level: str, *compartments: str) -> dict[str, Any]:
    wanted = {"kind": "descriptor", "id": "renji/chest/1", "label": {"level": level, "compartments": compartments}, "reason": "because"}
    answer: dict[str, Any] = await admin.request("POST", "/v1/labels", wanted)
    return answer


@pytest.mark.slow
async def test_what_people_see_follows_their_clearance_and_the_label_and_lowering_takes_two(world: World) -> None:
    admin = await world.admin()
    of_renji = await world.user(admin, "wang", "researcher", organisation="renji")
    of_huashan = await world.user(admin, "zhao", "researcher", organisation="huashan")
    of_platform = await world.user(admin, "qian", "researcher")
    checker, auditor = await world.user(admin, "li", "approver"), await world.user(admin, "shen", "auditor")
    await publish(world, "renji", "chest")
    await publish(world, "renji", "private", within=True)
    assert await seen(of_renji) == {"renji/chest internal", "renji/private internal"}
    assert await seen(of_huashan) == await seen(of_platform) == {"renji/chest internal"}

    # Raising works at once; nobody but the security administrator does it.
    assert await code(label(of_renji, "sensitive", "renji")) == "access.denied"
    assert (await label(admin, "sensitive", "renji"))["state"] == "changed"
    assert (await label(admin, "sensitive", "renji"))["state"] == "unchanged"
    assert await seen(of_renji) == {"renji/private internal"}
    assert await seen(of_platform) == set()

    # A clearance: recorded, for others only, and what the person had open ends.
    cleared = {"clearance": {"level": "sensitive", "compartments": ["renji"]}}
    assert await code(admin.command("POST", "/v1/users/sun/clearance", cleared)) == "governance.yourself"
    assert await code(checker.command("POST", "/v1/users/wang/clearance", cleared)) == "access.denied"
    await admin.command("POST", "/v1/users/wang/clearance", cleared)
    await until(lambda: _is(code(seen(of_renji)), "governance.session_over"))
    of_renji = await world.sign_in("wang")
    assert await seen(of_renji) == {"renji/chest sensitive", "renji/private internal"}

    # Lowering waits for a second person, who approves exactly this label.
    pending = await label(admin, "internal")
    assert pending["state"] == "pending"
    assert await seen(of_platform) == set()
    wanted = {"action": "label.change", "target": pending["target"], "digest": pending["digest"]}
    approval = (await admin.command("POST", "/v1/approvals", wanted))["approval"]
    assert await code(world.decide(admin, approval, "sun")) == "security.approval_maker"
    await world.decide(checker, approval, "li")
    await until(lambda: _is(seen(of_platform), {"renji/chest internal"}))
    assert await seen(of_huashan) == {"renji/chest internal"}

    async with asyncio.timeout(30):  # the label is in force before its record is in the log
        while len(changes := [r for r in await left(world.p, "label.change") if r["out"] == 0]) < 2:
            await asyncio.sleep(0.1)
    told = {record["detail"]["after"]: (record["detail"]["lowered"], bool(record["approval"])) for record in changes}
    assert told == {"sensitive{renji}": (False, False), "internal": (True, True)}
    (setting,) = [record for record in await world.records(auditor, verb="clearance.set") if record["out"] == 0]
    assert (setting["detail"]["before"], setting["detail"]["after"]) == ("internal{renji}", "sensitive{renji}")

    async def executed() -> bool:
        found = (await admin.request("GET", "/v1/approvals"))["approvals"]
        return [one["state"] for one in found if one["approval"] == approval] == ["executed"]

    await until(executed)

    # What an assessor reads now (GB/T 22239-2019 8.1.4.2 g, 8.1.5.3 b).
    assert (await clauses(world, auditor))["8.1.4.2 g)"] == "not_met", "nobody asked for a labelled object by its name yet"
    async with world.p.runtimes["ingestion"].unit() as uow:
        await give(uow, "dataset", "secret", Label(Level.CORE), owner="renji")
    hidden, absent = await problem(of_renji, "/v1/datasets/secret"), await problem(of_renji, "/v1/datasets/nothing")
    assert hidden.document() | {"params": {}, "title": ""} == absent.document() | {"params": {}, "title": ""}

    async def shown() -> bool:
        return (await clauses(world, auditor))["8.1.4.2 g)"] == "met"

    await until(shown)
    states = await clauses(world, auditor)
    assert (states["8.1.5.3 b)"], states["8.1.4.2 e)"]) == ("part", "met")


async def _is(call: Awaitable[Any], wanted: Any) -> bool:
    return bool(await call == wanted)


async def clauses(world: World, auditor: Gateway) -> dict[str, str]:
    """The state of each clause."""
    async with await open_door(auditor, "audit", world.audit) as door:
        return {one["clause"]: one["state"] for one in (await door.request("GET", "/v1/mlps/evidence"))["clauses"]}


@pytest.mark.slow
async def test_a_sites_policy_takes_two_reaches_every_service_and_stays(world: World) -> None:
    admin = await world.admin()
    of_huashan = await world.user(admin, "zhao", "researcher", organisation="huashan")
    of_platform = await world.user(admin, "qian", "researcher")
    checker, auditor = await world.user(admin, "li", "approver"), await world.user(admin, "shen", "auditor")
    await publish(world, "renji", "chest")
    body = {"text": SITE, "reason": "a dispute"}
    for wrong, words in (
        (SITE.replace("catalogue.read", "catalog.read"), "catalog.read"),
        (SITE.replace("forbid", "permit"), "only forbid"),
        (SITE.replace("principal.organisation", "principal.colour"), "colour"),
    ):
        with pytest.raises(Problem) as caught:
            await admin.command("POST", "/v1/policy", {**body, "text": wrong})
        assert caught.value.code == "access.policy_invalid"
        assert words in caught.value.params["reason"]
    assert await code(checker.command("POST", "/v1/policy", body)) == "access.denied"
    proposed = await admin.command("POST", "/v1/policy", body)
    assert await seen(of_huashan) == {"renji/chest internal"}, "not in force yet"
    assert await code(world.decide(admin, proposed["approval"], "sun")) == "security.approval_maker"
    await world.decide(checker, proposed["approval"], "li")
    await until(lambda: _is(code(seen(of_huashan)), "access.denied"))
    assert await seen(of_platform) == {"renji/chest internal"}

    # Every service decides by it, its digest stands in each decision, and the log knows who put it in force.
    rules = Rules(SITE)
    assert rules.digest != BUILT_IN.digest
    await until(lambda: _is(_digests(world), {rules.digest}))
    refused = (await world.records(auditor, verb="access.denied", actor="person:zhao"))[0]
    assert refused["policy"] == {"decision": "deny", "rules": ["role:researcher", "site.no-catalogue-for-huashan"], "bundle": rules.digest}
    (asked,) = [r for r in await left(world.p, "policy.propose") if not r["out"]]
    assert asked["entities"][0]["digest"] == proposed["digest"]
    requests = [(r["entities"][0]["id"], r["detail"]["action"]) for r in await left(world.p, "approval.request")]
    assert requests == [(proposed["approval"], "policy.change")]
    (changed,) = await world.records(auditor, verb="policy.change")
    assert changed["detail"]["bundle"] == rules.digest
    assert changed["approval"]["approvers"] == "person:li@platform"
    shown = await auditor.request("GET", "/v1/policy")
    assert (shown["number"], shown["text"], shown["digest"]) == (1, SITE, proposed["digest"])
    assert (await clauses(world, auditor))["8.1.4.2 e)"] == "met"

    # It is remembered: a service that starts while governance is away decides by it.
    state = world.p.runtimes["ingestion"].settings.state
    assert Policies(state).digest() == rules.digest
    kept = json.loads((state / "policy.json").read_text())
    (state / "policy.json").write_text(json.dumps({**kept, "text": "nonsense"}))
    with pytest.raises(Problem) as caught:
        Policies(state)
    assert caught.value.code == "access.policy_invalid", "no start without the rules that were in force"

    # And it is lifted like it was made.
    lifted = await admin.command("POST", "/v1/policy", {"text": "", "reason": "settled"})
    await world.decide(checker, lifted["approval"], "li")
    await until(lambda: _is(code(seen(of_huashan)), ""))


async def _digests(world: World) -> set[str]:
    return {runtime.policies.digest() for runtime in world.p.runtimes.values()}


async def test_a_list_gives_what_may_be_seen_however_much_lies_before_it(servers: RunningServers, private: Path) -> None:
    """Two pages of another hospital's own, and one to be seen behind them."""
    from sqlalchemy import insert

    from medmesh.service.labels import LABELS
    from medmesh_ingestion.tables import descriptors

    async with platform(servers, private, INGESTION, settings={"ingestion": {"key": private / "secrets" / "project.key"}}) as p:
        async with p.runtimes["ingestion"].unit() as uow:
            document = {"dataset": "chest", "version": 1, "modality": "US", "labels": {}}
            names = [("huashan", version) for version in range(2, 1103)] + [("renji", 1)]
            rows = [
                {"hospital": h, "dataset": "chest", "version": v, "descriptor": {**document, "version": v}, "published_at": uow.now}
                for h, v in names
            ]
            await uow.execute(insert(descriptors), rows)
            things = [
                {"kind": "descriptor", "id": f"{h}/chest/{v}", "level": "internal", "compartments": [h], "owner": h, "organisations": [h]}
                for h, v in names
            ]
            await uow.execute(insert(LABELS), [{**one, "maker": "", "changed_at": uow.now} for one in things])
        found = await p.ask(ListDescriptors(), Catalogue, p.person("wang", "researcher", organisation="renji"))
        assert [(one.hospital, one.descriptor.version) for one in found.descriptors] == [("renji", 1)]
        assert (await p.ask(ListDescriptors(), Catalogue, p.person("li", "researcher"))).descriptors == ()
