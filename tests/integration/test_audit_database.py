"""The log's tables on a real PostgreSQL: what the service's role is refused, what a superuser can still do, and how it is found."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest
from tests.logs import audit_service, connected, copied, faults, hand_in, records, vkey
from tests.platform import Platform
from tests.records import left

from medmesh.embedded.testing import RunningServers
from medmesh.store.guard import append_only, weaknesses
from medmesh.telemetry import metrics
from medmesh_audit.tables import METADATA


@pytest.fixture
async def log(servers: RunningServers, private: Path) -> AsyncIterator[Platform]:
    async with audit_service(servers, private, watch_seconds=0.2) as p:
        await hand_in(p.bus, "governance", records("governance", 1, 300))
        yield p


def alarms(kind: str) -> float:
    return metrics.AUDIT_ALARMS.labels(kind)._value.get()


async def risen(kind: str, above: float) -> None:
    async with asyncio.timeout(10):
        while alarms(kind) <= above:
            await asyncio.sleep(0.05)


async def test_the_service_may_add_and_read_and_nothing_else(servers: RunningServers, log: Platform) -> None:
    only_grow = {"entries", "tiles", "checkpoints", "cosignatures", "conflicts", "seals", "ddl", "retentions", "prunings"}
    assert set(append_only(METADATA)) == only_grow | {"sm_tiles", "sm_checkpoints"}
    async with connected(servers, log, superuser=False) as sql:
        assert await sql.fetchval("SELECT count(*) FROM entries") >= 300
        for table in append_only(METADATA):
            for statement in (
                f"DELETE FROM {table}",
                f"TRUNCATE {table}",
                f"ALTER TABLE {table} DISABLE TRIGGER ALL",
                f"ALTER TABLE {table} DISABLE TRIGGER no_change",
                f"DROP TRIGGER no_change ON {table}",
                f"DROP TABLE {table}",
                f"ALTER TABLE {table} OWNER TO CURRENT_USER",
                f"CREATE RULE quiet AS ON INSERT TO {table} DO INSTEAD NOTHING",
            ):
                with pytest.raises(asyncpg.InsufficientPrivilegeError):
                    await sql.execute(statement)
            await sql.execute(f"GRANT UPDATE ON {table} TO CURRENT_USER")  # no error, and no effect: see the end
        for statement in (
            "UPDATE entries SET body = ''",
            "UPDATE tiles SET hashes = hashes",
            "UPDATE checkpoints SET note = ''",
            "INSERT INTO entries SELECT * FROM entries LIMIT 1 ON CONFLICT (seq) DO UPDATE SET body = ''",
            "INSERT INTO ddl (at, who, command, object) VALUES (now(), '', '', '')",
            "COPY entries TO PROGRAM 'cat'",
            "COPY entries FROM PROGRAM 'cat'",
            "SET session_replication_role = replica",
            "ALTER EVENT TRIGGER audit_sql_drop DISABLE",
            "SET ROLE medmesh_audit_owner",
            "CREATE TABLE audit.mine (a int)",
            "CREATE OR REPLACE FUNCTION audit.append_only() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'",
        ):
            with pytest.raises(asyncpg.PostgresError) as refused:
                await sql.execute(statement)
            assert refused.value.sqlstate in ("42501", "42939"), statement
    assert await _weak(log) == []


async def _weak(p: Platform) -> list[str]:
    async with p.runtimes["audit"].database.engine.connect() as sql:
        return await weaknesses(sql, METADATA)


async def test_triggers_refuse_even_a_superuser_in_replica_mode(servers: RunningServers, log: Platform) -> None:
    async with connected(servers, log, superuser=True) as sql:
        for mode in ("origin", "replica"):
            await sql.execute(f"SET session_replication_role = {mode}")
            for statement in ("UPDATE entries SET body = '' WHERE seq = 7", "DELETE FROM entries WHERE seq = 7", "TRUNCATE entries"):
                with pytest.raises(asyncpg.InsufficientPrivilegeError, match="append-only"):
                    await sql.execute(statement)


async def test_a_superuser_who_alters_a_record_is_told_of_and_found(servers: RunningServers, log: Platform, tmp_path: Path) -> None:
    """No database stops its superuser. The watch tells at once; the copy's verification names the record for ever."""
    runtime = log.runtimes["audit"]
    assert await faults(await copied(runtime, tmp_path / "before"), vkey(log.folder)) == []
    ddl, weakened = alarms("ddl"), alarms("weakened")
    async with connected(servers, log, superuser=True) as sql:
        await sql.execute("ALTER TABLE entries DISABLE TRIGGER no_change")
        await risen("weakened", weakened)
        body = await sql.fetchval("SELECT body FROM entries WHERE seq = 30")
        await sql.execute("UPDATE entries SET body = $1 WHERE seq = 30", body.replace(b'"person:li"', b'"person:wu"'))
        await sql.execute("ALTER TABLE entries ENABLE ALWAYS TRIGGER no_change")
        await risen("ddl", ddl + 1)
        noted = await sql.fetch("SELECT who, command, object FROM ddl ORDER BY id")
        assert [tuple(row) for row in noted] == [("medmesh", "ALTER TABLE", "audit.entries")] * 2
    assert await _weak(log) == []
    told = [{"who": "medmesh", "command": "ALTER TABLE", "object": "audit.entries"}] * 2
    assert [record["detail"] for record in await left(log, "audit.alarm.ddl", 2)] == told
    found = await faults(await copied(runtime, tmp_path / "after"), vkey(log.folder))
    assert [(fault["check"], fault["seq"]) for fault in found] == [("body", 30)]


async def test_a_watch_that_was_switched_off_is_missed(servers: RunningServers, log: Platform) -> None:
    weakened = alarms("weakened")
    async with connected(servers, log, superuser=True) as sql:
        await sql.execute("ALTER EVENT TRIGGER audit_ddl_command_end DISABLE")
        await sql.execute("GRANT UPDATE ON entries TO medmesh_audit")
        await risen("weakened", weakened + 1)
        assert set(await _weak(log)) == {"watch:ddl_command_end", "right:entries:update"}
        await sql.execute("ALTER EVENT TRIGGER audit_ddl_command_end ENABLE ALWAYS")
    told = {record["detail"]["what"] for record in await left(log, "audit.alarm.weakened", 2)}
    assert told == {"watch:ddl_command_end", "right:entries:update"}


async def test_dropping_a_table_is_noted_or_refused(servers: RunningServers, log: Platform) -> None:
    async with connected(servers, log, superuser=True) as sql:
        await sql.execute("DROP TABLE facts")
        assert ("medmesh", "DROP TABLE", "audit.facts") in [tuple(r) for r in await sql.fetch("SELECT who, command, object FROM ddl")]
        with pytest.raises(asyncpg.UndefinedTableError):
            await sql.execute("DROP TABLE ddl")  # its loss cannot be noted, so it does not happen
