"""Client certificates of people over real TLS: what signs in, what a session is bound to, and what takes it away."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from sqlalchemy import update
from tests.records import left
from tests.world import PASSWORD, World, small_world

from medmesh.client import Gateway
from medmesh.client.credentials import Node, Person
from medmesh.client.people import (
    install_certificate,
    request_certificate,
    sign_in_by_certificate,
    signing_request,
)
from medmesh.embedded.ports import Ports
from medmesh.embedded.testing import RunningServers
from medmesh.errors import Problem
from medmesh.security.authority import (
    fingerprint,
    hospital_of,
    key_pem,
    load_key,
    new_key,
    node_request,
    person_of,
    person_request,
    verify_node,
)
from medmesh_governance.tables import certificates, sessions, users

Identity = tuple[Path, Path]


@pytest.fixture
async def world(servers: RunningServers, private: Path, ports: Ports) -> AsyncIterator[World]:
    async with small_world(servers, private, ports, settings={"gateway": {"session_cache_seconds": 20}}) as made:
        yield made


def connected(world: World, identity: Identity | None, session: str = "") -> Gateway:
    """Connections of their own, which show this certificate."""
    credentials = Person(session) if session else None
    return Gateway(world.url, ca=world.ca, identity=identity, credentials=credentials, attempts=1)


async def code(door: Gateway, method: str, path: str, body: Any = None) -> str:
    try:
        await door.request(method, path, body)
    except Problem as problem:
        return problem.code
    return ""


async def sign_in(world: World, name: str, identity: Identity | None, password: str = PASSWORD, **more: Any) -> str:
    """The code a sign-in is refused with; "" when it is not."""
    async with connected(world, identity) as door:
        return await code(door, "POST", "/v1/sessions", {"name": name, "password": password, **more})


async def certified(world: World, admin: Gateway, name: str, *roles: str) -> Identity:
    """Somebody with an authenticator where a role needs one, and a certificate."""
    person = await world.user(admin, name, *roles)
    known = world.authenticators[name]
    shown = {"code": await known.code()} if known.secret else {}
    return await request_certificate(person, name, world.p.folder / "people", **shown)


def written(world: World, name: str, certificate: x509.Certificate, key: Any) -> Identity:
    files = world.p.folder / f"{name}.pem", world.p.folder / f"{name}.key"
    files[0].write_bytes(certificate.public_bytes(Encoding.PEM))
    files[1].write_bytes(key_pem(key))
    return files


async def test_password_and_certificate_sign_in_count_as_strong_and_neither_does_alone(world: World) -> None:
    admin = await world.admin()
    wu = await certified(world, admin, "wu", "approver")
    assert oct(wu[1].stat().st_mode)[-3:] == "600"
    assert await sign_in(world, "wu", wu, "Wrong-Horse-7-Battery") == "governance.sign_in_refused"
    assert await sign_in(world, "wu", None) == "governance.certificate_wanted"
    assert await sign_in(world, "wu", None, code=await world.authenticators["wu"].code()) == "governance.certificate_wanted"
    assert await sign_in(world, "wu", None, certificate=fingerprint(read(wu))) == "governance.certificate_wanted", "what the body says"
    async with connected(world, wu) as door:
        person = await sign_in_by_certificate(door, "wu", PASSWORD)
        assert await code(person, "POST", "/v1/approvals/none/decision", {"approve": True}) == "", "strong at once"
        auditor = await world.user(admin, "an", "auditor")
        (record,) = await world.records(auditor, actor="person:wu", verb="approval.decide")
        assert record["agents"][0]["method"] == f"pwd+swk sha256:{fingerprint(read(wu))}"
        opened = [r for r in await world.records(auditor, actor="person:wu", verb="session.open") if r["out"] == 0]
        assert opened[-1]["detail"]["certificate"] == fingerprint(read(wu))


def read(identity: Identity) -> x509.Certificate:
    return x509.load_pem_x509_certificate(identity[0].read_bytes())


async def test_somebody_elses_a_nodes_an_expired_or_a_self_made_certificate_signs_nobody_in(world: World) -> None:
    admin = await world.admin()
    await certified(world, admin, "wu", "approver")
    li = await certified(world, admin, "li", "researcher")
    await world.user(admin, "zhou", "clinician")
    world.p.hospital("renji")
    key, node = world.p.nodes["renji"]
    as_node = written(world, "node", node, key)
    assert await sign_in(world, "wu", li) == "governance.certificate_wrong"
    assert await sign_in(world, "wu", as_node) == "governance.certificate_wrong"
    assert await sign_in(world, "zhou", li) == "governance.certificate_wrong", "who has none is not let in by another's either"
    unknown = new_key()
    forged = world.p.authority.sign_person(person_request(unknown, "wu"), "wu")
    assert await sign_in(world, "wu", written(world, "forged", forged, unknown)) == "governance.certificate_wrong", "nobody issued it here"
    old = world.p.authority.sign_person(person_request(unknown, "wu"), "wu", days=1, now=datetime.now(UTC) - timedelta(days=2))
    assert await sign_in(world, "wu", written(world, "old", old, unknown)) in ("client.tls", "client.unreachable"), "not even connected"
    assert await sign_in(world, "li", li) == ""


async def test_a_persons_certificate_is_no_nodes_and_the_other_way_round(world: World) -> None:
    admin = await world.admin()
    wu = await certified(world, admin, "wu", "approver")
    key = new_key()
    node = world.p.authority.sign_node(node_request(key, "renji", "node-1"), "renji", "node-1")
    assert person_of(read(wu)) == "wu"
    for wrong, of in ((read(wu), hospital_of), (node, person_of)):
        with pytest.raises(Problem) as caught:
            of(wrong)
        assert caught.value.code == "security.certificate_foreign"
    with pytest.raises(Problem):
        verify_node(read(wu), world.p.authority.certificate, at=datetime.now(UTC))
    person_key = new_key()
    lying = world.p.authority.sign_person(node_request(person_key, "renji", "node-1"), "wu")
    assert person_of(lying) == "wu", "what a request says of itself is ignored"
    with pytest.raises(Problem):
        hospital_of(lying)
    with pytest.raises(Problem):  # a node's client cannot even be made of it
        Node(person_key, lying).headers("GET", "/v1/inbox", b"")


async def test_a_session_works_only_on_connections_that_show_its_certificate(world: World) -> None:
    admin = await world.admin()
    wu = await certified(world, admin, "wu", "approver")
    li = await certified(world, admin, "li", "researcher")
    async with connected(world, wu) as door:
        session = (await door.request("POST", "/v1/sessions", {"name": "wu", "password": PASSWORD}))["session"]
    routes = (
        ("GET", "/v1/approvals", None),
        ("GET", "/v1/sessions", None),
        ("POST", "/v1/tokens/audit", None),
        ("POST", "/v1/sessions/step-up", {"password": PASSWORD}),
        ("POST", "/v1/password", {"old": PASSWORD, "new": "Quite-Another-8-Battery"}),
        ("POST", "/v1/second-factor", {}),
        ("POST", "/v1/certificates", {"csr_pem": person_request(new_key(), "wu"), "password": PASSWORD}),
    )
    async with connected(world, wu, session) as right, connected(world, None, session) as without, connected(world, li, session) as other:
        for _ in range(2):  # the second time the gateway remembers the session
            assert await code(right, "GET", "/v1/approvals") == ""
            for door in (without, other):
                for method, path, body in routes:
                    assert await code(door, method, path, body) == "governance.certificate_session", path
        assert await code(without, "GET", f"/v1/approvals?certificate={fingerprint(read(wu))}") == "governance.certificate_session"
        assert await code(right, "POST", "/v1/tokens/audit") == ""
        assert await code(right, "GET", "/v1/sessions") == ""
    auditor = await world.user(admin, "an", "auditor")
    assert await world.records(auditor, actor="person:wu", verb="session.foreign")


async def test_step_up_needs_the_password_again_and_counts_wrong_ones(world: World) -> None:
    admin = await world.admin()
    wu = await certified(world, admin, "wu", "approver")
    decide = ("POST", "/v1/approvals/none/decision", {"approve": True})
    async with connected(world, wu) as door:
        person = await sign_in_by_certificate(door, "wu", PASSWORD)
        async with world.p.runtimes["governance"].unit() as uow:
            await uow.execute(update(sessions).values(strong_at=datetime.now(UTC) - timedelta(minutes=6)))
        bare = person.acting_as(Person(person.credentials.session))  # type: ignore[attr-defined]
        assert await code(bare, "GET", "/v1/approvals") == ""
        assert await code(bare, *decide) == "security.step_up"
        for wrong in ({"password": "x"}, {}, {"code": "000000"}, {"password": ""}):
            assert await code(bare, "POST", "/v1/sessions/step-up", wrong) == "governance.code_wrong"
        assert await code(person, *decide) == "", "asked for, shown, and done"
        for _ in range(4):
            assert await code(bare, "POST", "/v1/sessions/step-up", {"password": "x"}) == "governance.code_wrong"
        assert await code(bare, "POST", "/v1/sessions/step-up", {"password": "x"}) == "governance.code_wrong"
        assert await code(bare, "POST", "/v1/sessions/step-up", {"password": PASSWORD}) == "governance.locked"


async def test_revoked_it_is_believed_nowhere_and_its_sessions_are_over(world: World) -> None:
    admin = await world.admin()
    wu = await certified(world, admin, "wu", "approver")
    li = await certified(world, admin, "li", "researcher")
    async with connected(world, wu) as door:
        person = await sign_in_by_certificate(door, "wu", PASSWORD)
        assert await code(person, "GET", "/v1/approvals") == ""
        done = await admin.command("POST", "/v1/users/wu/certificates/revocation", {"reason": "laptop lost"})
        assert done["revoked"] == [f"{read(wu).serial_number:x}"]
        async with asyncio.timeout(30):
            while await code(person, "GET", "/v1/approvals") != "security.certificate_revoked":
                await asyncio.sleep(0.1)
    async with connected(world, None, person.credentials.session) as without:  # type: ignore[attr-defined]
        assert await code(without, "GET", "/v1/approvals") in ("governance.session_over", "governance.certificate_session")
    assert await sign_in(world, "wu", wu) == "security.certificate_revoked"
    assert await sign_in(world, "li", li) == "", "nobody else's"
    again = await admin.command("POST", "/v1/users/wu/certificates/revocation", {"reason": "laptop lost"})
    assert again["revoked"] == []
    assert await sign_in(world, "wu", None, code=await world.authenticators["wu"].code()) == "", "the authenticator is back"
    signed_in = await world.sign_in("wu")
    wish = {"csr_pem": person_request(load_key(wu[1]), "wu"), "code": await world.authenticators["wu"].code()}
    assert await code(signed_in, "POST", "/v1/certificates", wish) == "governance.certificate_key", "its key is not certified again"


async def test_who_has_none_gets_one_just_after_signing_in_and_who_has_a_factor_shows_it(world: World) -> None:
    admin = await world.admin()
    li = await world.user(admin, "li", "researcher")
    folder = world.p.folder / "people"
    async with world.p.runtimes["governance"].unit() as uow:
        await uow.execute(update(sessions).where(sessions.c.name == "li").values(opened_at=datetime.now(UTC) - timedelta(minutes=16)))
    with pytest.raises(Problem) as caught:
        await request_certificate(li, "li", folder)
    assert caught.value.code == "governance.sign_in_again"
    other = await world.sign_in("li")
    fresh = await world.sign_in("li")
    first = await request_certificate(fresh, "li", folder)
    lost = {"csr_pem": person_request(load_key(first[1]), "li")}
    again = await fresh.request("POST", "/v1/certificates", lost)
    assert again["fingerprint"] == fingerprint(read(first)), "an answer that was lost"
    assert await code(other, "GET", "/v1/sessions") == "governance.session_over", "it never showed it"
    assert datetime.now(UTC) + timedelta(days=29) < read(first).not_valid_after_utc < datetime.now(UTC) + timedelta(days=31)
    another = person_request(new_key(), "li")
    assert await code(fresh, "POST", "/v1/certificates", {"csr_pem": another}) == "governance.no_second_factor", "this session showed none"
    async with connected(world, first) as door:
        bound = await sign_in_by_certificate(door, "li", PASSWORD)
        assert await code(bound, "POST", "/v1/certificates", {"csr_pem": another, "password": "x"}) == "governance.code_wrong"
        assert await code(bound, "POST", "/v1/certificates", {"csr_pem": another, "password": PASSWORD}) == "", "renewed with a new key"
    wu = await world.user(admin, "wu", "approver")
    request = {"csr_pem": person_request(new_key(), "wu")}
    assert await code(wu, "POST", "/v1/certificates", request) == "governance.code_wrong"
    assert await code(wu, "POST", "/v1/certificates", {**request, "code": await world.authenticators["wu"].code()}) == ""
    assert await code(wu, "POST", "/v1/certificates", {"csr_pem": "nonsense", "code": "1"}) == "security.request_invalid"


async def test_the_administrator_issues_for_a_request_that_was_handed_over_never_for_themselves(world: World) -> None:
    admin = await world.admin()
    await world.user(admin, "zhou", "clinician")
    folder = world.p.folder / "elsewhere"
    csr = signing_request("zhou", folder)
    made = await admin.request("POST", "/v1/users/zhou/certificates", {"csr_pem": csr})
    with pytest.raises(Problem) as caught:
        install_certificate("wu", folder, made["certificate_pem"])
    assert caught.value.code == "client.certificate_foreign"
    zhou = install_certificate("zhou", folder, made["certificate_pem"])
    assert await sign_in(world, "zhou", zhou) == ""
    assert await code(admin, "POST", "/v1/users/sun/certificates", {"csr_pem": person_request(new_key(), "sun")}) == "governance.yourself"
    assert await code(admin, "POST", "/v1/users/wu/certificates", {"csr_pem": person_request(new_key(), "wu")}) == "request.not_found"
    listed = {user["name"]: user for user in (await admin.request("GET", "/v1/users"))["users"]}
    assert listed["zhou"]["certificate_until"] is not None
    assert listed["sun"]["certificate_until"] is None
    await admin.request("POST", "/v1/users/zhou/recovery", {"second_factor": True})
    async with asyncio.timeout(30):
        while await sign_in(world, "zhou", zhou) != "security.certificate_revoked":
            await asyncio.sleep(0.1)
    (revoked,) = await left(world.p, "certificate.revoke")
    assert (revoked["entities"][0]["id"], revoked["detail"]) == ("zhou", {"reason": "recovered"})


async def test_a_session_ends_with_its_certificate_and_emergency_access_takes_the_password(world: World) -> None:
    admin = await world.admin()
    await admin.request("POST", "/v1/hospitals", {"hospital": "renji", "display_name": "r"})
    chen = await certified(world, admin, "chen", "clinician")
    async with world.p.runtimes["governance"].unit() as uow:
        await uow.execute(update(certificates).values(expires_at=datetime.now(UTC) + timedelta(minutes=30)))
    async with connected(world, chen) as door:
        opened = await door.request("POST", "/v1/sessions", {"name": "chen", "password": PASSWORD})
        assert datetime.fromisoformat(opened["expires"]) < datetime.now(UTC) + timedelta(minutes=31)
        person = door.acting_as(Person(opened["session"]))
        wish = {"organisation": "renji", "reason": "transfer", "note": "no colleague of the ward answers"}
        assert await code(person, "POST", "/v1/emergencies", wish) == "governance.code_wrong"
        assert (await person.request("POST", "/v1/emergencies", {**wish, "password": PASSWORD}))["state"] == "open"
    async with world.p.runtimes["governance"].unit() as uow:
        await uow.execute(update(certificates).values(expires_at=datetime.now(UTC) - timedelta(seconds=1)))
        row = (await uow.execute(update(users).where(users.c.name == "chen").values(failures=0).returning(users.c.factor))).one()
    assert row.factor is None
    assert await sign_in(world, "chen", None) == "", "over, it is wanted no longer: chen's role needs no second factor"


async def test_the_commands_make_the_key_here_sign_in_with_it_and_ask_for_no_code(world: World) -> None:
    admin = await world.admin()
    await world.user(admin, "wu", "approver")
    place = world.p.folder / "wu" / "session.json"
    environment = {**os.environ, "MEDMESH_SESSION": str(place), "MEDMESH_LANG": "en"}

    async def medmesh(*words: str, typed: str = "") -> str:
        command = (sys.executable, "-P", "-m", "medmesh", *words)
        done = await asyncio.to_thread(
            subprocess.run, command, input=typed.encode(), capture_output=True, check=False, timeout=60, env=environment
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()

    login = ("login", "wu", "--gateway", world.url, "--ca", str(world.ca), "--password", PASSWORD)
    await medmesh(*login, "--code", await world.authenticators["wu"].code())
    assert "installed" in await medmesh("account", "certificate", "request", "--code", await world.authenticators["wu"].code())
    key = place.parent / "certificates" / "wu.key"
    assert oct(key.stat().st_mode)[-3:] == "600"
    first = key.read_bytes()
    assert "signed in" in await medmesh(*login), "no code was asked for"
    assert json.loads(await medmesh("account", "sessions"))[0]["this"]
    async with world.p.runtimes["governance"].unit() as uow:
        await uow.execute(update(sessions).values(strong_at=datetime.now(UTC) - timedelta(minutes=6)))
    assert "installed" in await medmesh("account", "certificate", "request", typed=f"{PASSWORD}\n"), "renewed with a new key"
    assert key.read_bytes() != first
    await medmesh(*login)
    csr = await medmesh("account", "certificate", "request", "--offline", "zhou")
    assert "CERTIFICATE REQUEST" in csr
