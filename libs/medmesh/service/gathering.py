"""Audit records that come with no other change of state: those that come while one transaction runs share the next.

Nobody waits for companions, and whoever waits knows that the record is durable. Sixty hospitals that fetch a model at once cost a few
transactions instead of sixty.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any

from medmesh.store.unit import AuditEntry, Context, UnitOfWork

MOST = 256


@dataclass
class Gathering:
    """`unit` opens a transaction of the service."""

    unit: Callable[[], AbstractAsyncContextManager[UnitOfWork[Any]]]
    _waiting: list[tuple[Context, AuditEntry, asyncio.Future[None]]] = field(default_factory=list)
    _task: asyncio.Task[None] | None = None

    async def record(self, context: Context, entry: AuditEntry) -> None:
        """Return when the record is committed. Raises what kept its transaction from it."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((context, entry, done))
        if self._task is None:
            # A task of its own: a request that is given up takes nobody else's record with it.
            self._task = asyncio.create_task(self._run())
        await done

    async def _run(self) -> None:
        try:
            while self._waiting:
                taken, self._waiting = self._waiting[:MOST], self._waiting[MOST:]
                await self._commit(taken)
        finally:
            self._task = None

    async def _commit(self, taken: list[tuple[Context, AuditEntry, asyncio.Future[None]]]) -> None:
        failed: BaseException | None = None
        try:
            async with self.unit() as uow:
                for context, entry, _ in taken:
                    uow.context = context
                    uow.audit(entry)
        except BaseException as error:
            failed = error
        for _, _, done in taken:
            if done.done():
                continue
            if isinstance(failed, Exception):
                done.set_exception(failed)
            elif failed is not None:
                done.cancel()
            else:
                done.set_result(None)
        if failed is not None and not isinstance(failed, Exception):
            raise failed
