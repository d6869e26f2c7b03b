"""The database as it is provisioned: roles, migrations, and the order in which transactions commit."""

from __future__ import annotations

import asyncio
import socket
from datetime import timedelta

import asyncpg
import pytest
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError
from tests.proxies import network
from tests.store import PASSWORD, example_postgres

from medmesh.bus.memory_bus import MemoryBus
from medmesh.bus.port import StreamSpec
from medmesh.contracts.governance import ApprovalRequested
from medmesh.embedded.testing import RunningServers
from medmesh.service import relays
from medmesh.service.relays import OutboxRelay
from medmesh.service.spec import services
from medmesh.store import postgres
from medmesh.store.database import Database
from medmesh.store.migrate import Schema, apply, differences
from medmesh.store.unit import Context


@pytest.mark.parametrize("handed", [True, False], ids=["handed over", "left by another process"])
async def test_an_event_with_a_lower_number_that_commits_later_is_still_sent(
    servers: RunningServers, unique: str, handed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prototype that remembered the highest number it had sent lost such an event."""
    bus = MemoryBus()
    await bus.ensure_stream(StreamSpec("EVENTS", ("medmesh.evt.>",)))

    def event(name: str) -> ApprovalRequested:
        return ApprovalRequested(approval=name, action="a", target="t", digest="0" * 64, requester="r")

    async with example_postgres(servers.postgres_url, unique, emits=frozenset((ApprovalRequested,))) as database:
        relay = OutboxRelay(service="example", database=database, bus=bus)
        monkeypatch.setattr(relays, "MARK_SECONDS", 0.0)
        if handed:
            database.on_sent = relay.hand
        else:
            monkeypatch.setattr(relays, "POLL_SECONDS", 0.0)
            monkeypatch.setattr(relays, "OVERDUE", timedelta(0))
        early = database.unit(Context("example"))
        uow = await early.__aenter__()
        uow.emit(event("numbered-first"))
        await uow.flush()  # takes its number now, and commits after the other
        async with database.unit(Context("example")) as other:
            other.emit(event("numbered-second"))
        await relay.step()
        assert [b"numbered-second" in m.body for m in bus._messages["EVENTS"].values()] == [True]
        await early.__aexit__(None, None, None)
        await relay.step()
        assert [b"numbered-first" in m.body for m in bus._messages["EVENTS"].values()] == [False, True]
        await relay.step()
        assert len(bus._messages["EVENTS"]) == 2
        assert await database.outbox_backlog() == (0, 0.0)


async def test_two_relays_never_send_the_same_message(servers: RunningServers, unique: str) -> None:
    async with example_postgres(servers.postgres_url, unique, emits=frozenset((ApprovalRequested,))) as database:
        for n in range(20):
            async with database.unit(Context("example")) as uow:
                uow.emit(ApprovalRequested(approval=str(n), action="a", target="t", digest="0" * 64, requester="r"))
        async with database.claim_unsent(10) as (first, _), database.claim_unsent(100) as (second, _):
            assert len(first) == len(second) == 10
            assert not {row.id for row in first} & {row.id for row in second}


async def test_migrations_make_the_tables_and_a_service_sees_no_other_ones(servers: RunningServers, unique: str) -> None:
    engine = postgres.engine(servers.postgres_url, pool_size=1)
    async with engine.connect() as sql:
        await sql.exec_driver_sql(f'CREATE DATABASE "{unique}"')
    await engine.dispose()
    admin = make_url(servers.postgres_url).set(database=unique).render_as_string(hide_password=False)
    schemas = [Schema(name, spec.metadata, spec.migrations) for name, spec in services().items()]
    passwords = {schema.service: PASSWORD for schema in schemas}
    await apply(admin, schemas, passwords)
    await asyncio.gather(*(apply(admin, schemas, passwords) for _ in range(2)))  # again, and by two at once

    engine = postgres.engine(admin, pool_size=1, autocommit=False)
    async with engine.connect() as sql:
        for schema in schemas:
            await sql.exec_driver_sql(f'SET search_path TO "{schema.service}"')
            assert (await sql.run_sync(differences, schema)).strip() == "pass", f"{schema.service}: run 'medmesh develop migration'"
            await sql.rollback()
    await engine.dispose()

    where = (
        make_url(admin).set(drivername="postgresql", username="medmesh_gateway", password=PASSWORD).render_as_string(hide_password=False)
    )
    gateway = await asyncpg.connect(where)
    try:
        assert await gateway.fetchval("SELECT n FROM audit_counter") == 0
        for forbidden in (
            "SELECT * FROM governance.users",
            "DROP TABLE operations",
            "CREATE TABLE mine (x int)",
            "CREATE TABLE public.x (x int)",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await gateway.execute(forbidden)
    finally:
        await gateway.close()


async def test_a_service_that_starts_while_its_database_restarts_waits_for_it(servers: RunningServers, unique: str) -> None:
    """It ended instead, and every later start was kept waiting longer: killed servers kept the log away for minutes."""
    where = make_url(servers.postgres_url)
    assert where.port is not None
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    database = Database.postgres(where.set(port=port).render_as_string(hide_password=False))
    waiting = asyncio.create_task(database.waited())
    await asyncio.sleep(0.3)
    assert not waiting.done()
    async with network(where.port, at=port), asyncio.timeout(20):
        await waiting
        await database.close()
        stranger = Database.postgres(where.set(port=port, username=unique).render_as_string(hide_password=False))
        with pytest.raises(DBAPIError, match="password authentication failed"):
            await stranger.waited()
        await stranger.close()
