"""Every route leaves exactly the audit records it ought to: walked from the declarations, on real servers.

A new route that nobody thought of here fails the first test. Handlers: `test_records_handlers.py`.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.records import Records
from tests.world import World, small_world

from medmesh.cli.schemas import application
from medmesh.client import Gateway
from medmesh.client.credentials import Bound, Credentials, Person
from medmesh.client.doors import bound_token
from medmesh.contracts.message import Command, Exchange, Query, Signal
from medmesh.embedded.ports import Ports
from medmesh.embedded.testing import RunningServers
from medmesh.errors import Problem
from medmesh.ledger import note
from medmesh.security.keys import write_secret
from medmesh_edge.node import Node
from medmesh_edge.ports import site
from medmesh_edge.settings import Settings
from medmesh_gateway.routes import ROUTES
from medmesh_inference.service import SERVICE as INFERENCE

OPEN = "open"
HASHES = "hashes and headers, the same for everybody"
OWN: dict[str, dict[str, tuple[str, ...] | str]] = {
    "gateway": {
        "HEAD /v1/uploads/{sha256}": "how far an upload came",
        "PUT /v1/uploads/{sha256}": ("object.write",),
        "GET /v1/objects/{sha256}": ("object.read",),
        "GET /v1/objects/{sha256}/unchanged": "whether two objects that the asker names are alike",
        "GET /v1/inbox": "facts, which are in the log of whoever emitted them",
        "POST /v1/audit/records": "records are what it carries",
        "POST /v1/audit/sightings": "what a hospital was shown of the log; who finds another log by it records that",
        "GET /v1/operations/{operation}": "the answer to one's own command",
        "POST /v1/tokens/{audience}": "the same session at another door, which records what is done there",
        "DELETE /v1/sessions": ("session.close",),
        "GET /v1/trust": OPEN,
        "GET /v1/roster": OPEN,
    },
    "audit": {
        "GET /v1/events": ("audit.search",),
        "GET /v1/events/{event}": ("audit.read",),
        "GET /v1/events/{event}/proof": ("audit.prove",),
        "GET /v1/bodies": ("audit.copy",),
        "GET /fhir/metadata": OPEN,
        "GET /fhir/AuditEvent": ("audit.search",),
        "GET /fhir/AuditEvent/{event}": ("audit.read",),
        "GET /v1/coverage": ("audit.coverage",),
        "GET /v1/lineage/{kind}/{id}": ("audit.lineage",),
        "GET /v1/mlps/evidence": ("audit.evidence",),
        "GET /v1/exports/{export}": "the state of a request that is recorded itself",
        "GET /v1/exports/{export}/content": ("audit.download",),
        "GET /log/checkpoint": HASHES,
        "GET /log/tile/{rest}": HASHES,
        "GET /log/sm3/{rest}": HASHES,
        "GET /v1/consistency": HASHES,
    },
    "inference": {
        "GET /v2": "what it is",
        "GET /v2/health/live": OPEN,
        "GET /v2/health/ready": OPEN,
        "GET /v2/models/{model}": "what a model takes",
        "GET /v2/models/{model}/versions/{version}": "what a model takes",
        "GET /v2/models/{model}/ready": "whether it is there",
        "GET /v2/models/{model}/versions/{version}/ready": "whether it is there",
        "POST /v2/models/{model}/infer": ("inference.infer",),
        "POST /v2/models/{model}/versions/{version}/infer": ("inference.infer",),
    },
}
"""The routes that carry no message to an owner: the records each leaves when it does what it is asked, or why it leaves none."""
QUIET = {Signal: "a sign of life: kept nowhere", Query: "reading; where a person reads what is somebody's, its owner records it"}
CARRIED = {f"{route.method} {route.path}": route.message for route in ROUTES}


def routes(service: str) -> set[str]:
    """`METHOD path` of everything a service serves."""
    paths = application(service).openapi()["paths"]
    return {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}


def plain(path: str) -> str:
    """Without a parameter's converter."""
    return re.sub(r"{(\w+):\w+}", r"{\1}", path)


def test_every_route_is_accounted_for() -> None:
    assert routes("gateway") == OWN["gateway"].keys() | CARRIED.keys()
    for service in ("audit", "inference"):
        assert {plain(route) for route in routes(service)} == OWN[service].keys()
    changing = {"POST", "PUT", "DELETE", "PATCH"}
    unrecorded = {f"{s} {r}" for s, rows in OWN.items() for r, left in rows.items() if isinstance(left, str) and r.split()[0] in changing}
    hospitals = {"gateway POST /v1/audit/records", "gateway POST /v1/audit/sightings"}
    assert unrecorded == {*hospitals, "gateway POST /v1/tokens/{audience}"}
    for route, message in CARRIED.items():
        assert issubclass(message, (Command, Exchange, *QUIET)), route


# --- The doors -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
async def world(servers: RunningServers, private: Path, ports: Ports) -> AsyncIterator[World]:
    (port,) = ports.take("inference")
    async with small_world(servers, private, ports, INFERENCE, settings={"inference": {"port": port}}) as made:
        yield made


class Doors:
    """Who may do everything there is at each door, and what the last request left."""

    def __init__(self, world: World, urls: dict[str, str], bearers: dict[str, Credentials], auditor: Gateway) -> None:
        self.world, self.urls, self.bearers, self.auditor = world, urls, bearers, auditor
        self.records = Records(world.p, aside=("audit.heartbeat",))  # every minute, whatever is asked
        self.http = httpx.AsyncClient(verify=str(world.ca) and _context(world.ca), timeout=30)

    async def ask(self, service: str, method: str, target: str, bearer: str | Credentials | None = "", **options: Any) -> httpx.Response:
        headers = dict(options.pop("headers", {}))
        who = self.bearers[service] if bearer == "" else bearer
        if isinstance(who, str):
            headers["authorization"] = f"Bearer {who}"
        elif who is not None:
            headers |= who.headers(method, target, b"")
        return await self.http.request(method, self.urls[service] + target, headers=headers, **options)

    async def left(self, service: str, method: str, target: str, **options: Any) -> list[tuple[str, str, int, str]]:
        """(service, verb, outcome, why) of the records one request left."""
        await self.records.new()
        await self.ask(service, method, target, **options)
        return await self.records.said()


def _context(ca: Path) -> Any:
    import ssl

    return ssl.create_default_context(cafile=str(ca))


@pytest.fixture
async def doors(world: World) -> AsyncIterator[Doors]:
    admin = await world.admin()
    auditor = await world.user(admin, "qian", "auditor")
    li = await world.user(admin, "li", "researcher", "clinician")
    assert isinstance(li.credentials, Person)
    port = world.p.runtimes["inference"].settings.port
    urls = {"gateway": world.url, "audit": world.audit, "inference": f"http://127.0.0.1:{port}"}
    bearers: dict[str, Credentials] = {
        "gateway": li.credentials,
        "audit": await bound_token(auditor, "audit", urls["audit"]),
        "inference": await bound_token(li, "inference", urls["inference"]),
    }
    made = Doors(world, urls, bearers, auditor)
    async with made.http:
        yield made


def target(route: str) -> str:
    """A route with something in it that is well formed and does not exist."""
    values = {"sha256": "0" * 64, "version": "1", "kind": "model", "rest": "0/000", "audience": "audit"}
    path = re.sub(r"{(\w+)(?::\w+)?}", lambda found: values.get(found.group(1), "none"), route.split()[1])
    return path + ("?offset=0&total=1" if route.startswith("PUT") else "")


async def test_a_stranger_at_any_route_leaves_one_record_and_a_second_one_adds_none(doors: Doors, monkeypatch: pytest.MonkeyPatch) -> None:
    """The document says which routes are open; a session that is none is no better than nothing."""
    monkeypatch.setattr("medmesh.service.doorstep.EVERY_SECONDS", 1e9)  # the minute does not end meanwhile
    for service, rows in {**OWN, "carried": {}}.items():
        door = "gateway" if service == "carried" else service
        step = doors.world.p.runtimes[door].doorstep
        for route in rows or [r for r, m in CARRIED.items() if getattr(m, "ACTION", "federation.submit") is not None]:
            known = doors.bearers[door]
            for bearer, code in (
                (None, "actor.missing"),
                ("x" * 43, "governance.session_over" if door == "gateway" else "security.token_malformed"),
                # Somebody overheard a token, and has not its key.
                *([(known.token, "security.possession")] if isinstance(known, Bound) else []),
            ):
                step._counts.clear()
                left = await doors.left(door, route.split()[0], target(route), bearer=bearer)
                closing = route == "DELETE /v1/sessions" and bearer  # closing what is closed is no mistake
                expected = [] if rows.get(route) == OPEN or closing else [(door, "access.unproven", 8, code)]
                assert left == expected, (door, route, bearer)
                assert await doors.left(door, route.split()[0], target(route), bearer=bearer) == [], (
                    "an address and a reason: once a minute"
                )


async def test_what_strangers_did_within_a_minute_is_counted(doors: Doors, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medmesh.service.doorstep.EVERY_SECONDS", 0.0)
    step = doors.world.p.runtimes["gateway"].doorstep
    step._counts.clear()
    await doors.records.new()
    for _ in range(4):
        await doors.ask("gateway", "GET", "/v1/users", bearer=None)
    found: list[dict[str, Any]] = []
    async with asyncio.timeout(20):  # the gateway looks by itself what there is to tell
        while sum(detail["times"] for detail in found) < 4:
            await asyncio.sleep(0.1)
            found += [r["detail"] for r in await doors.records.new() if r["sub"] == "access.unproven"]
    assert {detail["address"] for detail in found} == {"127.0.0.1"}
    assert len(found) < 4, "not each by itself"


async def test_the_routes_without_an_owner_leave_exactly_their_records(doors: Doors) -> None:
    """Every one of them, asked for something there is."""
    data = b"a data set"
    sha256 = hashlib.sha256(data).hexdigest()
    digest = base64.b64encode(hashlib.sha256(data).digest()).decode()
    export = (await doors.auditor.command("POST", "/v1/audit/exports", {"format": "jsonl"}))["export"]
    infer = {"json": {"inputs": []}}
    asked: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {
        "gateway": {
            "HEAD /v1/uploads/{sha256}": (f"/v1/uploads/{sha256}", {}),
            "PUT /v1/uploads/{sha256}": (
                f"/v1/uploads/{sha256}?offset=0&total={len(data)}",
                {"content": data, "headers": {"content-digest": f"sha-256=:{digest}:"}},
            ),
            "GET /v1/objects/{sha256}": (f"/v1/objects/{sha256}", {}),
        },
        "audit": {"GET /v1/lineage/{kind}/{id}": ("/v1/lineage/model/none", {})},
        "inference": {},
    }
    refused = {  # there is nothing of the kind here: the refusal is what is recorded
        "POST /v2/models/{model}/infer": (4, "serving.not_served"),
        "POST /v2/models/{model}/versions/{version}/infer": (4, "serving.not_served"),
        "GET /v1/exports/{export}/content": (4, "audit.export_pending"),
    }
    values = {"event": "0", "export": export, "rest": "0/000.p/1", "audience": "audit", "operation": "none"}
    for service, rows in OWN.items():
        for route, leaves in rows.items():
            if route in ("GET /v1/inbox", "POST /v1/audit/records", "POST /v1/audit/sightings", "DELETE /v1/sessions"):
                continue  # a hospital's, below; and the session is needed until the end
            method, path = route.split()
            default = re.sub(r"{(\w+)}", lambda found: values.get(found.group(1), "none"), path)
            where, options = asked[service].get(route, (default + ("?old=0&new=1" if path == "/v1/consistency" else ""), {}))
            left = await doors.left(
                service, method, where, **({**infer, **options} if service == "inference" and method == "POST" else options)
            )
            outcome = refused.get(route, (0, ""))
            assert left == ([] if isinstance(leaves, str) else [(service, verb, *outcome) for verb in leaves]), route
    assert await doors.left("gateway", "DELETE", "/v1/sessions") == [("governance", "session.close", 0, "")]
    node, other = doors.world.node("renji"), doors.world.node("ruijin")
    await doors.records.new()
    await node.request("GET", "/v1/inbox")
    assert await _exchanged(node, other)
    assert await doors.records.said() == []
    await node.close()
    await other.close()


async def _exchanged(node: Gateway, other: Gateway) -> bool:
    """Whether two hospitals' nodes learn of each other, and of nobody twice, what the log showed them."""
    shown = {}
    for size in (1, 2):  # the second replaces the first; to itself it is not told
        shown[size] = note.sign(note.Checkpoint("medmesh/log", size, bytes(32)).text(), "medmesh/log", Ed25519PrivateKey.generate())
        assert await node.request("POST", "/v1/audit/sightings", {"note": shown[size]}) == {"others": []}
    for wrong in ({"note": "no checkpoint"}, {"note": "x" * 5000}, {}):
        with pytest.raises(Problem) as caught:
            await node.request("POST", "/v1/audit/sightings", wrong)
        assert caught.value.code in ("ledger.note", "request.invalid")
    same = await other.request("POST", "/v1/audit/sightings", {"note": shown[2], "hospital": "renji"})
    found = await other.request("POST", "/v1/audit/sightings", {"note": shown[1]})
    return bool(same == {"others": []} and found == {"others": [{"note": shown[2], "hospital": "renji"}]})


async def test_an_object_that_is_not_what_it_is_called_leaves_its_refusal_too(doors: Doors) -> None:
    data = b"something else"
    digest = base64.b64encode(hashlib.sha256(data).digest()).decode()
    where = f"/v1/uploads/{'1' * 64}?offset=0&total={len(data)}"
    left = await doors.left("gateway", "PUT", where, content=data, headers={"content-digest": f"sha-256=:{digest}:"})
    assert left == [("gateway", "object.write", 0, ""), ("gateway", "object.write", 4, "objects.digest")]


async def test_somebody_without_the_role_leaves_one_refusal_at_inference(doors: Doors) -> None:
    """The gateway's and the auditors' doors: `test_matrix.py`, cell by cell."""
    admin = doors.world.authenticators and await doors.world.sign_in("sun")
    zhao = await doors.world.user(admin, "zhao", "annotator")
    token = await bound_token(zhao, "inference", doors.urls["inference"])
    for route, leaves in OWN["inference"].items():
        left = await doors.left("inference", route.split()[0], target(route), bearer=token)
        assert left == ([] if leaves == OPEN else [("inference", "access.denied", 8, "access.denied")]), route


async def test_the_nodes_own_page_records_strangers_and_refusals(private: Path) -> None:
    from medmesh_edge.api import application

    folder = private / "node"
    (folder / "secrets").mkdir(parents=True, mode=0o700)
    Settings(hospital="renji", node="node-1", gateway="https://127.0.0.1:1").save(folder)
    write_secret(folder / "secrets" / "local.token", b"local-secret")
    async with site(folder) as opened, Gateway("https://127.0.0.1:1") as nowhere:
        node = Node(opened, nowhere)
        made = application(node)
        served = {f"{m.upper()} {p}" for p, methods in made.openapi()["paths"].items() for m in methods}
        own = OWN["inference"] | {"GET /v1/federations/{federation}/changes": "what a plan that lies here changes"}
        images = {route for route in served if " /dicom-web/" in route}
        assert len(images) == 18
        assert served - images == own.keys() | {"GET /", "GET /v1/status"}, "nobody's secrets on the page: it is open"

        async def records() -> list[tuple[str, str, int, str]]:
            rows = [json.loads(body) for _, _, body in await opened.database.unreceipted(1000)]
            return [(r["agents"][0]["who"], r["sub"], r["out"], r["why"]) for r in rows]

        async with httpx.AsyncClient(transport=httpx.ASGITransport(made), base_url="http://node") as http:
            before = 0
            for route, leaves in own.items():
                for headers, expected in (
                    ({}, ("service:edge:renji", "access.unproven", 8, "actor.missing")),
                    ({"authorization": "Bearer wrong"}, ("service:edge:renji", "access.unproven", 8, "actor.missing")),
                    ({"authorization": "Bearer local-secret"}, ("hospital:renji", "inference.infer", 4, "serving.not_served")),
                ):
                    node.doorstep._counts.clear()
                    await http.request(route.split()[0], target(route), headers=headers, json={})
                    silent = leaves == OPEN or (isinstance(leaves, str) and "secret" in str(headers))
                    now = await records()
                    assert now[before:] == ([] if silent else [expected]), route
                    before = len(now)
            for route in sorted(images):
                for given, why in (({}, "dicomweb.token"), ({"authorization": "Bearer wrong"}, "dicomweb.token")):
                    node.doorstep._counts.clear()
                    answer = await http.request(route.split()[0], target(route), headers=given)
                    assert answer.status_code == 401, route
                    now = await records()
                    assert now[before:] == [("service:edge:renji", "access.unproven", 8, why)], route
                    before = len(now)
