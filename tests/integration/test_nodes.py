"""A node's certificate after enrolment, on real servers: it renews itself, also when it was dark, and is revoked everywhere."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from sqlalchemy import update
from tests.records import Records
from tests.world import World

from medmesh.client import Gateway
from medmesh.contracts.governance import Hospitals
from medmesh.errors import Problem
from medmesh.security import renewal
from medmesh.security.authority import Authority, load_key, new_key, node_request
from medmesh.security.tokens import hospital_token, verify_actor
from medmesh.service.trust import Trust
from medmesh_edge import node as nodes
from medmesh_edge.enrolment import enrol
from medmesh_edge.node import running
from medmesh_edge.ports import site
from medmesh_edge.renewal import renew
from medmesh_edge.settings import Layout, Settings
from medmesh_governance.tables import enrolments

NOW = datetime.now(UTC)


async def until(ready: Callable[[], Awaitable[Any]]) -> Any:
    async with asyncio.timeout(30):
        while not (found := await ready()):
            await asyncio.sleep(0.05)
    return found


async def approve(world: World, approver: Gateway) -> None:
    """The one open enrolment."""

    async def opened() -> Any:
        return (await approver.request("GET", "/v1/approvals", query={"state": "open"}))["approvals"]

    (found,) = await until(opened)
    await world.decide(approver, found["approval"])


async def enrolled(world: World, hospital: str = "renji") -> tuple[Path, Gateway, Gateway]:
    """(folder of an enrolled node, security administrator, approver)."""
    admin = await world.admin()
    approver = await world.user(admin, "wu", "approver")
    code = (await admin.request("POST", "/v1/hospitals", {"hospital": hospital, "display_name": hospital}))["code"]
    folder = world.p.folder / hospital
    settings = Settings(hospital=hospital, node="node-1", gateway=world.url)
    enrolling = asyncio.create_task(enrol(folder, settings, world.ca.read_bytes(), code, seconds=60))
    await approve(world, approver)
    await enrolling
    return folder, admin, approver


def certificate(folder: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(Layout(folder).certificate.read_bytes())


async def replace_by_one_of(world: World, folder: Path, days_ago: int) -> None:
    """The node's certificate becomes one that was issued long ago, as governance would have issued it."""
    layout = Layout(folder)
    csr = node_request(load_key(layout.key), "renji", "node-1")
    old = Authority.load(world.p.folder / "ca").sign_node(csr, "renji", "node-1", now=NOW - timedelta(days=days_ago))
    values = {"serial": f"{old.serial_number:x}", "expires_at": old.not_valid_after_utc}
    async with world.p.runtimes["governance"].unit() as uow:
        await uow.execute(update(enrolments).values(values))
    layout.certificate.write_bytes(old.public_bytes(Encoding.PEM))


def test_two_thirds_of_a_life_are_when_it_is_time() -> None:
    key = new_key()
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(x509.Name([]))
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(datetime(2026, 1, 1, tzinfo=UTC))
        .not_valid_after(datetime(2026, 4, 1, tzinfo=UTC))
        .sign(key, renewal.hashes.SHA256())
    )
    assert not renewal.due(certificate, datetime(2026, 3, 1, 23, tzinfo=UTC))
    assert renewal.due(certificate, datetime(2026, 3, 2, 1, tzinfo=UTC))


async def test_a_running_node_renews_itself_with_a_new_key_and_goes_on(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, admin, _ = await enrolled(world)
    before, key = certificate(folder), Layout(folder).key.read_bytes()
    async with running(folder) as node:

        async def connected() -> bool:
            return bool(node.connected)

        await until(connected)
        assert certificate(folder) == before, "nothing is renewed before its time"
        with monkeypatch.context() as patched:
            patched.setattr(renewal, "RENEW_AFTER", 0.0)

            async def renewed() -> bool:
                return certificate(folder) != before and Layout(folder).key.read_bytes() != key

            await until(renewed)
        assert (await node.gateway.poll(0, 0)) == [], "with the new certificate the door opens"
        node.connected = False
        await until(connected)
    (hospital,) = (await admin.ask("/v1/hospitals", Hospitals)).hospitals
    assert [view.node for view in hospital.nodes] == ["node-1"], "one node, its newest certificate"
    assert not list(folder.glob("secrets/node.next.*"))


async def test_only_the_key_of_the_present_certificate_renews_it_and_repeating_is_harmless(world: World) -> None:
    folder, *_ = await enrolled(world)
    layout, key = Layout(folder), new_key()
    csr = node_request(key, "renji", "node-1")
    body = {"certificate_pem": layout.certificate.read_text(), "csr_pem": csr}

    async def ask(proof: str, **more: str) -> Any:
        return await world.anybody.request("POST", "/v1/enrolments/renewal", {**body, "proof": proof, **more})

    mine = renewal.prove(load_key(layout.key), csr, datetime.now(UTC))
    other = node_request(new_key(), "renji", "node-1")
    foreign = Authority(new_key(), certificate(folder)).sign_node(csr, "renji", "node-1")
    for proof, more, code in (
        (renewal.prove(key, csr, datetime.now(UTC)), {}, "security.request_unsigned"),
        (mine, {"csr_pem": other}, "security.request_unsigned"),
        (renewal.prove(load_key(layout.key), csr, NOW - timedelta(minutes=6)), {}, "security.clock"),
        (mine, {"certificate_pem": foreign.public_bytes(Encoding.PEM).decode()}, "security.certificate_foreign"),
        (mine, {"certificate_pem": "nonsense"}, "security.certificate_foreign"),
        ("nonsense", {}, "security.request_unsigned"),
    ):
        with pytest.raises(Problem) as caught:
            await ask(proof, **more)
        assert caught.value.code == code
    records = Records(world.p)
    await records.new()
    first = await ask(mine)
    assert first["state"] == "enrolled"
    assert await records.said() == [("governance", "node.enrolled", 0, ""), ("governance", "node.renew", 0, "")]
    assert await ask(mine) == first
    assert await records.said() == []


async def test_a_node_that_was_dark_renews_with_a_second_persons_approval_but_not_for_ever(world: World) -> None:
    folder, _, approver = await enrolled(world)
    await replace_by_one_of(world, folder, days_ago=179)
    async with running(folder) as node:
        await approve(world, approver)
        assert not node.connected

        async def connected() -> bool:
            return bool(node.connected)

        await until(connected)
    assert certificate(folder).not_valid_after_utc > NOW + timedelta(days=89)
    await replace_by_one_of(world, folder, days_ago=181)
    async with site(folder) as opened, opened.gateway() as gateway:
        with pytest.raises(Problem) as caught:
            await renew(opened, gateway, datetime.now(UTC))
    assert caught.value.code == "security.certificate_dark"


async def test_a_refused_renewal_leaves_the_node_as_it_was(world: World) -> None:
    folder, _, approver = await enrolled(world)
    await replace_by_one_of(world, folder, days_ago=100)
    before = certificate(folder)
    async with site(folder) as opened, opened.gateway() as gateway:
        with pytest.raises(Problem):
            await renew(opened, gateway, datetime.now(UTC))
        (found,) = (await approver.request("GET", "/v1/approvals", query={"state": "open"}))["approvals"]
        await world.decide(approver, found["approval"], approve=False)
        with pytest.raises(Problem) as caught:
            await renew(opened, gateway, datetime.now(UTC))
    assert caught.value.code == "edge.refused"
    assert certificate(folder) == before
    assert not list(folder.glob("secrets/node.next.*"))


async def test_a_crash_between_key_and_certificate_is_finished_at_the_next_start(private: Path) -> None:
    (private / "secrets").mkdir()
    layout = Layout(private)
    for stopped_after in (0, 1):
        layout.key.write_text("old key")
        layout.certificate.write_text("old certificate")
        layout.next_certificate.write_text("new certificate")
        (layout.key if stopped_after else layout.next_key).write_text("new key")
        layout.take_up()
        assert (layout.key.read_text(), layout.certificate.read_text()) == ("new key", "new certificate")
    layout.next_key.write_text("a key for which there is no certificate yet")
    layout.take_up()
    assert layout.key.read_text() == "new key"


async def test_a_revoked_node_is_believed_nowhere_within_seconds_also_after_a_restart(world: World) -> None:
    folder, admin, _ = await enrolled(world)
    layout = Layout(folder)
    token = hospital_token(load_key(layout.key), certificate(folder))
    ended = asyncio.Event()
    async with site(folder) as opened, opened.gateway(attempts=1) as gateway, opened.gateway(attempts=1) as other:

        async def read(started: asyncio.Event) -> None:
            async for _ in gateway.inbox(0, started.set):
                pass
            ended.set()

        started = asyncio.Event()
        reading = asyncio.create_task(read(started))
        await asyncio.wait_for(started.wait(), 10)
        polling = asyncio.create_task(other.poll(0, 25))
        for runtime in world.p.runtimes.values():
            verify_actor(token, runtime.trust(), datetime.now(UTC))
        done = await admin.command("POST", "/v1/hospitals/renji/revocation", {"reason": "the machine was stolen"})
        assert done["revoked"] == [f"{certificate(folder).serial_number:x}"]

        async def refused_everywhere() -> bool:
            codes = set()
            for runtime in world.p.runtimes.values():
                try:
                    verify_actor(token, runtime.trust(), datetime.now(UTC))
                    return False
                except Problem as problem:
                    codes.add(problem.code)
            return codes == {"security.certificate_revoked"}

        async with asyncio.timeout(10):
            await until(refused_everywhere)
            await ended.wait()
            with pytest.raises(Problem) as caught:
                await polling
        await reading
        assert caught.value.code == "security.certificate_revoked"
        with pytest.raises(Problem) as caught:
            await renew(opened, gateway, datetime.now(UTC), at_once=True)
        assert caught.value.code == "security.certificate_revoked"
        open_route = await gateway._http.get("/v1/trust")
        assert open_route.json()["code"] == "security.certificate_revoked", "who shows it gets nothing at all"
        why = [r["why"] for r in await Records(world.p).new() if r["sub"] == "access.unproven"]
        assert why == ["security.certificate_revoked"], "and is recorded, once a minute"
    for name, runtime in world.p.runtimes.items():
        restarted = Trust(world.p.folder / "trust.json", runtime.settings.state)
        assert done["revoked"][0] in restarted().revoked, f"{name} forgot it"
    (hospital,) = (await admin.ask("/v1/hospitals", Hospitals)).hospitals
    assert [view.revoked for view in hospital.nodes] == [True]


async def test_only_the_security_administrator_revokes_and_it_is_recorded(world: World) -> None:
    _, admin, approver = await enrolled(world)
    for who in (approver, await world.user(admin, "li", "researcher")):
        with pytest.raises(Problem) as caught:
            await who.command("POST", "/v1/hospitals/renji/revocation", {"reason": "x"})
        assert caught.value.code == "access.denied"
    with pytest.raises(Problem) as caught:
        await admin.command("POST", "/v1/hospitals/nobody/revocation", {"reason": "x"})
    assert caught.value.code == "request.not_found"
    await admin.command("POST", "/v1/hospitals/renji/revocation", {"node": "node-1", "reason": "stolen"})
    again = await admin.command("POST", "/v1/hospitals/renji/revocation", {"reason": "again"})
    assert again["revoked"] == [], "what is revoked stays revoked, once"
    recorded = await world.records(await world.user(admin, "qian", "auditor"), verb="node.revoke")
    assert [(r["agents"][0]["who"], r["out"], r["why"]) for r in recorded] == [("person:sun", 0, ""), ("person:sun", 0, "")]
    assert recorded[0]["detail"] == {"certificates": 1, "reason": "stolen"}


async def test_a_program_whose_node_comes_to_an_end_ends_and_says_why(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever started it starts it again; else it would stand there, and do nothing for anybody."""
    folder, *_ = await enrolled(world)

    async def broken(_: nodes.Node) -> None:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(nodes.Node, "run", broken)
    for name in ("lock_down", "frugal"):  # of the whole process
        monkeypatch.setattr(nodes, name, lambda: None)
    monkeypatch.setattr(nodes.telemetry, "start", lambda *_, **__: None)
    async with asyncio.timeout(30):
        with pytest.raises(RuntimeError, match="a fault of ours"):
            await nodes.run(folder)
