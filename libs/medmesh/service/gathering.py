"""Small transactions of a door: what is asked for while one runs shares the next.

Nobody waits for companions, and whoever waits knows that what they asked for is durable. Sixty hospitals that fetch a model at once, or
hand one in, cost a few transactions instead of sixty, each with as many statements as one of them needs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from medmesh.store.unit import AuditEntry, Context, UnitOfWork

MOST = 256
T = TypeVar("T")
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class _Asked:
    work: Callable[[UnitOfWork[Any], Any], Awaitable[Sequence[Any]]]
    wanted: tuple[Context, Any]
    done: asyncio.Future[Any]


@dataclass
class Gathering:
    """`unit` opens a transaction of the service."""

    unit: Callable[[], AbstractAsyncContextManager[UnitOfWork[Any]]]
    _waiting: list[_Asked] = field(default_factory=list)
    _task: asyncio.Task[None] | None = None

    async def record(self, context: Context, entry: AuditEntry) -> None:
        """Return when the record is committed. Raises what kept its transaction from it."""

        await self.run(_record, context, entry)

    async def run(
        self, work: Callable[[UnitOfWork[Any], Sequence[tuple[Context, T]]], Awaitable[Sequence[Answer]]], context: Context, what: T
    ) -> Answer:
        """What `work` answers to this, once it is committed. It is given all that is wanted of it in a transaction, answers each in its
        place, and may be run again, when it or a companion fails. Raises what it raises, or what kept its transaction from being
        committed. Who gives up waiting takes nothing back."""
        done: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Asked(work, (context, what), done))
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
            answered: list[tuple[_Asked, Any]] = []
            async with self.unit() as uow:
                for work in dict.fromkeys(one.work for one in taken):
                    some = [one for one in taken if one.work == work]
                    answered += zip(some, await work(uow, [one.wanted for one in some]), strict=True)
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
        for one, answer in answered:
            if not one.done.done():
                one.done.set_result(answer)


async def _record(uow: UnitOfWork[Any], wanted: Sequence[tuple[Context, AuditEntry]]) -> Sequence[None]:
    for uow.context, entry in wanted:
        uow.audit(entry)
    return [None] * len(wanted)
