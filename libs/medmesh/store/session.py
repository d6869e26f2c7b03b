"""A connection of one's own, for the one writer of a log: it holds a lock while it lives, and writes groups of rows at once.

PostgreSQL only. Statements are plain SQL with `$1`. Rows go in as one JSON text a table with their bytes in arrays beside it: no round
trips in between as with COPY, and a third of the processor time, because a driver in Python touches each value of an array by itself.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import cache
from typing import Any

import asyncpg
from pydantic_core import to_json
from sqlalchemy import LargeBinary, Table
from sqlalchemy.dialects import postgresql

from medmesh.store.database import Database

_DIALECT = postgresql.dialect()  # type: ignore[no-untyped-call]

# Names of tables and columns come from `tables.py`, values never stand in a statement.
_INTO = "into_{table} AS (INSERT INTO {table} ({columns}) SELECT {columns} FROM {given} WHERE EXISTS (SELECT FROM moved){replace})"
_GIVEN = "ROWS FROM ({parts}) AS given ({columns})"
_RECORDS = "json_to_recordset(${n}::json) AS ({columns})"
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
        statement = _statement(update, len(arguments), tuple((table, tuple(some[0]), table is latest) for table, some in rows.items()))
        values = list(arguments)
        for table, some in rows.items():
            plain, binary = _kinds(table, tuple(some[0]))
            values += [to_json([{name: row[name] for name in plain} for row in some]).decode()]
            values += [[row[name] for row in some] for name in binary]
        try:
            return bool(await self._raw.fetchval(statement, *values))
        except asyncpg.UniqueViolationError as error:
            raise Collision(error.constraint_name) from None


@cache
def _kinds(table: Table, columns: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """(what JSON can say, bytes)."""
    binary = [name for name in columns if isinstance(table.c[name].type, LargeBinary)]
    return [name for name in columns if name not in binary], binary


@cache
def _statement(update: str, number: int, tables: tuple[tuple[Table, tuple[str, ...], bool], ...]) -> str:
    """`number` arguments are the update's own; then follow those of each (table, columns, whether rows are replaced)."""
    parts = [f"moved AS ({update} RETURNING 1)"]
    for table, columns, latest in tables:
        plain, binary = _kinds(table, columns)
        typed = ", ".join(f"{name} {table.c[name].type.compile(_DIALECT)}" for name in plain)
        given = [_RECORDS.format(n=number + 1, columns=typed), *(f"unnest(${number + 1 + n}::bytea[])" for n in range(1, len(binary) + 1))]
        number += len(given)
        named = _GIVEN.format(parts=", ".join(given), columns=", ".join((*plain, *binary)))
        replace = _replace(table, columns) if latest else ""
        parts.append(_INTO.format(table=table.name, columns=", ".join(columns), given=named, replace=replace))
    return _WITH.format(parts=", ".join(parts))


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
