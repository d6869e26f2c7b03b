"""Prepared statements are compiled when they run first: that each can be is seen here, not at a hospital."""

from __future__ import annotations

import asyncio
import importlib
import pkgutil
from types import ModuleType

import pytest
from sqlalchemy import bindparam, delete, insert, select

import medmesh.service
import medmesh_edge
import medmesh_federation
import medmesh_gateway
from medmesh.store.database import Database
from medmesh.store.prepared import Prepared
from medmesh.store.tables import service_metadata
from medmesh.store.unit import Context
from medmesh_edge.tables import METADATA

OUTBOX = service_metadata().tables["outbox"]


def everyone(*packages: ModuleType) -> list[tuple[str, Prepared]]:
    """Every prepared statement of these packages, by name."""
    found = []
    for package in packages:
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            if module.name.rsplit(".", 1)[1].startswith("__") or "migrations" in module.name:
                continue
            there = vars(importlib.import_module(module.name))
            found += [(f"{module.name}.{name}", value) for name, value in there.items() if isinstance(value, Prepared)]
    return found


def test_every_prepared_statement_compiles() -> None:
    names = [name for name, prepared in everyone(medmesh.service, medmesh_federation, medmesh_gateway) if prepared.text]
    assert "medmesh_federation.handlers._LOCKED" in names
    assert "medmesh_gateway.inbox._DELIVER" in names


def test_every_prepared_statement_of_a_node_compiles() -> None:
    names = [name for name, prepared in everyone(medmesh_edge) if prepared.sqlite]
    assert "medmesh_edge.rounds._OPEN" in names
    assert "medmesh_edge.inbox._STORED" in names


async def test_no_statement_of_a_node_reads_every_round_that_there_was() -> None:
    """They are run in each round, or whenever a node looks for work, and a hospital keeps all its rounds and federations."""
    database = Database.memory()
    await database.create(METADATA)
    async with database.engine.connect() as sql:
        read = {
            name: [step for *_, step in sql.driver.execute(f"EXPLAIN QUERY PLAN {text}", [None] * text.count("?"))]  # type: ignore[attr-defined]
            for name, prepared in everyone(medmesh_edge)
            for text in (prepared.sqlite[0].text,)
        }
    await database.close()
    assert read["medmesh_edge.inbox._SUPERSEDE"] == ["SEARCH tasks USING INDEX ix_tasks_state (state=?)"]
    assert read["medmesh_edge.secure._PASSED_ON"] == ["SEARCH secure_phases USING INDEX ix_secure_phases_state (state=?)"]
    for table in ("tasks", "secure_phases", "federations"):
        assert [name for name, steps in read.items() if any(step.startswith(f"SCAN {table}") for step in steps)] == []


async def test_a_look_waits_while_a_transaction_has_the_connection() -> None:
    database = Database.memory()
    await database.create(service_metadata())
    kept, done = Prepared(select(OUTBOX.c.id)), asyncio.Event()

    async def write() -> None:
        async with database.unit(Context("test")) as uow:
            values = {"id": "a", "seq": 1, "subject": "s", "body": b"", "created_at": uow.now}
            await uow.execute(insert(OUTBOX).values(values))
            done.set()
            await asyncio.sleep(0.05)
            await uow.execute(delete(OUTBOX))

    writing = asyncio.create_task(write())
    await done.wait()
    assert list(await database.look(kept)) == []  # what is not committed is nobody's
    assert writing.done()
    await writing
    await database.close()


def test_what_a_prepared_statement_cannot_be_is_said() -> None:
    with pytest.raises(TypeError, match="in_"):
        Prepared(select(OUTBOX).where(OUTBOX.c.id.in_(["a", "b"]))).asked({})
    one = Prepared(select(OUTBOX).where(OUTBOX.c.id == bindparam("id")))
    for wrong in ({}, {"id": "a", "subject": "b"}):
        with pytest.raises(TypeError, match="wants id"):
            one.asked(wrong)
