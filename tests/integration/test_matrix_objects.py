"""Every route of the gateway that names a labelled object, tried with a clearance too low, with a foreign compartment and from a foreign
organisation, by people and nodes whose role allows it: each is answered as if the object were not there, and each refusal is in the log."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import insert, update
from tests.world import World, small_world

from medmesh.cli.schemas_example import example
from medmesh.client import Gateway
from medmesh.contracts.labels import OWNERS
from medmesh.contracts.message import Command, Message
from medmesh.embedded.ports import Ports
from medmesh.embedded.testing import RunningServers
from medmesh.errors import Problem
from medmesh.security.labels import Label, Level, of_hospital
from medmesh.security.roles import TABLE
from medmesh.service.guard import named
from medmesh.service.labels import LABELS
from medmesh_annotation.service import SERVICE as ANNOTATION
from medmesh_conversion.service import SERVICE as CONVERSION
from medmesh_federation.service import SERVICE as FEDERATION
from medmesh_gateway.routes import ROUTES, Route
from medmesh_ingestion.service import SERVICE as INGESTION
from medmesh_registry.service import SERVICE as REGISTRY
from medmesh_training.service import SERVICE as TRAINING

SERVICES = (INGESTION, ANNOTATION, TRAINING, FEDERATION, REGISTRY, CONVERSION)
LABELLED = {kind for service in SERVICES for kind in service.handlers.labelled}
ABOUT = [route for route in ROUTES if any(names.kind in LABELLED for names in route.message.OBJECTS)]
ROLES = ("researcher", "approver", "annotator", "reviewer", "clinician")
MINE = Label(Level.INTERNAL, frozenset({"renji"}))
DENIED = {
    "a clearance too low": (Label(Level.SENSITIVE), ["renji"], "label"),
    "a foreign compartment": (Label(Level.INTERNAL, frozenset({"huashan"})), ["renji"], "label"),
    "a foreign organisation": (Label(Level.INTERNAL), ["huashan"], "object.organisation"),
}


@pytest.fixture
async def world(servers: RunningServers, private: Any, ports: Ports) -> AsyncIterator[World]:
    settings = {"ingestion": {"key": private / "secrets" / "project.key"}}
    async with small_world(servers, private, ports, *SERVICES, settings=settings) as made:
        yield made


def filled(route: Route) -> Message:
    """A valid message of a route that names one object of each kind it may name."""
    found = route.message.model_validate(example(route.message.model_json_schema()), extra="ignore")
    assert list(named(found)), route.path
    return found


async def plant(world: World, label: Label, organisations: list[str]) -> None:
    """Every object that the routes name, labelled alike."""
    values = {
        "level": label.level.text,
        "compartments": sorted(label.compartments),
        "owner": organisations[0],
        "organisations": organisations,
    }
    things = {(names.kind, id_) for route in ABOUT for names, id_ in named(filled(route)) if names.kind in LABELLED}
    for kind, id_ in things:
        async with world.p.runtimes[OWNERS[kind][0]].unit() as uow:
            key = (LABELS.c.kind == kind) & (LABELS.c.id == id_)
            if not (await uow.execute(update(LABELS).where(key).values(values))).rowcount:
                await uow.execute(insert(LABELS).values(kind=kind, id=id_, maker="", changed_at=uow.now, **values))


async def ask(door: Gateway, route: Route) -> dict[str, Any]:
    """The problem a route answers, or {}."""
    values = filled(route).model_dump(mode="json", exclude_none=True)
    path = re.sub(r"{(\w+)}", lambda found: str(values.pop(found.group(1))), route.path)
    try:
        if route.method == "GET":
            await door.request("GET", path, query={name: str(value) for name, value in values.items()} or None)
        elif issubclass(route.message, Command):
            await door.command(route.method, path, values)
        else:
            await door.request(route.method, path, values)
    except Problem as problem:
        return problem.document()
    return {}


async def doors(world: World) -> dict[str, Gateway]:
    """A person of renji with every role that does something with objects, and renji's node."""
    admin = await world.admin()
    person = await world.user(admin, "wang", *ROLES, organisation="renji")
    return {"admin": admin, "person": person, "hospital": world.node("renji")}


def by(found: dict[str, Gateway], route: Route) -> Gateway:
    """Somebody whose role allows the action of a route."""
    allowed = TABLE[route.message.ACTION]  # type: ignore[attr-defined]
    return found["person"] if set(allowed) & set(ROLES) else found["hospital"]


def test_the_routes_about_objects_are_found() -> None:
    assert len(ABOUT) > 20
    assert {names.kind for route in ABOUT for names in route.message.OBJECTS} >= LABELLED - {"descriptor"}


@pytest.mark.slow
async def test_every_route_about_an_object_hides_what_somebody_may_not_see(world: World) -> None:
    found = await doors(world)
    absent = {route.path + route.method: await ask(by(found, route), route) for route in ABOUT}
    expected: dict[str, int] = {}
    for label, organisations, rule in DENIED.values():
        await plant(world, label, organisations)
        for route in ABOUT:
            if rule == "label" and by(found, route) is found["hospital"] and of_hospital("renji").dominates(label):
                continue  # a node is cleared for every level of its own hospital
            told = await ask(by(found, route), route)
            assert told.get("code") == "request.not_found", (route.method, route.path, label.text, told)
            if not any(names.new for names in route.message.OBJECTS):
                assert told == absent[route.path + route.method], "hidden and absent are told alike"
            expected[rule] = expected.get(rule, 0) + 1
    assert len(expected) == 2
    await plant(world, MINE, ["renji"])
    for route in ABOUT:
        code = (await ask(by(found, route), route)).get("code")
        assert code != "access.denied", (route.method, route.path)
    auditor = await world.user(found["admin"], "shen", "auditor")
    records = await refusals(world, auditor, sum(expected.values()))
    seen = [rule for record in records for rule in record["policy"]["rules"][-1:] if record["why"] == "request.not_found"]
    assert {rule: seen.count(rule) for rule in set(seen)} == expected
    for record in records:
        assert record["policy"]["decision"] == "deny"
        assert record["entities"]
        assert record["orgs"] == ["platform"], "whose people may not know of it reads nothing of it in the log either"
    await found["hospital"].close()


async def refusals(world: World, auditor: Gateway, expected: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for _ in range(200):
        found = [r for r in await world.records(auditor, verb="access.denied", limit=1000) if r["why"] == "request.not_found"]
        if len(found) >= expected:
            break
        await asyncio.sleep(0.1)
    return found
