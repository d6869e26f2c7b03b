"""SQLite in this process's memory, for simulations: nothing is kept, and a statement runs where it is asked for, without a thread between.

It is the same dialect, journal and unit of work as the edge's file, and passes the same contract suite.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Generator
from functools import partial
from typing import Any

from aiosqlite import Connection
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool


class _Here(Connection):
    """A connection of aiosqlite's that has no thread: what it is asked blocks, for microseconds."""

    def __init__(self) -> None:
        super().__init__(partial(sqlite3.connect, ":memory:", isolation_level=None, check_same_thread=False), 64)
        self._tx = _Now()

    def __await__(self) -> Generator[Any, None, Connection]:
        return self._open().__await__()

    async def _open(self) -> Connection:
        self._connection = self._connector()
        return self

    async def _execute(self, fn: Any, *args: Any, **kwargs: Any) -> Any:
        return fn(*args, **kwargs)

    async def close(self) -> None:
        self.stop()

    def stop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()


class _Now:
    """In place of the queue to the thread, which SQLAlchemy uses too."""

    def put_nowait(self, task: tuple[Any, Callable[[], Any]]) -> None:
        future, function = task
        future.set_result(function())


def engine() -> AsyncEngine:
    """An engine on a database of its own, gone with it. One connection: transactions wait for each other, as they do on a file."""
    return create_async_engine(
        "sqlite+aiosqlite://",
        async_creator=_Here,
        isolation_level="AUTOCOMMIT",
        poolclass=AsyncAdaptedQueuePool,
        pool_size=1,
        max_overflow=0,
        pool_reset_on_return=None,
    )
