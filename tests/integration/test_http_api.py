"""The whole HTTP API against its own OpenAPI documents, on real servers: data that fit and data that do not, by schemathesis.

Whatever is sent: no 5xx, every mistake is problem+json with a code of the catalogue, every answer is as documented. Seeded;
`MEDMESH_API_EXAMPLES=200` looks longer, `MEDMESH_API_ONLY=/v1/models` at fewer paths.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import Case, GenerationMode
from schemathesis.checks import load_all_checks
from schemathesis.specs.openapi import checks
from tests.world import World, small_world

from medmesh.cli.schemas import application
from medmesh.cli.schemas_matrix import OWN_SESSION
from medmesh.client import Gateway
from medmesh.client.credentials import Bound, Credentials, Node, Person
from medmesh.client.doors import bound_token
from medmesh.embedded.ports import Ports
from medmesh.embedded.testing import RunningServers
from medmesh.errors import catalogue
from medmesh.security.roles import TABLE
from medmesh.service.http import PROBLEM_JSON, PROBLEM_SCHEMA
from medmesh.service.spec import services
from medmesh.store.tables import service_metadata

EXAMPLES = int(os.environ.get("MEDMESH_API_EXAMPLES", "3"))
"""How many requests of each kind every operation gets."""
ONLY = os.environ.get("MEDMESH_API_ONLY", "")
MORE = ("annotation", "conversion", "federation", "inference", "ingestion", "registry", "training")
CHECKS = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
]
ENDLESS = {"GET /v1/inbox"}
"""Asked with a time of its own: where nothing comes it waits as long as it is told to."""
load_all_checks()
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture
async def world(servers: RunningServers, private: Path, ports: Ports) -> AsyncIterator[World]:
    (port,) = ports.take("inference")
    extra = {"ingestion": {"key": private / "keys" / "ingestion.key"}, "inference": {"port": port}}
    found = services()
    async with small_world(servers, private, ports, *(found[name] for name in MORE), settings=extra) as made:
        yield made


@dataclass
class Caller:
    """Who asks one service for one kind of action."""

    url: str
    credentials: Credentials | None
    files: tuple[Path, Path] | None = None


async def callers(world: World) -> dict[str, dict[str, Caller]]:
    """By service and role, "" for nobody; each has something of its own that can be named."""
    admin = await world.admin()
    people: dict[str, Gateway] = {"security_administrator": admin}
    for role in ("researcher", "annotator", "reviewer", "auditor", "approver", "system_administrator"):
        people[role] = await world.user(admin, role.replace("_", "-"), role)
    victim = await world.user(admin, "victim", "researcher")
    await admin.request("POST", "/v1/hospitals", {"hospital": "renji", "display_name": "r"})
    node = world.node("renji")
    await people["auditor"].command("POST", "/v1/audit/exports", {"format": "jsonl"})
    body = {"action": "federation.start", "target": "f", "digest": "0" * 64}
    await people["researcher"].command("POST", "/v1/approvals", body)
    found: dict[str, dict[str, Caller]] = {"gateway": {}, "audit": {}, "inference": {}}
    port = world.p.runtimes["inference"].settings.port
    urls = {"gateway": world.url, "audit": world.audit, "inference": f"http://127.0.0.1:{port}"}
    for role, door in people.items():
        found["gateway"][role] = Caller(world.url, door.credentials)
        for service in ("audit", "inference"):
            found[service][role] = Caller(urls[service], await bound_token(door, service, urls[service]))
    assert isinstance(node.credentials, Node)
    files = world.p.folder / "renji.pem", world.p.folder / "renji.key"
    found["gateway"]["hospital"] = Caller(world.url, node.credentials, files)
    found["gateway"][OWN_SESSION] = Caller(world.url, victim.credentials)
    for service, url in urls.items():
        found[service][""] = Caller(url, None)
    await node.close()
    return found


def actions(service: str) -> dict[tuple[str, str], str]:
    """(method, path) -> action."""
    from medmesh.cli.schemas_matrix import routes

    if service == "inference":
        return {}
    return {(method, re.sub(r":path}", "}", path)): action for method, path, action, _ in routes(application(service))}


def caller(service: str, action: str, known: dict[str, Caller]) -> Caller:
    """Somebody who may."""
    if action == OWN_SESSION:
        return known[OWN_SESSION]
    return next((known[role] for role in TABLE.get(action, ()) if role in known), known[""])


KNOWN = {"name": "victim", "hospital": "renji", "event": "0", "audience": "audit", "kind": "model", "rest": "0/000.p/1", "version": "1"}


def ask(case: Case, who: Caller, ca: Path) -> requests.Response:
    """Send a case as somebody; the answer to a command is waited for."""
    made = case.as_transport_kwargs(base_url=who.url)
    made.pop("cookies", None)
    prepared = requests.Session().prepare_request(requests.Request(**made))
    prepared.headers["Prefer"] = "wait=1"  # whoever owns the command may not run here
    prepared.headers["Accept-Language"] = "zh"
    prepared.headers["Connection"] = "close"  # the servers end without waiting for it
    if isinstance(who.credentials, Node | Person | Bound):
        body = prepared.body if isinstance(prepared.body, bytes) else (prepared.body or "").encode()
        prepared.headers.update(who.credentials.headers(prepared.method or "", prepared.path_url, body))
    with requests.Session() as session:
        return session.send(prepared, verify=str(ca), cert=tuple(map(str, who.files)) if who.files else None, timeout=60)


def judge(case: Case, answer: requests.Response) -> None:
    """Raise unless the answer is what may be answered."""
    said = f"{case.method} {answer.request.path_url} {answer.request.body!r:.300} -> {answer.status_code} {answer.text[:500]}"
    assert answer.status_code < 500, said
    if answer.status_code >= 400 and case.method != "HEAD":
        assert answer.headers["content-type"] == PROBLEM_JSON, said
        document = answer.json()
        jsonschema.validate(document, PROBLEM_SCHEMA)
        assert document["status"] == answer.status_code, said
        assert document["code"] in catalogue(), said
        assert not re.search(r"{[a-z_]+}", document["title"]), f"a hole in the text: {said}"
    if case.method != "HEAD":
        case.validate_response(answer, checks=CHECKS)


def run(service: str, known: dict[str, Caller], ca: Path) -> Iterator[str]:
    """Every operation of a service; what was found."""
    schema = schemathesis.openapi.from_dict(application(service).openapi())
    roles = actions(service)
    for found in schema.get_all_operations():
        operation = found.ok()
        if ONLY not in operation.path:
            continue
        action = roles.get((operation.method.upper(), operation.path), "inference.infer")
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            yield from try_one(operation, mode, caller(service, action, known), ca)


def try_one(operation: Any, mode: GenerationMode, who: Caller, ca: Path) -> Iterator[str]:
    """One operation, with data that fit or with data that do not."""
    name = f"{operation.method.upper()} {operation.path}"
    if mode is GenerationMode.NEGATIVE and (name in ENDLESS or not (operation.path_parameters or operation.query or operation.body)):
        return
    asked = itertools.count()

    @seed(len(name))
    @settings(max_examples=EXAMPLES, phases=[Phase.generate], database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(operation.as_strategy(generation_mode=mode))
    def test(case: Case) -> None:
        if next(asked) % 2 and mode is GenerationMode.POSITIVE:  # half of them about something there is
            case.path_parameters = {k: KNOWN.get(k, v) for k, v in (case.path_parameters or {}).items()}
        if name in ENDLESS:
            case.query = {**(case.query or {}), "wait": 0}
        judge(case, ask(case, who, ca))

    try:
        test()
    except Unsatisfiable:  # any text is a name: none does not fit
        return
    except Exception as error:
        yield f"{name} ({mode.value}): {error}"


async def test_whatever_is_sent_is_answered_as_documented(world: World) -> None:
    known = await callers(world)
    found = [await asyncio.to_thread(lambda: list(run(service, known[service], world.ca))) for service in known]  # noqa: B023
    assert not any(found), "\n\n".join(text for texts in found for text in texts)
    for name, runtime in world.p.runtimes.items():
        async with runtime.unit() as uow:
            letters = await uow.all(service_metadata().tables["dead_letters"].select())
        assert [letter.reason for letter in letters] == [], name
