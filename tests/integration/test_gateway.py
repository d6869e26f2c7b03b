"""The gateway over real HTTPS: sessions, commands, a node's signed requests, and what it refuses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select
from tests.world import PASSWORD, World

from medmesh.client.credentials import Anonymous, Node, Person
from medmesh.client.doors import open_door
from medmesh.client.http import Broken
from medmesh.contracts.governance import Hospitals
from medmesh.contracts.message import OperationFinished
from medmesh.errors import Problem
from medmesh.security.authority import node_request
from medmesh.store.tables import node_metadata
from medmesh.store.unit import Context, UnitOfWork
from medmesh_audit.tables import facts
from medmesh_gateway.tables import operations

outbox = node_metadata().tables["outbox"]


async def test_people_sign_in_act_within_their_roles_and_sign_out(world: World) -> None:
    admin = await world.admin()
    researcher = await world.user(admin, "li", "researcher")
    with pytest.raises(Problem) as caught:
        await researcher.request("GET", "/v1/users")
    assert caught.value.code == "access.denied"
    assert (await admin.ask("/v1/hospitals", Hospitals)).hospitals == ()
    await researcher.raw("DELETE", "/v1/sessions")
    with pytest.raises(Problem) as caught:
        await researcher.request("GET", "/v1/hospitals")
    assert caught.value.status == 401
    with pytest.raises(Problem) as caught:
        await world.anybody.request("GET", "/v1/hospitals")
    assert caught.value.code == "actor.missing"


async def test_a_person_shows_the_second_factor_again_where_it_is_asked_for(world: World) -> None:
    from datetime import UTC, datetime, timedelta

    from sqlalchemy import update

    from medmesh_governance.tables import sessions

    admin = await world.admin()
    approver, researcher = await world.user(admin, "wu", "approver"), await world.user(admin, "li", "researcher")
    body = {"action": "federation.start", "target": "fed-1", "digest": "0" * 64}
    approval = (await researcher.command("POST", "/v1/approvals", body))["approval"]
    async with world.p.runtimes["governance"].unit() as uow:
        await uow.execute(update(sessions).values(strong_at=datetime.now(UTC) - timedelta(minutes=6)))
    assert isinstance(approver.credentials, Person)
    bare = approver.acting_as(Person(approver.credentials.session))
    with pytest.raises(Problem) as caught:
        await bare.command("POST", f"/v1/approvals/{approval}/decision", {"approve": True})
    assert (caught.value.code, caught.value.status) == ("security.step_up", 401)
    await bare.request("GET", "/v1/approvals")
    done = await world.decide(approver, approval)
    assert done["state"] == "granted", "the client showed it and tried again"
    refusals = [r for r in await world.p.audited("gateway") if r["why"] == "security.step_up"]
    # The log may have taken the record already.
    assert all(r["detail"] == {"action": "approval.decide", "rule": "step-up"} for r in refusals)


async def test_people_manage_their_own_session_and_password_over_https(world: World) -> None:
    admin = await world.admin()
    researcher = await world.user(admin, "li", "researcher")
    other = await world.sign_in("li")
    listed = (await researcher.request("GET", "/v1/sessions"))["sessions"]
    assert [view["this"] for view in listed] == [False, True]
    await researcher.request("DELETE", f"/v1/sessions/{listed[0]['id']}")
    with pytest.raises(Problem) as caught:
        await other.request("GET", "/v1/sessions")
    assert caught.value.code == "governance.session_over"
    with pytest.raises(Problem) as caught:
        await researcher.request("POST", "/v1/password", {"old": PASSWORD, "new": PASSWORD})
    assert caught.value.code == "security.password_used"
    await researcher.request("POST", "/v1/password", {"old": PASSWORD, "new": "Wholly-Other-9-Battery"})
    await admin.command("POST", "/v1/users/li/disabling", {"reason": "left"})
    with pytest.raises(Problem) as caught:
        await researcher.request("GET", "/v1/sessions")
    assert caught.value.code == "governance.session_over"
    nobody = world.anybody.acting_as(Anonymous())
    for method, path in (("GET", "/v1/sessions"), ("POST", "/v1/password"), ("POST", "/v1/second-factor")):
        with pytest.raises(Problem) as caught:
            await nobody.request(method, path, {"old": "x", "new": "y"} if method == "POST" else None)
        assert caught.value.status in (401, 422)


async def test_the_command_line_sets_up_what_is_due_and_asks_for_codes(
    world: World, private: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import re

    import click
    from click.testing import CliRunner

    from medmesh.cli import account, people
    from medmesh.client import Authenticator
    from medmesh.security import totp

    admin = await world.admin()
    code = (
        await admin.request("POST", "/v1/users", {"name": "he", "display_name": "h", "organisation": "platform", "roles": ["approver"]})
    )["code"]
    monkeypatch.setenv("MEDMESH_SESSION", str(private / "session.json"))
    monkeypatch.setenv("MEDMESH_LANG", "zh")
    authenticator = Authenticator()

    def shown(text: str = "", **more: object) -> None:
        if found := re.search(r"secret=([A-Z2-7]+)", str(text)):
            authenticator.secret = totp.read(found.group(1))
        echo(text, **more)  # type: ignore[arg-type]

    echo = click.echo
    monkeypatch.setattr(click, "echo", shown)
    monkeypatch.setattr(account, "ask_code", authenticator.code)

    async def run(command: click.Command, *arguments: str) -> str:
        result = await asyncio.to_thread(CliRunner().invoke, command, list(arguments))
        if result.exception:
            raise result.exception
        return result.output

    where = ("--gateway", world.url, "--ca", str(world.ca))
    assert "已激活" in await run(people.activate, *where, "he", "--code", code, "--password", PASSWORD)
    assert "必须启用双因素认证" in await run(account.login, *where, "he", "--password", PASSWORD)
    assert authenticator.secret
    assert "已退出" in await run(account.logout)
    assert "已登录：he" in await run(account.login, *where, "he", "--password", PASSWORD)
    assert '"this": true' in await run(account.sessions)
    assert await run(people.list_approvals) == "[]\n"
    with pytest.raises(Problem) as caught:
        await run(people.unlock, "he")
    assert caught.value.code == "access.denied"


async def test_a_command_repeated_with_its_key_has_one_effect_and_the_owners_refusal_comes_back(world: World) -> None:
    admin = await world.admin()
    researcher = await world.user(admin, "li", "researcher")
    body = {"action": "federation.start", "target": "fed-1", "digest": "0" * 64}
    first, second = await asyncio.gather(
        researcher.command("POST", "/v1/approvals", body, key="a-fixed-key-1"),
        asyncio.sleep(0.3, None),
    )
    assert second is None
    assert await researcher.command("POST", "/v1/approvals", body, key="a-fixed-key-1") == first
    with pytest.raises(Problem) as caught:
        await researcher.command("POST", "/v1/approvals", {**body, "action": "anything"})
    assert caught.value.code == "governance.not_approvable"
    with pytest.raises(Problem) as caught:
        await researcher.command("POST", "/v1/approvals", {**body, "digest": "short"})
    assert caught.value.code == "request.invalid"
    assert "digest" in str(caught.value)
    chinese = world.anybody.acting_as(researcher.credentials)
    chinese.language = "zh"
    answer = await chinese._http.get("/v1/nowhere", headers={"Accept-Language": "zh-CN"})
    assert answer.json()["title"] == "路径 /v1/nowhere 不存在。"


async def test_who_repeats_a_command_and_waits_no_longer_silences_nobody(world: World) -> None:
    admin = await world.admin()
    li = await world.user(admin, "li", "researcher")

    async def pause(wait: int) -> dict[str, Any]:
        headers = {"Prefer": f"wait={wait}", "Idempotency-Key": "a-fixed-key-2"}
        answer: dict[str, Any] = await li.request("POST", "/v1/federations/fed-1/pause", {"reason": "lunch"}, headers=headers)
        return answer

    patient = asyncio.create_task(pause(50))
    await asyncio.sleep(1.0)
    running = await pause(1)  # nobody here coordinates federations
    assert running["state"] == "running"
    answer = OperationFinished(
        service="federation", operation=running["operation"], command="federation.pause.v1", succeeded=True, result={"state": "paused"}
    )
    await world.p.publish(answer, source="federation")
    async with asyncio.timeout(20):
        assert (await patient)["result"] == {"state": "paused"}


async def test_answers_that_come_together_are_each_their_owners(world: World) -> None:
    admin = await world.admin()
    li = await world.user(admin, "li", "researcher")

    async def pause(federation: str, wait: int) -> dict[str, Any]:
        headers = {"Prefer": f"wait={wait}", "Idempotency-Key": f"pause-{federation}"}
        answer: dict[str, Any] = await li.request("POST", f"/v1/federations/{federation}/pause", {"reason": "lunch"}, headers=headers)
        return answer

    one, two = [(await pause(federation, 0))["operation"] for federation in ("fed-1", "fed-2")]
    about = {"command": "federation.pause.v1"}
    problem = Problem("request.not_found", kind="federation", id="fed-2").document()
    await world.p.publish(
        OperationFinished(service="training", operation=one, succeeded=True, result={"state": "forged"}, **about), source="training"
    )
    await asyncio.sleep(0.3)
    answers = (
        OperationFinished(service="federation", operation=one, succeeded=True, result={"state": "paused"}, **about),
        OperationFinished(service="federation", operation=two, succeeded=False, problem=problem, **about),
        OperationFinished(service="federation", operation="unknown", succeeded=True, **about),
    )
    await asyncio.gather(*(world.p.publish(answer, source=answer.service) for answer in answers))
    async with asyncio.timeout(20):
        assert (await pause("fed-1", 10))["result"] == {"state": "paused"}
        with pytest.raises(Problem) as caught:
            await pause("fed-2", 10)
    assert caught.value.code == "request.not_found"
    assert (await pause("fed-1", 0))["result"] == {"state": "paused"}, "it was kept"


@asynccontextmanager
async def together(world: World, count: int) -> AsyncIterator[None]:
    """So many commands that are asked for within share one transaction."""
    gathering, taken = world.p.runtimes["gateway"].gathering, asyncio.Event()

    async def hold(_uow: UnitOfWork[Any], wanted: Sequence[tuple[Context, None]]) -> list[None]:
        taken.set()
        async with asyncio.timeout(20):
            while len(gathering._waiting) < count:
                await asyncio.sleep(0.01)
        return [None]

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(gathering.run(hold, Context("gateway"), None))
        await taken.wait()
        yield


async def test_commands_that_share_a_transaction_are_one_operation_for_each_key(world: World) -> None:
    async with world.node("renji") as renji:
        key, body = "a-fixed-key-2", {"round": 1, "attempt": 1, "code": "worker.died"}
        async with together(world, 5):
            same = [renji._exchange("POST", "/v1/federations/f/failures", body, None, {"Idempotency-Key": key}) for _ in range(3)]
            others = [renji._exchange("POST", "/v1/federations/f/failures", body, None, {}) for _ in range(2)]
            answers = await asyncio.gather(*same, *others)
        begun = {answer["operation"] for answer in answers}
        assert {answer["state"] for answer in answers} == {"running"}
        assert (len(begun), len({answer["operation"] for answer in answers[:3]})) == (3, 1)
        async with world.p.runtimes["gateway"].unit() as uow:
            assert begun == {row.operation for row in await uow.all(select(operations.c.operation)) if row.operation in begun}
            sent = await uow.all(select(outbox.c.id).where(outbox.c.subject.contains("report-failure")))
        assert {row.id for row in sent} == begun, "each is sent once"
        async with together(world, 2):
            other = renji._exchange("POST", "/v1/federations/f/withdrawal", {}, None, {"Idempotency-Key": key})
            alone = renji._exchange("POST", "/v1/federations/f/failures", body, None, {})
            refused, taken = await asyncio.gather(other, alone, return_exceptions=True)
        assert isinstance(refused, Problem) and refused.code == "request.key_reused"
        assert isinstance(taken, dict) and taken["state"] == "running", "nobody else's is refused with it"


async def recorded(world: World, verb: str) -> int:
    """How many records of a verb the log holds."""
    async with world.p.runtimes["audit"].unit() as uow:
        return int((await uow.execute(select(func.count()).select_from(facts).where(facts.c.verb == verb))).scalar_one())


async def test_a_request_of_a_node_needs_its_certificate_its_signature_and_is_good_once(world: World) -> None:
    async with world.node("renji") as renji:
        credentials = renji.credentials
        assert isinstance(credentials, Node)
        body = b'{"round": 1, "attempt": 1, "code": "worker.died"}'
        headers = credentials.headers("POST", "/v1/federations/f/failures", body)
        first = await renji._http.post("/v1/federations/f/failures", content=body, headers=headers)
        assert first.json()["state"] == "running", "a command was taken"
        again = await renji._http.post("/v1/federations/f/failures", content=body, headers=headers)
        assert again.json()["code"] == "security.request_replayed"
        async with asyncio.timeout(15):
            while not await recorded(world, "request.replayed"):
                await asyncio.sleep(0.1)
        async with together(world, 4):
            headers = credentials.headers("POST", "/v1/federations/f/failures", body)
            answers = [renji._http.post("/v1/federations/f/failures", content=body, headers=headers) for _ in range(4)]
            codes = [answer.json().get("code") for answer in await asyncio.gather(*answers)]
        assert sorted(codes, key=str) == [None, *["security.request_replayed"] * 3], "also when they come in the same moment"
        altered = await renji._http.post("/v1/federations/f/failures", content=body + b" ", headers=headers)
        assert altered.json()["code"] == "security.request_unsigned"
        world.p.hospital("huashan")
        thief = renji.acting_as(Node(*world.p.nodes["huashan"]))
        with pytest.raises(Problem) as caught:
            await thief.poll(0, 0)
        assert caught.value.code == "security.certificate_foreign"
    bare = world.anybody.acting_as(Node(*world.p.nodes["renji"]))
    with pytest.raises(Problem) as caught:
        await bare.poll(0, 0)
    assert caught.value.code == "security.certificate_needed"


async def test_an_expired_certificate_is_named_before_anything_is_sent_and_opens_nothing(world: World) -> None:
    world.p.hospital("renji")
    key, _ = world.p.nodes["renji"]
    past = datetime.now(UTC) - timedelta(days=100)
    world.p.nodes["renji"] = key, world.p.authority.sign_node(node_request(key, "renji", "node-1"), "renji", "node-1", now=past)
    async with world.node("renji") as renji:
        with pytest.raises(Problem) as caught:
            await renji.poll(0, 0)
        assert caught.value.code == "security.certificate_expired"
        with pytest.raises(Broken):
            await renji._http.get("/health/live")


async def test_every_refusal_is_in_the_log_and_an_auditor_proves_a_record_offline(world: World) -> None:
    import base64

    from medmesh.ledger import proof
    from medmesh.ledger.leaf import commitment, decode

    admin = await world.admin()
    researcher = await world.user(admin, "li", "researcher")
    auditor = await world.user(admin, "qian", "auditor")
    with pytest.raises(Problem):
        await researcher.request("GET", "/v1/users")
    async with await open_door(auditor, "audit", world.audit) as door:
        async with asyncio.timeout(15):
            while not (found := (await door.request("GET", "/v1/events", query={"verb": "access.denied"}))["events"]):
                await asyncio.sleep(0.2)
        record = found[0]["record"]
        assert record["agents"][0]["who"] == "person:li"
        assert record["detail"] == {"action": "user.list", "rule": "default"}
        for query, expected in (({"actor": "person:li"}, 1), ({"entity": "user:qian"}, 1), ({"entity": "user:nobody"}, 0)):
            matching = await door.request("GET", "/v1/events", query=query)
            assert (len(matching["events"]) >= 1) == bool(expected), query
        evidence = await door.request("GET", f"/v1/events/{found[0]['seq']}/proof")
        key = world.p.runtimes["audit"].ports.sequencer.vkey
        leaf, salt, body = (base64.b64decode(evidence[name]) for name in ("leaf", "salt", "body"))
        assert proof.verify(evidence["proof"], leaf, key).size > found[0]["seq"]
        assert decode(leaf).commit == commitment(salt, body)
        with pytest.raises(Problem):
            proof.verify(evidence["proof"], leaf.replace(b"commit", b"Commit"), key)
        nobody = door.acting_as(Anonymous())
        with pytest.raises(Problem) as caught:
            await nobody.request("GET", "/v1/events")
        assert caught.value.code == "actor.missing"
