"""Who may not send is refused by what the headers say: not a byte of the body is waited for."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import closing
from http.client import HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

import pytest
from tests.world import World

from medmesh.client.credentials import Node
from medmesh.store.objects.port import CHUNK
from medmesh_gateway.bodies import MAX_BODY

UPDATES, UPLOADS, RECORDS = "/v1/federations/f/updates", f"/v1/uploads/{'0' * 64}?offset=0&total=9", "/v1/audit/records"
TOGETHER = {"Content-Type": "multipart/related; boundary=b"}
METHODS = {UPDATES: "POST", UPLOADS: "PUT", RECORDS: "POST"}


async def announced(world: World, path: str, headers: Mapping[str, str], length: int, *, shown: str = "", body: bytes = b"") -> Any:
    """(status, problem's code, whether it hung up) for headers that announce a body, of which only `body` follows. `shown` is the hospital
    whose certificate the connection is made with. Raises `TimeoutError` where a body is waited for."""
    at, context = urlsplit(world.url), ssl.create_default_context(cafile=str(world.ca))
    if shown:
        context.load_cert_chain(world.p.folder / f"{shown}.pem", world.p.folder / f"{shown}.key")

    def exchange() -> tuple[int, str, bool]:
        # A client that reads nothing before it has sent everything: asyncio's streams read what comes meanwhile.
        with closing(HTTPSConnection(at.hostname or "", at.port, context=context, timeout=3)) as connection:
            connection.request(METHODS[path], path, body, {"Content-Length": str(length), **headers})
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())["code"], answer.getheader("Connection") == "close"

    return await asyncio.to_thread(exchange)


@pytest.fixture
async def renji(world: World) -> AsyncIterator[Node]:
    async with world.node("renji") as door:
        assert isinstance(door.credentials, Node)
        yield door.credentials


@pytest.mark.parametrize("path", METHODS)
async def test_a_stranger_is_told_before_a_body_is_taken(world: World, renji: Node, path: str) -> None:
    signed = renji.headers(METHODS[path], path, b"{}")
    missing = {name: value for name, value in signed.items() if name.lower() != "medmesh-signature"}
    old = {**signed, "medmesh-signature": f"1000000000,{signed['medmesh-signature'].partition(',')[2]}"}
    tried = {
        "actor.missing": ({}, ""),
        "security.certificate_needed": (signed, ""),
        "security.token_malformed": ({"Authorization": "Medmesh-Node not-a-token"}, "renji"),
        "security.request_unsigned": (missing, "renji"),
        "security.clock": (old, "renji"),
    }
    for code, (headers, shown) in tried.items():
        status, told, closed = await announced(world, path, {**TOGETHER, **headers}, 200_000, shown=shown)
        assert (status in (401, 403), told, closed) == (True, code, True)
    with pytest.raises(TimeoutError):  # a body is taken of who may send one
        await announced(world, path, {**TOGETHER, **signed}, 200_000, shown="renji")


async def test_a_session_that_is_none_sends_no_body(world: World) -> None:
    status, _, closed = await announced(world, UPLOADS, {"Authorization": "Bearer nobody-has-this"}, 1000)
    assert (status, closed) == (401, True)


@pytest.mark.parametrize(("path", "most"), [(UPDATES, MAX_BODY + CHUNK), (UPLOADS, CHUNK)])
async def test_a_body_that_says_it_is_too_long_is_not_begun_with(world: World, renji: Node, path: str, most: int) -> None:
    headers = {**TOGETHER, **renji.headers(METHODS[path], path, b"{}")}
    assert await announced(world, path, headers, most + 1, shown="renji") == (413, "request.too_large", True)


async def test_a_revoked_node_is_told_so_before_its_body(world: World, renji: Node) -> None:
    _, certificate = world.p.nodes["renji"]
    world.p.runtimes["gateway"].trust.revoke(frozenset({f"{certificate.serial_number:x}"}))
    headers = {**TOGETHER, **renji.headers("POST", UPDATES, b"{}")}
    status, code, closed = await announced(world, UPDATES, headers, 200_000, shown="renji")
    assert (status // 100, code, closed) == (4, "security.certificate_revoked", True)


async def test_who_has_sent_everything_before_it_reads_hears_the_refusal(world: World) -> None:
    many = MAX_BODY + CHUNK
    assert (await announced(world, UPDATES, TOGETHER, many, body=bytes(many)))[1:] == ("actor.missing", True)
