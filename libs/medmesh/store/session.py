"""A connection of one's own, for the one writer of a log: it holds a lock while it lives, and writes groups of rows at once.

PostgreSQL only. Statements are plain SQL with `$1`. Rows go in as arrays, which is as fast as COPY and needs no round trips in between.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import cache
from typing import Any

import asyncpg
from sqlalchemy import JSON, Table
from sqlalchemy.dialects import postgresql

from medmesh.store.database import Database

_DIALECT = postgresql.dialect()  # type: ignore[no-untyped-call]

# Names of tables and columns come from `tables.py`, values never stand in a statement.
_INTO = "into_{table} AS (INSERT INTO {table} ({columns}) SELECT u.* FROM unnest({arrays}) AS u WHERE EXISTS (SELECT FROM moved))"
_WITH = "WITH {parts} SELECT count(*) FROM moved"


class Collision(Exception):
    """A row has the key of another one."""


class Session:
    """See the module."""

    def __init__(self, raw: asyncpg.Connection) -> None:
        self._raw = raw

    async def lock(self, number: int) -> bool:
        """Take the database's advisory lock `number` for as long as this connection lives; False when another has it."""
        return bool(await self._raw.fetchval("SELECT pg_try_advisory_lock($1)", number))

    async def unseat(self, number: int) -> None:
        """End the connection that holds the lock: its process hangs, or its host is gone without a word."""
        await self._raw.execute(
            "SELECT pg_terminate_backend(l.pid) FROM pg_locks l JOIN pg_database d ON d.oid = l.database "
            "WHERE l.locktype = 'advisory' AND d.datname = current_database() AND l.objsubid = 1 AND l.granted "
            "AND (l.classid::bigint << 32 | l.objid::bigint) = $1 AND l.pid <> pg_backend_pid()",
            number,
        )

    async def fetch(self, statement: str, *arguments: Any) -> list[Any]:
        """Rows."""
        rows: list[Any] = await self._raw.fetch(statement, *arguments)
        return rows

    async def execute(self, statement: str, *arguments: Any) -> int:
        """Run one statement, or several without arguments; answers how many rows the last one touched."""
        done = str(await self._raw.execute(statement, *arguments)).rpartition(" ")[2]
        return int(done) if done.isdecimal() else 0

    async def write(self, only_if: tuple[str, Sequence[Any]], rows: Mapping[Table, Sequence[Mapping[str, Any]]], latest: Table) -> bool:
        """Insert rows into several tables, all of a table with the same columns; of the table `latest` they replace those with their key.

        All of it is one statement, and so one transaction and one round trip. `only_if` is an UPDATE and its arguments: when it touches
        no row nothing is written, and the answer is False. Raises `Collision`.
        """
        update, arguments = only_if
        parts, values = [f"moved AS ({update} RETURNING 1)"], list(arguments)
        for table, some in rows.items():
            columns = list(some[0])
            arrays = ", ".join(f"${len(values) + n}::{_type(table, name)}[]" for n, name in enumerate(columns, start=1))
            parts.append(_INTO.format(table=table.name, columns=", ".join(columns), arrays=arrays))
            if table is latest:
                parts[-1] = parts[-1][:-1] + _replace(table, columns) + ")"
            values += [_column(table, name, some) for name in columns]
        try:
            return bool(await self._raw.fetchval(_WITH.format(parts=", ".join(parts)), *values))
        except asyncpg.UniqueViolationError as error:
            raise Collision(error.constraint_name) from None


@cache
def _type(table: Table, name: str) -> str:
    return str(table.c[name].type.compile(_DIALECT))


def _column(table: Table, name: str, rows: Sequence[Mapping[str, Any]]) -> list[Any]:
    values = [row[name] for row in rows]
    return [json.dumps(value, ensure_ascii=False) for value in values] if isinstance(table.c[name].type, JSON) else values


def _replace(table: Table, columns: Sequence[str]) -> str:
    key = [column.name for column in table.primary_key]
    return f" ON CONFLICT ({', '.join(key)}) DO UPDATE SET " + ", ".join(f"{c} = excluded.{c}" for c in columns if c not in key)


@asynccontextmanager
async def session(database: Database) -> AsyncIterator[Session]:
    """A connection beside the pool's; it is closed at the end, and its locks go with it."""
    async with database.engine.connect() as sql:
        try:
            yield Session((await sql.get_raw_connection()).driver_connection)
        finally:
            await sql.invalidate()
