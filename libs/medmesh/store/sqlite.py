"""SQLite for the hospital's edge: WAL, synchronous FULL, one writer at a time."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from medmesh.store.journal import Outgoing
from medmesh.tasks import uninterrupted


def _iso(now: datetime) -> str:
    return now.astimezone(UTC).isoformat(timespec="microseconds")


class Steady:
    """A connection whose statements end before a cancellation goes on. A statement runs in SQLite's thread whatever its caller does;
    a connection that is thrown away meanwhile keeps its lock until the last cursor is collected, and everybody else waits."""

    def __init__(self, sql: AsyncConnection) -> None:
        self._sql = sql

    async def execute(self, statement: Any, parameters: Any = None) -> Any:
        """As the connection's."""
        return await uninterrupted(self._sql.execute(statement, parameters))

    async def exec_driver_sql(self, statement: str, parameters: Any = None) -> Any:
        """As the connection's."""
        return await uninterrupted(self._sql.exec_driver_sql(statement, parameters))

    async def invalidate(self) -> None:
        """As the connection's."""
        await self._sql.invalidate()


class SqliteJournal:
    """See `medmesh.store.journal.Journal`."""

    def __init__(self, connection: AsyncConnection | Steady) -> None:
        self._sql = connection
        self._begun = False

    async def begin(self) -> None:
        # IMMEDIATE takes the write lock at once: two transactions wait for each other instead of failing half way.
        await self._sql.exec_driver_sql("BEGIN IMMEDIATE")
        self._begun = True

    async def commit(self) -> None:
        await self._sql.exec_driver_sql("COMMIT")
        self._begun = False

    async def rollback(self) -> None:
        if self._begun:
            self._begun = False
            await self._sql.exec_driver_sql("ROLLBACK")

    async def remember(self, consumer: str, event_id: str, now: datetime) -> bool:
        done = await self._sql.exec_driver_sql(
            "INSERT OR IGNORE INTO inbox (consumer, event_id, at) VALUES (?, ?, ?)", (consumer, event_id, _iso(now))
        )
        return done.rowcount == 1

    async def remember_all(self, consumer: str, event_ids: Sequence[str], now: datetime) -> set[str]:
        return {id_ for id_ in event_ids if await self.remember(consumer, id_, now)}

    async def send(self, messages: Sequence[Outgoing], now: datetime) -> None:
        first = (await self._sql.execute(text("SELECT COALESCE(MAX(seq), 0) + 1 FROM outbox"))).scalar_one()
        rows = [(m.id, first + place, m.subject, m.body, _iso(now)) for place, m in enumerate(messages)]
        await self._sql.exec_driver_sql("INSERT INTO outbox (id, seq, subject, body, created_at) VALUES (?, ?, ?, ?, ?)", rows)

    async def number(self, count: int, last_id: str) -> tuple[int, str]:
        n, before = (await self._sql.execute(text("SELECT n, last_id FROM audit_counter"))).one()
        await self._sql.exec_driver_sql("UPDATE audit_counter SET n = ?, last_id = ?", (n + count, last_id))
        return int(n), str(before)

    async def record(self, rows: Sequence[tuple[int, str, bytes]], now: datetime) -> None:
        await self._sql.exec_driver_sql(
            "INSERT INTO audit_outbox (n, id, body, created_at) VALUES (?, ?, ?, ?)", [(*row, _iso(now)) for row in rows]
        )


def engine(path: Path) -> AsyncEngine:
    """An engine on the file `path`, created 0600 when it does not exist."""
    path.touch(mode=0o600, exist_ok=True)
    made = create_async_engine(f"sqlite+aiosqlite:///{path}", isolation_level="AUTOCOMMIT", pool_size=3, max_overflow=0)

    @event.listens_for(made.sync_engine, "connect")
    def _configure(connection: Any, _record: Any) -> None:
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=10000", "secure_delete=ON"):
            connection.execute(f"PRAGMA {pragma}")

    return made
