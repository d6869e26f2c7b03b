"""PostgreSQL: the journal on the raw asyncpg connection, which costs half of what the same statements cost through SQLAlchemy."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any

import asyncpg
from pydantic_core import from_json
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from medmesh.errors import Problem
from medmesh.store.journal import Outgoing
from medmesh.store.prepared import Prepared
from medmesh.tasks import uninterrupted
from medmesh.telemetry import log

TURN_SECONDS = 30.0
"""How long a transaction waits for a connection."""

_REMEMBER = "INSERT INTO inbox (consumer, event_id, at) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING"
# In order, so that two that share messages wait for each other instead of dead-locking.
_REMEMBER_ALL = """
    INSERT INTO inbox (consumer, event_id, at) SELECT $1, e, $3 FROM unnest($2::text[]) AS e ORDER BY e
    ON CONFLICT DO NOTHING RETURNING event_id
"""
_SEND = """
    INSERT INTO outbox (id, subject, body, created_at)
    SELECT m.id, m.subject, m.body, $4
    FROM unnest($1::text[], $2::text[], $3::bytea[]) WITH ORDINALITY AS m(id, subject, body, place) ORDER BY m.place
"""
_UNSENT = """
    SELECT id, subject, body FROM outbox WHERE sent_at IS NULL AND ($2::timestamptz IS NULL OR created_at < $2) ORDER BY seq LIMIT $1
    FOR UPDATE SKIP LOCKED
"""
_SENT = "UPDATE outbox SET sent_at = $2 WHERE id = ANY($1::text[])"
_NUMBER = """
    WITH before AS (SELECT n, last_id FROM audit_counter FOR UPDATE)
    UPDATE audit_counter c SET n = before.n + $1, last_id = $2 FROM before RETURNING before.n, before.last_id
"""
_RECORD = """
    INSERT INTO audit_outbox (n, id, body, created_at)
    SELECT r.n, r.id, r.body, $4 FROM unnest($1::bigint[], $2::text[], $3::bytea[]) AS r(n, id, body)
"""
_UNRECEIPTED = "SELECT n, id, body FROM audit_outbox ORDER BY n LIMIT $1"
_RECEIPTED = "DELETE FROM audit_outbox WHERE n = ANY($1::bigint[])"


class _Row(asyncpg.Record):
    """Its columns are attributes, as SQLAlchemy's are."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class PostgresJournal:
    """See `medmesh.store.journal.Journal`."""

    def __init__(self, raw: asyncpg.Connection) -> None:
        self._raw = raw

    async def begin(self, durable: bool = True) -> None:
        await self._raw.execute("BEGIN")

    async def commit(self) -> None:
        await self._raw.execute("COMMIT")

    async def rollback(self) -> None:
        # Always: after a cancelled BEGIN the driver does not know yet whether there is a transaction.
        if not self._raw.is_closed():
            await self._raw.execute("ROLLBACK")

    async def rows(self, prepared: Prepared, values: Mapping[str, Any]) -> Sequence[Any]:
        text, arguments = prepared.asked(values)
        try:
            found: Sequence[Any] = await self._raw.fetch(text, *arguments, record_class=_Row)
        except asyncpg.DataError as error:
            log("store.value", level=30, error=error)
            raise Problem("store.value") from None
        return found

    async def remember(self, consumer: str, event_id: str, now: datetime) -> bool:
        return bool(await self._raw.execute(_REMEMBER, consumer, event_id, now) == "INSERT 0 1")

    async def remember_all(self, consumer: str, event_ids: Sequence[str], now: datetime) -> set[str]:
        return {row[0] for row in await self._raw.fetch(_REMEMBER_ALL, consumer, event_ids, now)}

    async def send(self, messages: Sequence[Outgoing], now: datetime) -> None:
        ids, subjects, bodies = zip(*messages, strict=True)
        await self._raw.execute(_SEND, ids, subjects, bodies, now)

    async def unsent(self, limit: int, before: datetime | None = None) -> list[Outgoing]:
        return [Outgoing(*row) for row in await self._raw.fetch(_UNSENT, limit, before)]

    async def sent(self, ids: Sequence[str], now: datetime) -> None:
        await self._raw.execute(_SENT, ids, now)

    async def unreceipted(self, limit: int) -> list[tuple[int, str, bytes]]:
        return [(row[0], row[1], row[2]) for row in await self._raw.fetch(_UNRECEIPTED, limit)]

    async def number(self, count: int, last_id: str) -> tuple[int, str]:
        row = await self._raw.fetchrow(_NUMBER, count, last_id)
        return int(row["n"]), str(row["last_id"])

    async def record(self, rows: Sequence[tuple[int, str, bytes]], now: datetime) -> None:
        numbers, ids, bodies = zip(*rows, strict=True)
        await self._raw.execute(_RECORD, numbers, ids, bodies, now)

    async def receipted(self, numbers: Sequence[int]) -> None:
        await self._raw.execute(_RECEIPTED, numbers)


def engine(
    url: str | URL, *, password: str | None = None, pool_size: int = 8, application: str = "medmesh", autocommit: bool = True
) -> AsyncEngine:
    """An engine whose transactions are ours to begin and end (SQLAlchemy runs in AUTOCOMMIT inside them)."""
    where = make_url(url).set(drivername="postgresql+asyncpg")
    if password is not None:
        where = where.set(password=password)
    return create_async_engine(
        where,
        isolation_level="AUTOCOMMIT" if autocommit else None,
        pool_size=pool_size,
        max_overflow=0,  # one above the pool would be opened and closed for each use, at the price of forty statements
        json_deserializer=from_json,
        pool_pre_ping=False,
        connect_args={"server_settings": {"application_name": application}, "timeout": 5},
    )


class Engine:
    """SQLAlchemy's, as a service's database uses it, whose connections stay taken between two transactions: to take one from its pool and
    give it back costs as much as a statement (decision 0141). The one used last is used first: it knows its statements."""

    def __init__(self, engine: AsyncEngine, size: int) -> None:
        self.engine = engine
        self.dialect = engine.dialect
        self.turns = asyncio.Semaphore(size)
        self.idle: list[AsyncConnection] = []
        self.disposed = False

    def connect(self) -> _Lease:
        """`async with`: a connection; after an error it is closed."""
        return _Lease(self)

    async def dispose(self) -> None:
        """Close every connection that nobody has, and the others when they are given back."""
        self.disposed = True
        while self.idle:
            await self.idle.pop().close()
        await self.engine.dispose()


class _Lease:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def __aenter__(self) -> AsyncConnection:
        turns = self._engine.turns
        if turns.locked():
            try:
                async with asyncio.timeout(TURN_SECONDS):
                    await turns.acquire()
            except TimeoutError:
                raise PoolTimeout(f"no connection was free for {TURN_SECONDS:g} s") from None
        else:
            await turns.acquire()
        try:
            self._sql = await self._one()
        except BaseException:
            turns.release()
            raise
        return self._sql

    async def _one(self) -> AsyncConnection:
        while True:
            sql = self._engine.idle.pop() if self._engine.idle else await self._engine.engine.connect().start()
            if not driver(sql).is_closed():
                return sql
            await sql.invalidate()  # the server closed it while nobody had it
            await sql.close()

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        sql, whole = self._sql, False
        try:
            if error is None and not sql.invalidated and not self._engine.disposed:
                if sql.in_transaction():  # one that SQLAlchemy believes in
                    await sql.rollback()
                whole = True
        finally:
            try:
                if whole:
                    self._engine.idle.append(sql)
                else:
                    await uninterrupted(sql.close())
            finally:
                self._engine.turns.release()


def driver(sql: AsyncConnection) -> asyncpg.Connection:
    """The driver's own connection."""
    assert sql.sync_connection is not None
    return sql.sync_connection.connection.driver_connection


def is_transient(error: BaseException) -> bool:
    """Whether the database is busy or away, rather than our statement wrong."""
    if isinstance(error, DBAPIError):  # SQLAlchemy's envelope around its adapter's envelope around the driver's error
        return error.connection_invalidated or (error.orig is not None and is_transient(error.orig.__cause__ or error.orig))
    return isinstance(
        error,
        asyncpg.PostgresConnectionError
        | asyncpg.SerializationError
        | asyncpg.DeadlockDetectedError
        | asyncpg.CannotConnectNowError
        | asyncpg.TooManyConnectionsError
        | asyncpg.AdminShutdownError
        | asyncpg.CrashShutdownError
        | asyncpg.InterfaceError
        | asyncpg.InternalClientError  # a statement on a connection that broke
        | PoolTimeout
        | OSError,
    )
