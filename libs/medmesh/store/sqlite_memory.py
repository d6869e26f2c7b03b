"""SQLite in this process's memory, for simulations: nothing is kept, and a statement runs where it is asked for, without a thread between.

It is the same dialect, journal and unit of work as the edge's file, and passes the same contract suite.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import Connection, create_engine
from sqlalchemy.engine import Dialect
from sqlalchemy.pool import StaticPool


class HereConnection:
    """What is used of SQLAlchemy's `AsyncConnection`; a statement blocks for microseconds, and ends before anybody could cancel it."""

    def __init__(self, sql: Connection) -> None:
        self._sql = sql

    async def execute(self, statement: Any, parameters: Any = None) -> Any:
        """As there."""
        return self._sql.execute(statement, parameters)

    async def exec_driver_sql(self, statement: str, parameters: Any = None) -> Any:
        """As there."""
        return self._sql.exec_driver_sql(statement, parameters)

    async def run_sync(self, call: Callable[..., Any]) -> Any:
        """As there."""
        return call(self._sql)

    async def invalidate(self) -> None:
        """The database would be gone with it: there is no connection but this one."""


class HereEngine:
    """What is used of SQLAlchemy's `AsyncEngine`, on a database of its own, gone with it. There is one connection: transactions wait for
    each other, as they do on a file."""

    def __init__(self) -> None:
        self._engine = create_engine(
            "sqlite://", isolation_level="AUTOCOMMIT", poolclass=StaticPool, connect_args={"check_same_thread": False}
        )
        self._sql: Connection | None = None
        self._turn = asyncio.Lock()

    @property
    def dialect(self) -> Dialect:
        """SQLite's."""
        return self._engine.dialect

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[HereConnection]:
        """The connection, when it is nobody else's."""
        async with self._turn:
            if self._sql is None:
                self._sql = self._engine.connect()
            yield HereConnection(self._sql)

    async def dispose(self) -> None:
        """Forget everything."""
        if self._sql is not None:
            self._sql.close()
        self._engine.dispose()
