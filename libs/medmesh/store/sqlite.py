"""SQLite for the hospital's edge: WAL, synchronous FULL unless a transaction says that it need not be durable, one connection, and whoever
wants it waits for their turn. Simulations have it in memory, where nothing waits for a disk.

Statements run where they are called, in the event loop: each takes microseconds, less than handing it to a thread. What waits for the disk
does so in a thread, and for another process it is waited in the loop.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from sqlalchemy import Connection, create_engine, event
from sqlalchemy.pool import QueuePool

from medmesh.store.journal import Outgoing
from medmesh.store.prepared import Prepared
from medmesh.store.wal import write_ahead
from medmesh.tasks import uninterrupted

BUSY_SECONDS = 10.0
"""How long a transaction waits for another process's."""
_DURABLE = ("PRAGMA synchronous=FULL", "PRAGMA wal_autocheckpoint=1000")
_SOON = ("PRAGMA synchronous=NORMAL", "PRAGMA wal_autocheckpoint=0")
"""Of a commit that waits for no disk: not for that of a checkpoint, either."""


def _iso(now: datetime) -> str:
    return now.astimezone(UTC).isoformat(timespec="microseconds")


class Inline:
    """What we use of SQLAlchemy's asynchronous connection, on its plain one. No statement can be cancelled half way."""

    def __init__(self, sql: Connection, *, disk: bool) -> None:
        self._sql = sql
        self._disk = disk
        self._durable = True
        self.settled = True
        """Whether the disk has all that was committed."""
        self.synced = 0
        """How many commits waited for the disk."""
        self.invalidated = False
        """Whether it was thrown away. Asked at every turn, which of SQLAlchemy's costs as much as a statement's values."""
        self.dialect = sql.dialect
        self.driver = cast(sqlite3.Connection, sql.connection.driver_connection)

    async def execute(self, statement: Any, parameters: Any = None) -> Any:
        """As the connection's."""
        return self._sql.execute(statement, parameters)

    async def exec_driver_sql(self, statement: str, parameters: Any = None) -> Any:
        """As the connection's."""
        return self._sql.exec_driver_sql(statement, parameters)

    def wait_for_disk(self, durable: bool) -> None:
        """Whether the next transactions' commits do."""
        if self._disk and durable != self._durable:
            for pragma in _DURABLE if durable else _SOON:
                self.driver.execute(pragma)
            self._durable = durable

    async def patiently(self, statement: str) -> Any:
        """The row that a statement answers which may wait; its caller goes on once it is over, also when cancelled meanwhile."""

        def run() -> Any:
            return self.driver.execute(statement).fetchone()

        return await uninterrupted(asyncio.get_running_loop().run_in_executor(None, run)) if self._disk else run()

    async def commit(self) -> None:
        """Commit what was written."""
        if self._durable:
            await self.patiently("COMMIT")
            self.settled = True  # the log is written in order, and synced as a whole
            self.synced += 1
        else:
            self.driver.execute("COMMIT")
            self.settled = False

    async def run_sync(self, work: Callable[[Connection], Any]) -> Any:
        """As the connection's."""
        return work(self._sql)

    async def invalidate(self) -> None:
        """As the connection's."""
        self.invalidated = True
        self._sql.invalidate()


class SqliteJournal:
    """See `medmesh.store.journal.Journal`. Its few statements go to the driver: a node runs them some twenty times a round."""

    def __init__(self, connection: Inline) -> None:
        self._connection = connection
        self._sql = connection.driver
        self._begun = False
        self._before = 0

    async def begin(self, durable: bool = True) -> None:
        self._connection.wait_for_disk(durable)
        # IMMEDIATE takes the write lock at once: two processes wait for each other instead of failing half way.
        await self._run("BEGIN IMMEDIATE")
        self._begun, self._before = True, self._sql.total_changes

    async def _run(self, text: str, values: Sequence[Any] = ()) -> list[Any]:
        """The rows of one statement, once no other process holds what it needs: inside a transaction that is at once."""
        end = 0.0
        while True:
            try:
                return self._sql.execute(text, values).fetchall()
            except sqlite3.OperationalError as error:
                end = end or time.monotonic() + BUSY_SECONDS
                # The low byte: also while another process takes up what one that was killed left (SQLITE_BUSY_RECOVERY).
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > end:
                    raise
            await asyncio.sleep(0.005)

    async def commit(self) -> None:
        if self._sql.total_changes == self._before:
            self._sql.execute("COMMIT")  # nothing was written: nothing to wait for
        else:
            await self._connection.commit()
        self._begun = False

    async def rollback(self) -> None:
        if self._begun:
            self._begun = False
            self._sql.execute("ROLLBACK")

    async def rows(self, prepared: Prepared, values: Mapping[str, Any]) -> Sequence[Any]:
        statement, read = prepared.sqlite
        return [read(row) for row in await self._run(statement.text, statement.asked(values))]

    def rows_now(self, prepared: Prepared, values: Mapping[str, Any]) -> Sequence[Any] | None:
        """The same, if no other process holds what it needs; else None."""
        statement, read = prepared.sqlite
        try:
            return [read(row) for row in self._sql.execute(statement.text, statement.asked(values)).fetchall()]
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                raise
            return None

    async def remember(self, consumer: str, event_id: str, now: datetime) -> bool:
        done = self._sql.execute("INSERT OR IGNORE INTO inbox (consumer, event_id, at) VALUES (?, ?, ?)", (consumer, event_id, _iso(now)))
        return done.rowcount == 1

    async def remember_all(self, consumer: str, event_ids: Sequence[str], now: datetime) -> set[str]:
        return {id_ for id_ in event_ids if await self.remember(consumer, id_, now)}

    async def send(self, messages: Sequence[Outgoing], now: datetime) -> None:
        # Of the row written last: nobody else writes meanwhile, and `MAX(seq)` would read every row that was ever sent.
        (first,) = self._sql.execute(
            "SELECT COALESCE(MAX(seq), 0) + 1 FROM outbox WHERE rowid = (SELECT MAX(rowid) FROM outbox)"
        ).fetchone()
        rows = [(m.id, first + place, m.subject, m.body, _iso(now)) for place, m in enumerate(messages)]
        self._sql.executemany("INSERT INTO outbox (id, seq, subject, body, created_at) VALUES (?, ?, ?, ?, ?)", rows)

    async def unsent(self, limit: int, before: datetime | None = None) -> list[Outgoing]:
        wanted = "SELECT id, subject, body FROM outbox WHERE sent_at IS NULL AND (?1 IS NULL OR created_at < ?1) ORDER BY seq LIMIT ?2"
        return [Outgoing(*row) for row in self._sql.execute(wanted, (before and _iso(before), limit))]

    async def sent(self, ids: Sequence[str], now: datetime) -> None:
        wanted = "UPDATE outbox SET sent_at = ? WHERE id IN (SELECT value FROM json_each(?))"
        await self._run(wanted, (_iso(now), json.dumps(list(ids))))

    async def unreceipted(self, limit: int) -> list[tuple[int, str, bytes]]:
        return list(self._sql.execute("SELECT n, id, body FROM audit_outbox ORDER BY n LIMIT ?", (limit,)))

    async def number(self, count: int, last_id: str) -> tuple[int, str]:
        n, before = self._sql.execute("SELECT n, last_id FROM audit_counter").fetchone()
        self._sql.execute("UPDATE audit_counter SET n = ?, last_id = ?", (n + count, last_id))
        return int(n), str(before)

    async def record(self, rows: Sequence[tuple[int, str, bytes]], now: datetime) -> None:
        self._sql.executemany("INSERT INTO audit_outbox (n, id, body, created_at) VALUES (?, ?, ?, ?)", [(*row, _iso(now)) for row in rows])

    async def receipted(self, numbers: Sequence[int]) -> None:
        self._sql.executemany("DELETE FROM audit_outbox WHERE n = ?", [(n,) for n in numbers])


class _Turn:
    """`async with`: the one connection of an engine, whose turn it is."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def __aenter__(self) -> Inline:
        return await self._engine._take()

    async def __aexit__(self, *_: object) -> None:
        self._engine._give_back()


class Engine:
    """What we use of SQLAlchemy's asynchronous engine, on the file `path`, created 0600 when it does not exist, or in memory."""

    def __init__(self, path: Path | None) -> None:
        if path is not None:
            path.touch(mode=0o600, exist_ok=True)
        options: dict[str, Any] = {"isolation_level": "AUTOCOMMIT", "poolclass": QueuePool, "pool_size": 1, "max_overflow": 0}
        self._engine = create_engine(f"sqlite:///{path or ':memory:'}", connect_args={"check_same_thread": False}, **options)
        self._turn = asyncio.Lock()
        self._disk = path is not None
        self._open: Connection | None = None
        self._given: Inline
        self.dialect = self._engine.dialect

        @event.listens_for(self._engine, "connect")
        def _configure(connection: Any, _record: Any) -> None:
            connection.execute(f"PRAGMA busy_timeout={int(BUSY_SECONDS * 1000)}")
            write_ahead(connection, BUSY_SECONDS)
            for pragma in (
                "synchronous=FULL",
                "foreign_keys=ON",
                "secure_delete=ON",
                "busy_timeout=0",
            ):
                connection.execute(f"PRAGMA {pragma}")

    @property
    def settled(self) -> bool:
        """Whether the disk has all that was committed here."""
        return self._open is None or self._given.settled

    @property
    def synced(self) -> int:
        """How many commits of this connection waited for the disk: what was there to see at a number is on it at the next."""
        return 0 if self._open is None else self._given.synced

    def connect(self) -> _Turn:
        """The connection, for one at a time. It stays open in between: opening it anew would cost as much as a statement."""
        return _Turn(self)

    def free(self) -> Inline | None:
        """The connection, where it is nobody's turn: for a statement outside of transactions, within which nobody else comes to it."""
        taken = self._turn.locked() or self._open is None or self._given.invalidated
        return None if taken else self._given

    async def _take(self) -> Inline:
        await self._turn.acquire()
        try:
            if self._open is None or self._given.invalidated:
                self._open = self._engine.connect()
                self._given = Inline(self._open, disk=self._disk)
            return self._given
        except BaseException:
            self._turn.release()
            raise

    def _give_back(self) -> None:
        try:
            if self._given.driver.in_transaction:  # whoever began it was ended before it did
                self._given.driver.rollback()
        finally:
            self._turn.release()

    async def dispose(self) -> None:
        """Close it."""
        if self._open is not None:
            self._open.close()
            self._open = None
        self._engine.dispose()
