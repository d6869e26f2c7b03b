"""A hospital that is asked again reads what is other than what it accepted."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import insert, select, text
from tests.packages import tiny
from tests.unit.federated.test_plan import plan

from medmesh.contracts.plan import Plan, plan_hash
from medmesh.errors import Problem
from medmesh.learning.package import Package
from medmesh_edge import changes
from medmesh_edge.ports import Site, site
from medmesh_edge.settings import Settings
from medmesh_edge.tables import federations

NOW = datetime(2026, 3, 1, tzinfo=UTC)


async def know(here: Site, name: str, wanted: Plan, package: Package, state: str, days: int) -> None:
    (here.layout.cache / "objects").mkdir(parents=True, exist_ok=True)
    (here.layout.cache / "objects" / package.digest).write_bytes(package.archive)
    values = {"plan": wanted.model_dump(mode="json"), "plan_hash": plan_hash(wanted), "package": {"sha256": package.digest, "bytes": 1}}
    async with here.unit() as uow:
        await uow.execute(insert(federations).values(federation=name, state=state, reason="", at=NOW + timedelta(days=days), **values))


async def test_the_fields_and_the_lines_that_differ_are_shown(private: Path) -> None:
    first, second = tiny(private), tiny(private, "\nRATE = 2\n")
    Settings(hospital="renji", node="n", gateway="https://x").save(private)
    async with site(private) as here:
        old = plan(package=first.digest, parameters={"mu": "1"})
        new = plan(package=second.digest, rounds=9, parameters={"mu": "2"}, accept_by=NOW, codec="int8")
        await know(here, "old", plan(package=first.digest), first, "completed", 0)
        await know(here, "newer", old, first, "running", 1)
        await know(here, "declined", plan(rounds=1), first, "declined", 2)
        await know(here, "other", plan(rounds=1, initiator="person:wang@platform"), first, "completed", 2)
        await know(here, "new", new, second, "invited", 3)
        said = await changes.since(here, "new")
        assert said[0] == "Compared with the plan of 2026-03-02 that you accepted (newer):"
        assert said[1:5] == ["  codec: none → int8", "  parameters.mu: 1 → 2", "  rounds: 3 → 9", "  In the package:"]
        assert "  +RATE = 2" in said
        assert not any("accept_by" in line for line in said)
        assert "贵院" in (await changes.since(here, "new", "zh"))[0]
        assert await changes.since(here, "old") == [], "nothing was accepted before"
        await know(here, "again", plan(package=first.digest, parameters={"mu": "1"}), first, "invited", 2)
        assert (await changes.since(here, "again"))[1:] == ["  nothing in the plan is different.", "  The code is the same package."]
        (here.layout.cache / "objects" / first.digest).unlink()
        assert "not both are at this node" in (await changes.since(here, "new"))[-1]
        renamed = plan(name="another", package=first.digest, initiator="person:sun@platform", batch_size=1, learning_rate="9")
        await know(here, "renamed", renamed, first, "invited", 4)
        assert (await changes.since(here, "renamed"))[0].endswith("that you accepted (newer):"), "the newest of the same code"
        with pytest.raises(Problem):
            await changes.since(here, "nothing")


async def test_code_that_was_approved_for_any_plan_stands_for_those_that_were_signed_by_then(private: Path) -> None:
    """As a store of before has it; taken over once."""
    package = tiny(private)
    Settings(hospital="renji", node="n", gateway="https://x").save(private)
    async with site(private) as here:
        for number, state in enumerate(("accepted", "running", "invited", "declined")):
            await know(here, state, plan(package=package.digest, rounds=number + 1), package, state, number)
        await know(here, "by policy", plan(), tiny(private, "\nRATE = 2\n"), "running", 5)
        async with here.unit() as uow:
            await uow.execute(text("CREATE TABLE approved_packages (package TEXT, statement TEXT)"))
            await uow.execute(text("INSERT INTO approved_packages VALUES (:package, 'signed')"), {"package": package.digest})
    for _ in range(2):
        async with site(private) as here, here.unit() as uow:
            approved = {row.federation: row.approved for row in await uow.all(select(federations))}
        assert approved == {"accepted": "signed", "running": "signed", "invited": None, "declined": None, "by policy": None}
