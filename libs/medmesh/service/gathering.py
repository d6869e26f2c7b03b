"""Small transactions of a door: what is asked for while one runs shares the next.

Nobody waits for companions, and whoever waits knows that what they asked for is durable. Sixty hospitals that fetch a model at once, or
hand one in, cost a few transactions instead of sixty.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from medmesh.store.unit import AuditEntry, Context, UnitOfWork

MOST = 256
T = TypeVar("T")


@dataclass(frozen=True)
class _Asked:
    context: Context
    work: Callable[[UnitOfWork[Any]], Awaitable[Any]]
    done: asyncio.Future[Any]


@dataclass
class Gathering:
    """`unit` opens a transaction of the service."""

    unit: Callable[[], AbstractAsyncContextManager[UnitOfWork[Any]]]
    _waiting: list[_Asked] = field(default_factory=list)
    _task: asyncio.Task[None] | None = None

    async def record(self, context: Context, entry: AuditEntry) -> None:
        """Return when the record is committed. Raises what kept its transaction from it."""

        async def record(uow: UnitOfWork[Any]) -> None:
            uow.audit(entry)

        await self.run(context, record)

    async def run(self, context: Context, work: Callable[[UnitOfWork[Any]], Awaitable[T]]) -> T:
        """What `work` answers, once it is committed; it may be run again, when it or a companion fails. Raises what it raises, or what kept
        its transaction from being committed. Who gives up waiting takes nothing back."""
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Asked(context, work, done))
        if self._task is None:
            # A task of its own: a request that is given up takes nobody else's work with it.
            self._task = asyncio.create_task(self._run())
        return await done

    async def _run(self) -> None:
        try:
            while self._waiting:
                taken, self._waiting = self._waiting[:MOST], self._waiting[MOST:]
                await self._commit(taken)
        finally:
            self._task = None

    async def _commit(self, taken: list[_Asked]) -> None:
        try:
            found = []
            async with self.unit() as uow:
                for one in taken:
                    uow.context = one.context
                    found.append(await one.work(uow))
        except Exception as error:
            if len(taken) > 1:  # whose fault it was shows when each is alone
                for one in taken:
                    await self._commit([one])
            elif not taken[0].done.done():
                taken[0].done.set_exception(error)
            return
        except BaseException:
            for one in taken:
                one.done.cancel()
            raise
        for one, answer in zip(taken, found, strict=True):
            if not one.done.done():
                one.done.set_result(answer)
