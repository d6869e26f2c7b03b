"""A connection of one's own, for the one writer of a log: it holds a lock while it lives, and writes in bulk.

PostgreSQL only. Statements are plain SQL with `$1`; rows go in by COPY, which takes a thousand of them in the time of one.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
from sqlalchemy import JSON, Table

from medmesh.store.database import Database


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

    async def copy(self, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
        """Insert rows, all with the same columns."""
        columns = list(rows[0])
        documents = [name for name in columns if isinstance(table.c[name].type, JSON)]
        values = [
            tuple(json.dumps(row[name], ensure_ascii=False) if name in documents else row[name] for name in columns) if documents else
            tuple(row.values()) for row in rows
        ]  # fmt: skip
        try:
            await self._raw.copy_records_to_table(table.name, records=values, columns=columns)
        except asyncpg.UniqueViolationError as error:
            raise Collision(error.constraint_name) from None

    async def rollback(self) -> None:
        """Undo what was begun."""
        if not self._raw.is_closed():
            await self._raw.execute("ROLLBACK")


@asynccontextmanager
async def session(database: Database) -> AsyncIterator[Session]:
    """A connection beside the pool's; it is closed at the end, and its locks go with it."""
    async with database.engine.connect() as sql:
        try:
            yield Session((await sql.get_raw_connection()).driver_connection)
        finally:
            await sql.invalidate()
