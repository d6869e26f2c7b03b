"""Every handler leaves exactly the audit records it ought to: walked from the declarations, on real servers.

What a message's owner leaves when it fulfils it is held by `must_be_accounted` and, record by record, by `make mutation`.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from tests.platform import Platform, platform
from tests.records import Records

from medmesh.cli.schemas_example import example
from medmesh.contracts.audit import RecordMaintenance
from medmesh.contracts.labels import OWNERS, ChangeLabel
from medmesh.contracts.message import Command, Exchange, Message, Query
from medmesh.contracts.system import ListDeadLetters, ReplayDeadLetter
from medmesh.embedded.ports import Ports
from medmesh.embedded.testing import RunningServers
from medmesh.errors import Problem
from medmesh.security.keyring.file import FileKeys
from medmesh.security.keys import Identity
from medmesh.security.roles import TABLE
from medmesh.service.spec import services


@pytest.fixture
async def everybody(servers: RunningServers, private: Path, ports: Ports) -> AsyncIterator[Platform]:
    """All services, and no log: what each leaves stays with it."""
    for name in ("log", "release"):
        Identity.ensure(private / "keys" / f"{name}.nk")
    (private / "ca").mkdir()
    FileKeys(private / "seal").ensure("seal")
    from medmesh.security.authority import Authority

    Authority.ensure(private / "ca")
    settings: dict[str, dict[str, Any]] = {
        "governance": {"authority": private / "ca", "seal_keys": str(private / "seal")},
        "gateway": {"client_ca": private / "ca" / "ca.pem"},
        "audit": {"log_key": private / "keys" / "log.nk"},
        "registry": {"release_key": private / "keys" / "release.nk"},
        "ingestion": {"key": private / "keys" / "ingestion.key"},
    }
    async with platform(servers, private, *services().values(), settings=settings) as p:
        yield p


HANDLED: list[tuple[str, type[Message]]] = [
    (name, message)
    for name, spec in services().items()
    for message in (
        *(m for consumer in spec.handlers.consumers for m in consumer.messages if issubclass(m, Command)),
        *(responder.query for responder in spec.handlers.responders),
        ListDeadLetters,
        ReplayDeadLetter,
    )
]


def sample(message: type[Message], service: str) -> Any:
    """An example; of what every service is asked, one that this service is."""
    found = example(message.model_json_schema())
    if "service" in message.model_fields and "*" in message.TYPE:
        found["service"] = service
    if message is ChangeLabel:
        found["kind"] = next(kind for kind, owners in OWNERS.items() if owners[0] == service)
    if message is RecordMaintenance:
        found["code"] = ""  # it tells of something that went well, as the others do
    return message.model_validate_json(json.dumps(found))


async def outcome(p: Platform, message: Command | Query, token: str | None) -> str:
    """The code it is refused with, "" when it is fulfilled."""
    if isinstance(message, Command):
        done = await p.send(message, token or "")
        return "" if done.succeeded else str((done.problem or {})["code"])
    try:
        await p.ask(message, type(message).Reply, token)
    except Problem as problem:
        return problem.code
    return ""


async def walk(p: Platform, check: Callable[[Records, str, Any], Awaitable[str]]) -> None:
    records = Records(p, aside=("audit.alert",))
    assert len(HANDLED) > 50
    wrong = []
    for service, message in HANDLED:
        await records.new()
        if said := await check(records, service, sample(message, service)):
            wrong.append((message.__name__, said))
    assert not wrong, "\n".join(f"{name}: {said}" for name, said in wrong)


async def test_every_handler_records_who_may_not(everybody: Platform) -> None:
    """Somebody without a role, at every message there is: one refusal, of the service that was asked, and its rule."""
    nobody = everybody.person("mallory")

    async def check(records: Records, service: str, message: Any) -> str:
        if message.ACTION is None:
            return ""  # a secret decides, below
        code = await outcome(everybody, message, nobody)
        found = [
            (r["src"]["service"], r["sub"], r["out"] > 0, r["why"], r["policy"]["decision"], r["agents"][0]["who"])
            for r in await records.new()
            if r["src"]["service"] == service
        ]
        verb = message.ACTION if isinstance(message, Command) else "access.denied"
        expected = [(service, verb, True, "access.denied", "deny", "person:mallory")]
        return "" if (code, found) == ("access.denied", expected) else f"{code} {found}"

    await walk(everybody, check)


async def test_every_handler_records_a_refusal_or_an_effect_exactly_once(everybody: Platform) -> None:
    """Somebody who may, with an example that names nothing there is: a command or an exchange leaves its refusal, or its effect."""

    async def check(records: Records, service: str, message: Any) -> str:
        roles = TABLE.get(message.ACTION or "", ())
        if roles and not {"hospital"} & set(roles):
            token: str | None = everybody.person("li", roles[0])
        else:
            token = everybody.hospital("hospital-a")
        code = await outcome(everybody, message, None if message.ACTION is None else token)
        found = [(r["sub"], r["out"], r["why"]) for r in await records.new() if r["src"]["service"] == service and r["ctx"]["request"]]
        if not isinstance(message, Command | Exchange):
            return "" if all(why in ("", "access.denied") for _, _, why in found) and len(found) <= 1 else f"{code} {found}"
        if code:
            return "" if len(found) == 1 and found[0][1] > 0 and found[0][2] == code else f"{code} {found}"
        return "" if found == [] or all(out == 0 for _, out, _ in found) else f"{code} {found}"

    await walk(everybody, check)
