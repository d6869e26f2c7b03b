"""Every role at every route of the gateway and the audit service, tried on running ones: exactly what docs/security/matrix.md says."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from fastapi.routing import APIRoute
from sqlalchemy import update
from tests.architecture.sources import ROOT
from tests.world import World

from medmesh.cli.schemas import application
from medmesh.cli.schemas_matrix import OPEN, OWN_SESSION, ROLES, Cells, read
from medmesh.client import Gateway
from medmesh.client.credentials import Bound, Node
from medmesh.client.doors import open_door
from medmesh.client.people import enrol, sign_in_system
from medmesh.security.roles import PERSON_ROLES, TABLE
from medmesh.security.tokens import hospital_token
from medmesh_governance.tables import sessions

MATRIX = read((ROOT / "docs" / "security" / "matrix.md").read_text(encoding="utf-8"))
ACTION_ONLY = {row.action for rows in MATRIX.values() for row in rows} - {OPEN, OWN_SESSION}
REFUSED = {"access.denied", "security.step_up", "actor.missing"}


def test_every_route_is_on_the_page_and_every_action_of_it_in_the_table() -> None:
    for service, rows in MATRIX.items():
        served = {(m, r.path) for r in application(service).routes if isinstance(r, APIRoute) for m in r.methods}
        assert {(row.method, row.path) for row in rows} == served
        assert len(served) > 5
    assert set(TABLE) >= ACTION_ONLY
    assert all(len(row.cells) == len(ROLES) for rows in MATRIX.values() for row in rows)


async def people(world: World) -> dict[str, Gateway]:
    """One of every role."""
    admin = await world.admin()
    found = {"security_administrator": admin}
    for role in PERSON_ROLES:
        if role not in found:
            name = role.replace("_", "-")
            found[role] = await world.user(admin, name, role)
            if not world.authenticators[name].secret:  # no role of theirs needs one, but some of what they may do does
                await enrol(found[role], world.authenticators[name])
    key = Ed25519PrivateKey.generate()
    pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    await admin.request("POST", "/v1/hospitals", {"hospital": "renji", "display_name": "r"})
    await admin.command("POST", "/v1/hospitals/renji/systems", {"name": "his", "public_key_pem": pem})
    return {**found, "hospital": world.node("renji"), "system": await sign_in_system(world.anybody, "his", key)}


def target(row: Cells) -> str:
    """The route with something in it that is well formed and does not exist."""
    values = {"sha256": "0" * 64, "version": "1", "seq": "0", "rest:path": "0/000"}
    path = re.sub(r"{([\w:]+)}", lambda found: values.get(found.group(1), "none"), row.path)
    return path + ("?offset=0&total=1" if row.method == "PUT" else "")


async def ask(door: Gateway, row: Cells) -> str:
    """The problem's code, or "" when there is none."""
    body = b"{}" if row.method in ("POST", "PUT") else b""
    headers = {"Content-Type": "application/json", **door.credentials.headers(row.method, target(row), body)}
    answer = await door._http.request(row.method, target(row), content=body, headers=headers)
    if row.method == "HEAD":
        return "access.denied" if answer.status_code == 403 else ""
    return str(answer.json().get("code", "")) if "problem+json" in answer.headers.get("content-type", "") else ""


async def try_all(doors: dict[str, Gateway], rows: list[Cells], check: Callable[[str, str], bool]) -> Counter[str]:
    """Try every cell that needs a role; how many were refused, by role."""
    refused: Counter[str] = Counter()
    wrong = []
    for row in rows:
        for role, cell in zip(ROLES, row.cells, strict=True):
            if row.action in (OPEN, OWN_SESSION):
                continue
            code = await ask(doors[role], row)
            refused[role] += not cell
            if not check(cell, code):
                wrong.append((row.method, row.path, role, cell, code))
    assert wrong == []
    return refused


def fresh(cell: str, code: str) -> bool:
    """With a second factor of a moment ago exactly the marked cells pass."""
    return code not in REFUSED if cell else code == "access.denied"


async def denied(world: World, auditor: Gateway, who: str, expected: int) -> list[dict[str, Any]]:
    """The refusals of somebody in the log, when there are as many as expected, or what there is after a while."""
    import asyncio

    found: list[dict[str, Any]] = []
    for _ in range(100):
        found = await world.records(auditor, actor=who, verb="access.denied", limit=1000)
        if len(found) >= expected:
            break
        await asyncio.sleep(0.1)
    return found


async def audit_doors(world: World, doors: dict[str, Gateway]) -> dict[str, Gateway]:
    """The same at the auditors' door, with a token for it."""
    found = {}
    for role, door in doors.items():
        if isinstance(door.credentials, Node):
            key = door.credentials.key
            bound = Bound(world.audit, hospital_token(key, door.credentials.certificate, audience="audit"), key)
            found[role] = Gateway(world.audit, ca=world.ca, credentials=bound)
        else:
            found[role] = await open_door(door, "audit", world.audit)
    return found


@pytest.mark.slow
async def test_every_cell_at_both_doors_and_every_refusal_is_in_the_log(world: World) -> None:
    doors = await people(world)
    refused = await try_all(doors, MATRIX["gateway"], fresh)
    inside = await audit_doors(world, doors)
    refused += await try_all(inside, MATRIX["audit"], fresh)
    names = {"security_administrator": "sun", "hospital": "renji", "system": "his"}
    for role in ROLES:
        kind = role if role in ("hospital", "system") else "person"
        who = f"{kind}:{names.get(role, role.replace('_', '-'))}"
        records = await denied(world, doors["auditor"], who, refused[role])
        assert len(records) == refused[role], who
        assert {(record["out"], record["why"]) for record in records} == {(8, "access.denied")}
    for door in [*inside.values(), doors["hospital"]]:
        await door.close()


async def test_five_minutes_later_exactly_the_cells_with_step_up_ask_for_it(world: World) -> None:
    doors = await people(world)
    async with world.p.runtimes["governance"].unit() as uow:
        await uow.execute(update(sessions).values(strong_at=datetime(2026, 1, 1, tzinfo=UTC)))
    rows = [row for row in MATRIX["gateway"] if "s" in row.cells]
    assert len(rows) >= 5
    await try_all(doors, rows, lambda cell, code: code == ("security.step_up" if cell else "access.denied"))
    await doors["hospital"].close()


async def test_nobody_passes_a_route_that_needs_somebody(world: World) -> None:
    outside = {"gateway": world.anybody, "audit": Gateway(world.audit, ca=world.ca)}
    asked: Callable[[str, Cells], Awaitable[str]] = lambda service, row: ask(outside[service], row)  # noqa: E731
    for service, rows in MATRIX.items():
        for row in rows:
            if row.method == "HEAD":
                continue
            code = await asked(service, row)
            if row.action == OPEN:
                assert code not in REFUSED, row
            else:
                assert code == "actor.missing", (row, code)
    await outside["audit"].close()
