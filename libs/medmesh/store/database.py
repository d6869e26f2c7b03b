"""A service's database: units of work, the rows the relays carry away, and readiness."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import Connection, MetaData, bindparam, delete, func, select, text
from sqlalchemy.schema import CreateColumn, CreateIndex, CreateTable

from medmesh.store.journal import Journal, Outgoing
from medmesh.store.prepared import Prepared
from medmesh.store.tables import node_metadata
from medmesh.store.unit import AuditEntry, Context, Recorder, UnitOfWork
from medmesh.tasks import uninterrupted
from medmesh.telemetry import log

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

_TABLES = node_metadata().tables
_OUTBOX = _TABLES["outbox"]
_OVERDUE = Prepared(select(_OUTBOX.c.id).where(_OUTBOX.c.sent_at.is_(None), _OUTBOX.c.created_at < bindparam("before")).limit(1))


def _no_recorder(entry: AuditEntry, *_: Any) -> bytes:
    raise RuntimeError(f"no recorder was configured for the audit entry {entry.verb}")


class Database:
    """One service's schema. `emits` are the message classes its units may emit; `on_sent` hands what was
    committed to its relay, `on_audited` wakes the other."""

    def __init__(self, engine: AsyncEngine, *, recorder: Recorder = _no_recorder, emits: frozenset[type] = frozenset()) -> None:
        self.engine = engine
        self._sqlite: Callable[[Any], Journal] | None = None
        if engine.dialect.name == "sqlite":
            from medmesh.store.sqlite import SqliteJournal

            self._sqlite = SqliteJournal
        self.recorder = recorder
        self.emits = emits
        self.on_sent: Callable[[Sequence[Outgoing]], None] = lambda _: None
        self.on_audited: Callable[[], None] = lambda: None

    @classmethod
    def postgres(
        cls, url: str, *, password: str | None = None, application: str = "medmesh", pool_size: int = 8, **options: Any
    ) -> Database:
        """PostgreSQL at `url`; the role's search path decides the schema."""
        from medmesh.store import postgres

        made = postgres.engine(url, password=password, pool_size=pool_size, application=application)
        return cls(cast("AsyncEngine", postgres.Engine(made, pool_size)), **options)

    @classmethod
    def sqlite(cls, path: Path, **options: Any) -> Database:
        """A SQLite file, at the edge."""
        from medmesh.store import sqlite

        return cls(cast("AsyncEngine", sqlite.Engine(path)), **options)

    @classmethod
    def memory(cls, **options: Any) -> Database:
        """SQLite in memory, gone with this object: for simulations."""
        from medmesh.store import sqlite

        return cls(cast("AsyncEngine", sqlite.Engine(None)), **options)

    async def create(self, metadata: MetaData) -> None:
        """Make the tables of a store that has no migrations of its own (SQLite), and what those of an earlier release lack: indexes, and
        columns, each of which has a default, or may be empty. Safe to run again."""
        # A transaction like any other: a node is opened by every command on it, also while it writes.
        async with self._transaction() as (sql, _):
            await sql.run_sync(lambda connection: _create(connection, metadata))
            await sql.execute(text("INSERT INTO audit_counter (one, n, last_id) VALUES (1, 0, '') ON CONFLICT DO NOTHING"))

    async def close(self) -> None:
        """Close every connection."""
        await self.engine.dispose()

    async def ready(self) -> None:
        """Raise unless the database answers."""
        async with self.engine.connect() as sql:
            await sql.execute(text("SELECT 1"))

    async def waited(self) -> None:
        """Return once the database answers: a service that starts while its server restarts waits, as it does later on. Raises what
        waiting does not mend, such as a wrong password."""
        from medmesh.store.postgres import is_transient

        pause = 0.05
        while True:
            try:
                return await self.ready()
            except Exception as error:
                if not is_transient(error):
                    raise
                log("database.awaited", level=30, error=error)
            await asyncio.sleep(pause)
            pause = min(pause * 2, 1.0)

    def _journal(self, sql: AsyncConnection) -> Journal:
        if self._sqlite is not None:
            return self._sqlite(sql)
        from medmesh.store.postgres import PostgresJournal, driver

        return PostgresJournal(driver(sql))

    def unit(self, context: Context, ports: Any = None, *, durable: bool = True) -> AbstractAsyncContextManager[UnitOfWork[Any]]:
        """A transaction that commits when the block ends and leaves nothing behind when it raises. For one that need not be `durable`
        SQLite does not wait for the disk: it outlives a kill of the process, and a power cut once one was committed after it that is."""
        return _Unit(self, context, ports, durable)

    @property
    def mark(self) -> int:
        """Of what is committed by now, for `settle`."""
        return int(getattr(self.engine, "synced", 0))

    async def settle(self, mark: int | None = None) -> None:
        """Wait until the disk has all that was committed, or what was when `mark` was asked for: a later commit may have waited for it."""
        if not getattr(self.engine, "settled", True) and mark in (None, self.mark):
            async with self._transaction() as (sql, _):
                await sql.exec_driver_sql("UPDATE audit_counter SET n = n")

    async def look(self, query: Prepared, **values: Any) -> Sequence[Any]:
        """Every row of one query, in a transaction of its own that needs no begin and no end: a third of the way to the server and back.
        Raises `Problem` (`store.value`) for a value that no column can hold."""
        # A node asks some fifteen a round: one that is at once is spared the way to its turn.
        if self._sqlite is not None and (free := self.engine.free()) is not None:  # type: ignore[attr-defined]
            found: Sequence[Any] | None = self._sqlite(free).rows_now(query, values)  # type: ignore[attr-defined]
            if found is not None:
                return found
        async with self.engine.connect() as sql:
            return await self._journal(sql).rows(query, values)

    def _transaction(self, durable: bool = True) -> _Transaction:
        return _Transaction(self, durable)

    @asynccontextmanager
    async def claim_unsent(
        self, limit: int = 256, before: datetime | None = None
    ) -> AsyncIterator[tuple[list[Outgoing], Callable[[Sequence[str]], Any]]]:
        """Unsent messages (made before an instant), locked so that two relays never send the same one, and a function that marks ids as
        sent.

        Claimed by being unsent, never by a high-water mark: a transaction that took an earlier number may commit later.
        """
        async with self._transaction() as (_, journal):

            async def mark(ids: Sequence[str]) -> None:
                await journal.sent(ids, datetime.now(UTC))

            yield await journal.unsent(limit, before), mark

    async def overdue(self, before: datetime) -> bool:
        """Whether there are unsent messages that were made before an instant."""
        return bool(await self.look(_OVERDUE, before=before))

    async def sent(self, ids: Sequence[str]) -> None:
        """Note that these were sent, in a statement of its own."""
        async with self.engine.connect() as sql:
            await self._journal(sql).sent(ids, datetime.now(UTC))

    async def outbox_backlog(self) -> tuple[int, float]:
        """(unsent messages, age of the oldest in seconds)."""
        backlog = select(func.count(), func.min(_OUTBOX.c.created_at)).where(_OUTBOX.c.sent_at.is_(None))
        async with self.engine.connect() as sql:
            count, oldest = (await sql.execute(backlog)).one()
        oldest = datetime.fromisoformat(oldest) if isinstance(oldest, str) else oldest
        return int(count), (datetime.now(UTC) - oldest).total_seconds() if oldest else 0.0

    async def unreceipted(self, limit: int = 256) -> list[tuple[int, str, bytes]]:
        """Audit rows (n, id, body) the log has not acknowledged, in order."""
        async with self.engine.connect() as sql:
            return await self._journal(sql).unreceipted(limit)

    async def audit_backlog(self) -> tuple[datetime | None, int]:
        """(when the oldest audit row without a receipt was written, bytes of all of them)."""
        rows = _TABLES["audit_outbox"]
        async with self.engine.connect() as sql:
            oldest, size = (await sql.execute(select(func.min(rows.c.created_at), func.sum(func.length(rows.c.body))))).one()
        return (datetime.fromisoformat(oldest) if isinstance(oldest, str) else oldest), int(size or 0)

    async def receipted(self, numbers: Sequence[int]) -> None:
        """Drop the audit rows whose receipt came. What is handed in again gets its receipt again: nobody waits for the disk."""
        async with self._transaction(durable=False) as (_, journal):
            await journal.receipted(numbers)

    async def prune(self, before: datetime) -> int:
        """Forget sent messages and handled ones older than the streams keep them; answers how many."""
        inbox = _TABLES["inbox"]
        async with self._transaction() as (sql, _):
            gone = await sql.execute(delete(_OUTBOX).where(_OUTBOX.c.sent_at < before))
            done = await sql.execute(delete(inbox).where(inbox.c.at < before))
            return gone.rowcount + done.rowcount


class _Transaction:
    """`async with`: (connection, journal) of a transaction that is committed at the end. A class, as is `_Unit`: a node begins some ten of
    them a round, and a generator costs as much as a statement."""

    def __init__(self, database: Database, durable: bool) -> None:
        self._database, self._durable = database, durable
        self._connection = database.engine.connect()

    async def __aenter__(self) -> tuple[AsyncConnection, Journal]:
        self._sql = await self._connection.__aenter__()
        try:
            self._journal = self._database._journal(self._sql)
            try:
                await self._journal.begin(self._durable)
            except BaseException:
                await self._undo()
                raise
        except BaseException as error:
            await self._connection.__aexit__(type(error), error, error.__traceback__)
            raise
        return self._sql, self._journal

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if error is None:
                try:
                    await self._journal.commit()
                except BaseException as failed:
                    kind, error, trace = type(failed), failed, failed.__traceback__
                    await self._undo()
                    raise
            else:
                await self._undo()
        finally:
            await self._connection.__aexit__(kind, error, trace)

    async def _undo(self) -> None:
        """A cancelled handler, too, must give its connection back without an open transaction, even when cancelled again."""
        with suppress(asyncio.CancelledError):
            await uninterrupted(_undo(self._sql, self._journal))


class _Unit:
    """`async with`: see `Database.unit`."""

    def __init__(self, database: Database, context: Context, ports: Any, durable: bool) -> None:
        self._database, self._context, self._ports = database, context, ports
        self._transaction = _Transaction(database, durable)

    async def __aenter__(self) -> UnitOfWork[Any]:
        sql, journal = await self._transaction.__aenter__()
        self._uow: UnitOfWork[Any] = UnitOfWork(sql, journal, self._context, self._database.recorder, self._ports, self._database.emits)
        return self._uow

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        uow, database = self._uow, self._database
        if error is None:
            try:
                await uow.flush()
            except BaseException as failed:
                await self._transaction.__aexit__(type(failed), failed, failed.__traceback__)
                raise
        await self._transaction.__aexit__(kind, error, trace)
        if error is not None:
            return
        uow.committed()
        if uow.outgoing:
            database.on_sent(uow.outgoing)
        if uow.audited:
            database.on_audited()


def _create(connection: Connection, metadata: MetaData) -> None:
    """Make the tables, columns and indexes that are not there."""
    if connection.dialect.name != "sqlite":  # whose tables are migrated (`medmesh.store.migrate`)
        return metadata.create_all(connection)
    there = {name for (name,) in connection.exec_driver_sql("SELECT name FROM sqlite_master")}
    tables, indexes = _statements(metadata)
    for name, statement in tables:
        if name not in there:
            connection.exec_driver_sql(statement)
    _complete(connection, metadata)
    for name, statement in indexes:
        if name not in there:
            connection.exec_driver_sql(statement)
    return None


@cache
def _statements(metadata: MetaData) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """What makes each table of a SQLite store, and each index: written once for the stores of many simulated hospitals."""
    from sqlalchemy.dialects.sqlite.pysqlite import dialect

    kind, tables = dialect(), metadata.sorted_tables
    indexes = {str(index.name): CreateIndex(index) for table in tables for index in table.indexes}
    return (
        [(table.name, str(CreateTable(table).compile(dialect=kind))) for table in tables],
        [(name, str(indexes[name].compile(dialect=kind))) for name in sorted(indexes)],
    )


def _complete(connection: Connection, metadata: MetaData) -> None:
    """Add the columns that tables of SQLite lack."""
    rows = connection.exec_driver_sql("SELECT m.name, c.name FROM sqlite_master m, pragma_table_info(m.name) c WHERE m.type = 'table'")
    there = {tuple(row) for row in rows}
    for table in metadata.tables.values():
        for column in table.columns:
            if (table.name, column.name) not in there:
                made = CreateColumn(column).compile(dialect=connection.dialect)
                connection.exec_driver_sql(f'ALTER TABLE "{table.name}" ADD COLUMN {made}')


async def _undo(sql: AsyncConnection, journal: Journal) -> None:
    """Roll back. Nothing is raised: what went wrong before must be what is told, above all a cancellation. A connection that cannot
    roll back is thrown away, which rolls back too."""
    try:
        await journal.rollback()
    except Exception:
        await sql.invalidate()
