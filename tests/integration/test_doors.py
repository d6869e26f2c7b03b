"""The doors beside the gateway, over real TLS: a token opens nothing without the key, or the certificate, that it is bound to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import text
from tests.integration.test_certificates import certified
from tests.integration.test_systems import registered
from tests.world import PASSWORD, World, small_world

from medmesh.client import Gateway
from medmesh.client.credentials import Bound, Person
from medmesh.client.doors import bound_token, open_door
from medmesh.client.people import sign_in_by_certificate, sign_in_system
from medmesh.embedded.ports import Ports
from medmesh.embedded.testing import RunningServers
from medmesh.errors import Problem
from medmesh.security import possession
from medmesh.security.authority import new_key
from medmesh.security.tokens import hospital_token
from medmesh.service.bearer import Bearer
from medmesh.service.proofs import Proofs
from medmesh_inference.service import SERVICE as INFERENCE

PATH = "/v1/events"


@pytest.fixture
async def world(servers: RunningServers, private: Path, ports: Ports) -> AsyncIterator[World]:
    (port,) = ports.take("inference")
    async with small_world(servers, private, ports, INFERENCE, settings={"inference": {"port": port}}) as made:
        yield made


@pytest.fixture
async def http(world: World) -> AsyncIterator[httpx.AsyncClient]:
    import ssl

    async with httpx.AsyncClient(verify=ssl.create_default_context(cafile=str(world.ca)), base_url=world.audit) as made:
        yield made


async def code(http: httpx.AsyncClient, headers: dict[str, str], method: str = "GET", path: str = PATH) -> str:
    """What a request is refused with; "" when it is answered."""
    answer = await http.request(method, path, headers=headers)
    if answer.status_code < 400:
        return ""
    document = answer.json()
    return str(document["params"].get("reason") or document["code"])


async def test_an_overheard_token_or_request_opens_nothing(world: World, http: httpx.AsyncClient) -> None:
    admin = await world.admin()
    auditor = await world.user(admin, "qian", "auditor")
    mine = await bound_token(auditor, "audit", world.audit)
    theirs = Bound(world.audit, mine.token, Ed25519PrivateKey.generate())
    heard = mine.headers("GET", PATH, b"")
    assert await code(http, heard) == ""
    assert await code(http, heard) == "used before"
    assert await code(http, mine.headers("GET", "/v1/bodies", b"")) == "request"
    assert await code(http, theirs.headers("GET", PATH, b"")) == "key"
    assert await code(http, {"Authorization": f"Bearer {mine.token}"}) == "absent"
    assert await code(http, {"Authorization": f"DPoP {mine.token}"}) == "absent"
    another = await bound_token(auditor, "audit", world.audit)
    mixed = {**mine.headers("GET", PATH, b""), "Authorization": f"DPoP {another.token}"}
    assert await code(http, mixed) == "token"
    assert await code(http, another.headers("GET", PATH, b"")) == ""
    assert await world.records(auditor, verb="access.unproven"), "and somebody notices"


async def test_a_proof_counts_once_at_whichever_instance_it_is_shown(world: World, http: httpx.AsyncClient) -> None:
    admin = await world.admin()
    mine = await bound_token(await world.user(admin, "qian", "auditor"), "audit", world.audit)
    runtime = world.p.runtimes["audit"]

    def another_instance() -> None:
        unbound = runtime.settings.unbound_tokens
        runtime.bearer = Bearer(runtime.trust, runtime.doorstep, "audit", Proofs(runtime.database), unbound=unbound)

    heard = mine.headers("GET", PATH, b"")
    answers = await asyncio.gather(*(code(http, heard) for _ in range(5)))
    assert sorted(answers) == ["", *["used before"] * 4], "also when they come at once"
    another_instance()
    assert await code(http, heard) == "used before"
    # What is remembered goes when no proof of then is believed any more, and not before.
    await runtime.proofs.forget()
    another_instance()
    assert await code(http, heard) == "used before"
    async with runtime.unit() as uow:
        await uow.execute(text("UPDATE proofs_seen SET until = until - interval '1 hour'"))
    await runtime.proofs.forget()
    async with runtime.unit() as uow:
        assert (await uow.execute(text("SELECT count(*) FROM proofs_seen"))).scalar_one() == 0


async def test_a_token_that_is_bound_to_nothing_opens_nothing_unless_the_site_says_so(world: World, http: httpx.AsyncClient) -> None:
    admin = await world.admin()
    auditor = await world.user(admin, "qian", "auditor")
    token = (await auditor.request("POST", "/v1/tokens/audit"))["token"]
    assert await code(http, {"Authorization": f"Bearer {token}"}) == "security.token_unbound"
    proof = possession.prove(Ed25519PrivateKey.generate(), "GET", world.audit + PATH, token)
    assert await code(http, {"Authorization": f"DPoP {token}", "DPoP": proof}) == "security.token_unbound", "no key of one's own choice"
    world.p.runtimes["audit"].bearer._unbound = True
    assert await code(http, {"Authorization": f"Bearer {token}"}) == ""
    bound = await bound_token(auditor, "audit", world.audit)
    assert await code(http, {"Authorization": f"Bearer {bound.token}"}) == "absent", "what is bound stays bound"


async def test_the_proof_that_asks_for_a_token_is_checked(world: World) -> None:
    admin = await world.admin()
    auditor = await world.user(admin, "qian", "auditor")
    key = new_key()
    for proof in (
        possession.prove(key, "POST", f"{world.url}/v1/tokens/inference"),
        possession.prove(key, "GET", f"{world.url}/v1/tokens/audit"),
        "nonsense",
    ):
        with pytest.raises(Problem) as caught:
            await auditor.request("POST", "/v1/tokens/audit", headers={"DPoP": proof})
        assert caught.value.code == "security.possession"


async def test_the_token_of_a_certificates_session_needs_the_certificate_or_the_key(world: World) -> None:
    admin = await world.admin()
    files = await certified(world, admin, "qian", "auditor")
    other = await certified(world, admin, "zhao", "auditor")
    async with Gateway(world.url, ca=world.ca, identity=files) as door:
        person = await sign_in_by_certificate(door, "qian", PASSWORD)
        token = (await person.request("POST", "/v1/tokens/audit"))["token"]
        bound = await bound_token(person, "audit", world.audit)

    async def with_certificate(identity: Any) -> str:
        async with Gateway(world.audit, ca=world.ca, identity=identity, credentials=Person(token), attempts=1) as door:
            try:
                await door.request("GET", PATH)
            except Problem as problem:
                return str(problem.params["reason"])
        return ""

    assert await with_certificate(files) == ""
    assert await with_certificate(other) == "certificate"
    assert await with_certificate(None) == "certificate"
    async with Gateway(world.audit, ca=world.ca, credentials=bound) as door:  # where TLS ends before the door
        await door.request("GET", PATH)


async def test_a_hospitals_node_and_its_systems_prove_their_own_keys(world: World, http: httpx.AsyncClient) -> None:
    key = new_key()
    await registered(world, "his", key)
    async with world.node("renji"):
        node_key, certificate = world.p.nodes["renji"]
    token = hospital_token(node_key, certificate, audience="audit")
    assert await code(http, Bound(world.audit, token, node_key).headers("GET", PATH, b"")) == ""
    assert await code(http, {"Authorization": f"Bearer {token}"}) == "absent"
    assert await code(http, Bound(world.audit, token, new_key()).headers("GET", PATH, b"")) == "key"
    system = await sign_in_system(world.anybody, "his", key)
    url = f"http://127.0.0.1:{world.p.runtimes['inference'].settings.port}"
    async with await open_door(system, "inference", url) as door:
        assert (await door.request("GET", "/v2"))["name"]
    unbound = (await system.request("POST", "/v1/tokens/inference"))["token"]
    async with httpx.AsyncClient(base_url=url) as plain:
        assert await code(plain, {"Authorization": f"Bearer {unbound}"}, path="/v2") == "security.token_unbound"
