"""What a unit of work must do, held against PostgreSQL and SQLite, in a file and in memory."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest
from sqlalchemy import bindparam, insert, null, select
from sqlalchemy.exc import DBAPIError
from tests.store import example_memory, example_metadata, example_postgres, example_sqlite

from medmesh.contracts.message import Event
from medmesh.embedded.testing import RunningServers
from medmesh.errors import Problem
from medmesh.store.database import Database
from medmesh.store.prepared import Prepared
from medmesh.store.unit import AuditEntry, Context, UnitOfWork


class ThingMade(Event):
    TYPE: ClassVar[str] = "example.thing.made.v1"

    name: str


class Undeclared(Event):
    TYPE: ClassVar[str] = "example.thing.undeclared.v1"


CONTEXT = Context("example")
things, outbox = (example_metadata().tables[name] for name in ("things", "outbox"))


@pytest.fixture(params=["postgres", "sqlite", "memory"])
async def database(request: pytest.FixtureRequest, private: Path, unique: str) -> AsyncIterator[Database]:
    options = {"emits": frozenset((ThingMade,))}
    if request.param == "sqlite":
        async with example_sqlite(private, **options) as made:
            yield made
        return
    if request.param == "memory":
        async with example_memory(**options) as made:
            yield made
        return
    running: RunningServers = request.getfixturevalue("servers")
    async with example_postgres(running.postgres_url, unique, **options) as made:
        yield made


async def _things(database: Database) -> set[str]:
    async with database.unit(CONTEXT) as uow:
        return {row.name for row in await uow.all(select(things))}


async def _unsent(database: Database) -> list[str]:
    async with database.claim_unsent() as (rows, _):
        return [row.subject for row in rows]


async def test_change_message_and_audit_record_commit_together(database: Database) -> None:
    async with database.unit(CONTEXT) as uow:
        await uow.execute(insert(things).values(name="a", count=1))
        uow.emit(ThingMade(name="a"))
        uow.audit(AuditEntry("thing.make", "C"))
    assert await _things(database) == {"a"}
    assert await _unsent(database) == ["medmesh.evt.example.thing.made.v1"]
    assert [body for _, _, body in await database.unreceipted()] == [b"1 thing.make False"]


async def test_a_prepared_statement_runs_in_its_unit(database: Database) -> None:
    made_of = {name: bindparam(name) for name in ("name", "count", "about")}
    make = Prepared(insert(things).values(made_of).returning(things.c.count, things.c.about))
    sent = Prepared(select(outbox.c.created_at, outbox.c.body).where(outbox.c.created_at <= bindparam("now")))
    known = Prepared(select(things).where(things.c.name == bindparam("name"), things.c.count > 0))

    async def fail() -> None:
        async with database.unit(CONTEXT) as uow:
            await uow.rows(make, name="b", count=2, about=None)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await fail()
    async with database.unit(CONTEXT) as uow:
        (made,) = await uow.rows(make, name="a", count=1, about={"of": ["é", 1.5, None]})
        assert (made.count, made.about) == (1, {"of": ["é", 1.5, None]})
        await uow.rows(make, name="c", count=0, about=null())
        uow.emit(ThingMade(name="a"))
    async with database.unit(CONTEXT) as uow:
        assert await uow.all(select(things.c.name).where(things.c.about.is_(null()))) == [("c",)], "NULL, not JSON's null"
        told = await uow.one(sent, now=uow.now)
    assert uow.now - timedelta(minutes=1) < told.created_at <= uow.now
    assert b'"name":"a"' in told.body
    (found,) = await database.look(known, name="a")
    assert (found.name, found.count) == ("a", 1)
    assert not await database.look(known, name="b")


@pytest.mark.parametrize("database", ["postgres"], indirect=True)
@pytest.mark.parametrize("wrong", [{"name": "a\0"}, {"count": 2**40}, {"about": ["a\0"]}])
async def test_a_value_that_no_column_holds_is_the_callers_mistake_however_it_is_handed_over(
    database: Database, wrong: dict[str, Any]
) -> None:
    value = {"name": "a", "count": 1, "about": None, **wrong}
    make = Prepared(insert(things).values({name: bindparam(name) for name in value}).returning(things.c.count))

    async def executed() -> None:
        async with database.unit(CONTEXT) as uow:
            await uow.execute(insert(things).values(name="before", count=1))
            await uow.execute(insert(things).values(value))

    async def prepared() -> None:
        async with database.unit(CONTEXT) as uow:
            await uow.execute(insert(things).values(name="before", count=1))
            await uow.rows(make, **value)

    async def looked() -> None:
        await database.look(make, **value)

    for way in (executed, prepared, looked):
        with pytest.raises(Problem) as refused:
            await way()
        assert refused.value.code == "store.value", way
        assert not await _things(database)


async def test_an_error_leaves_nothing_behind(database: Database) -> None:

    async def fail() -> None:
        async with database.unit(CONTEXT) as uow:
            await uow.execute(insert(things).values(name="a", count=1))
            uow.emit(ThingMade(name="a"))
            uow.audit(AuditEntry("thing.make", "C"))
            await uow.flush()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await fail()
    assert await _things(database) == set()
    assert await _unsent(database) == []
    assert await database.unreceipted() == []
    async with database.unit(CONTEXT) as uow:
        uow.audit(AuditEntry("thing.other", "C"))
    assert [n for n, _, _ in await database.unreceipted()] == [1], "a number that was rolled back is used again: no gap"


async def test_a_cancelled_unit_ends_as_cancelled_and_leaves_nothing_behind(database: Database) -> None:
    """At whatever await it is cancelled: the task must end, its transaction must be gone, and the pool must not run dry."""

    async def work() -> None:
        async with database.unit(CONTEXT) as uow:
            await uow.execute(insert(things).values(name="a", count=1))
            await uow.all(select(things))
            uow.audit(AuditEntry("thing.make", "C"))
            await uow.flush()
            raise RuntimeError("nobody cancelled")

    for steps in range(30):
        task = asyncio.create_task(work())
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises((asyncio.CancelledError, RuntimeError)) as caught:
            await task
        assert caught.type is asyncio.CancelledError or str(caught.value) == "nobody cancelled"
        assert await _things(database) == set()
        async with asyncio.timeout(5), database.unit(CONTEXT) as uow:  # nothing holds a lock either
            await uow.journal.number(0, "")


async def _leave_half_done(database: Database) -> None:
    async with database.engine.connect() as sql:
        await sql.exec_driver_sql("BEGIN IMMEDIATE")
        await sql.execute(insert(things).values(name="half", count=1))
        raise ZeroDivisionError


async def test_a_transaction_that_somebody_left_open_is_nobody_elses(private: Path) -> None:
    """A node's store is one connection, which stays open for the next who wants it."""
    async with example_sqlite(private) as database:
        with pytest.raises(ZeroDivisionError):
            await _leave_half_done(database)
        assert await _things(database) == set()


async def test_a_message_is_remembered_once_even_by_two_at_once(database: Database) -> None:
    async def handle() -> bool:
        async with database.unit(CONTEXT) as uow:
            first = await uow.journal.remember("consumer", "event-1", uow.now)
            await asyncio.sleep(0.05)
            return first

    assert sorted(await asyncio.gather(*(handle() for _ in range(4)))) == [False, False, False, True]


async def test_an_undeclared_message_is_a_mistake_of_ours(database: Database) -> None:
    with pytest.raises(TypeError, match="Undeclared"):
        async with database.unit(CONTEXT) as uow:
            uow.emit(Undeclared())


async def test_audit_records_are_numbered_without_gaps_and_chained(database: Database) -> None:
    async def act(count: int) -> None:
        async with database.unit(CONTEXT) as uow:
            for _ in range(count):
                uow.audit(AuditEntry("x", "E"))

    await asyncio.gather(*(act(count) for count in (1, 3, 2, 4)))
    rows = await database.unreceipted()
    assert [n for n, _, _ in rows] == list(range(1, 11))
    assert [body.endswith(b"True") for _, _, body in rows] == [False] + [True] * 9
    await database.receipted([1, 2, 3])
    assert [n for n, _, _ in await database.unreceipted()] == list(range(4, 11))


async def test_an_approval_is_spent_once(database: Database) -> None:
    async with database.unit(CONTEXT) as uow:
        await uow.spend_approval("approval-1")
    with pytest.raises(Problem) as caught:
        async with database.unit(CONTEXT) as uow:
            await uow.spend_approval("approval-1")
    assert caught.value.code == "approval.spent"


async def test_messages_are_claimed_in_order_and_marked(database: Database) -> None:
    for name in "abc":
        async with database.unit(CONTEXT) as uow:
            uow.emit(ThingMade(name=name))
    async with database.claim_unsent() as (rows, mark):
        assert [b'"name":"%s"' % name.encode() in row.body for row, name in zip(rows, "abc", strict=True)] == [True] * 3
        await mark([rows[0].id, rows[2].id])
    async with database.claim_unsent() as (rows, _):
        assert len(rows) == 1
        assert b'"name":"b"' in rows[0].body
    assert (await database.outbox_backlog())[0] == 1


async def test_of_several_messages_those_not_handled_before_are_remembered(database: Database) -> None:
    async with database.unit(CONTEXT) as uow:
        assert await uow.journal.remember("consumer", "event-1", uow.now)
    async with database.unit(CONTEXT) as uow:
        assert await uow.journal.remember_all("consumer", ["event-2", "event-1", "event-2"], uow.now) == {"event-2"}
        assert await uow.journal.remember_all("other", ["event-1"], uow.now) == {"event-1"}
    async with database.unit(CONTEXT) as uow:
        assert await uow.journal.remember_all("consumer", ["event-1", "event-2"], uow.now) == set()


async def test_a_store_is_opened_while_another_process_writes_into_it(private: Path) -> None:
    async with example_sqlite(private):
        pass
    other = sqlite3.connect(private / "store.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    opening = asyncio.create_task(_opened(private))
    await asyncio.sleep(0.1)
    assert not opening.done()
    other.execute("COMMIT")
    other.close()
    await opening


async def _opened(folder: Path) -> None:
    async with example_sqlite(folder):
        pass


async def test_connections_that_the_server_closed_in_the_pool_are_not_used_again(servers: RunningServers, unique: str) -> None:
    ended = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND usename = current_user"
    async with example_postgres(servers.postgres_url, unique, emits=frozenset((ThingMade,))) as made:
        both = asyncio.Barrier(3)

        async def hold() -> None:
            async with made.unit(CONTEXT):
                await both.wait()

        await asyncio.gather(hold(), hold(), hold())  # three lie in the pool
        async with made.engine.connect() as sql:
            await sql.exec_driver_sql(f"{ended} AND datname = current_database()")
        await asyncio.sleep(0.2)
        await asyncio.gather(hold(), hold(), hold())
        assert await _things(made) == set()


async def test_transactions_that_fail_use_up_no_connection(servers: RunningServers, unique: str) -> None:
    async with example_postgres(servers.postgres_url, unique, emits=frozenset((ThingMade,))) as made:
        for statement in ("SELECT 1 / 0", "SELECT pg_terminate_backend(pg_backend_pid())") * 8:
            with pytest.raises(DBAPIError):
                async with made.unit(CONTEXT) as uow:
                    await uow.sql.exec_driver_sql(statement)
        both = asyncio.Barrier(8)  # as many as there are

        async def hold() -> None:
            async with made.unit(CONTEXT):
                await both.wait()

        async with asyncio.timeout(10):
            await asyncio.gather(*(hold() for _ in range(8)))
        assert await _things(made) == set()


async def test_what_messages_of_a_transaction_share_is_read_once_and_written_once_at_its_end(database: Database) -> None:
    asked, done = list[str](), list[str]()

    async def read(uow: UnitOfWork[Any], name: str) -> int:
        asked.append(name)
        return len(await uow.all(select(things).where(things.c.name == name)))

    async def write(uow: UnitOfWork[Any], name: str) -> None:
        done.append(name)
        await uow.execute(insert(things).values(name=name, count=await uow.once(read, name)))

    for failing in (True, False):
        with suppress(ZeroDivisionError):
            async with database.unit(CONTEXT) as uow:
                for name in ("a", "b", "a"):
                    assert await uow.once(read, name) == 0
                    uow.at_end(write, name)
                assert done == [], "at its end"
                if failing:
                    raise ZeroDivisionError
        assert (asked, await _things(database)) == (["a", "b"] * (1 if failing else 2), set() if failing else {"a", "b"})
    assert done == ["a", "b"]
    async with database.unit(CONTEXT) as uow:
        assert await uow.once(read, "a") == 1, "another transaction reads anew"


async def test_what_fails_at_the_end_leaves_nothing(database: Database) -> None:
    async def fail(_: UnitOfWork[Any]) -> None:
        raise ZeroDivisionError

    async def write() -> None:
        async with database.unit(CONTEXT) as uow:
            await uow.execute(insert(things).values(name="a", count=1))
            uow.at_end(fail)

    with pytest.raises(ZeroDivisionError):
        await write()
    assert await _things(database) == set()
