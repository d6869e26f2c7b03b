"""Work that gathers: who waits has theirs committed, few transactions take many, and what fails is said to all it befell."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from tests.store import example_memory

from medmesh.service.gathering import Gathering
from medmesh.store.database import Database
from medmesh.store.unit import AuditEntry, Context, UnitOfWork


class Counted:
    """Units of a database, counted; with `fails` none of them commits."""

    def __init__(self, database: Database) -> None:
        self.database, self.units, self.fails = database, 0, False

    @asynccontextmanager
    async def unit(self) -> AsyncIterator[UnitOfWork[Any]]:
        self.units += 1
        async with self.database.unit(Context("example")) as uow:
            yield uow
            if self.fails:
                raise ConnectionError


async def test_records_that_come_together_share_transactions() -> None:
    async with example_memory() as database:
        counted = Counted(database)
        gathering = Gathering(counted.unit)
        await asyncio.gather(*(gathering.record(Context("example"), AuditEntry(f"thing.{n}", "R")) for n in range(50)))
        kept = [body.decode().split()[1] for _, _, body in await database.unreceipted()]
        assert kept == [f"thing.{n}" for n in range(50)]
        assert counted.units <= 2


async def test_who_gives_up_takes_no_record_of_another_with_it() -> None:
    async with example_memory() as database:
        gathering = Gathering(Counted(database).unit)
        first, second = (asyncio.create_task(gathering.record(Context("example"), AuditEntry(f"thing.{n}", "R"))) for n in "ab")
        await asyncio.sleep(0)
        first.cancel()
        await second
        assert b"thing.b" in b" ".join(body for _, _, body in await database.unreceipted())


async def test_a_transaction_that_fails_is_told_to_everybody_and_the_next_is_tried() -> None:
    async with example_memory() as database:
        counted = Counted(database)
        counted.fails = True
        gathering = Gathering(counted.unit)
        told = await asyncio.gather(
            *(gathering.record(Context("example"), AuditEntry("thing.read", "R")) for _ in range(3)), return_exceptions=True
        )
        assert [type(one) for one in told] == [ConnectionError] * 3
        assert await database.unreceipted() == []
        counted.fails = False
        await gathering.record(Context("example"), AuditEntry("thing.read", "R"))
        assert len(await database.unreceipted()) == 1


async def test_work_that_fails_leaves_nothing_and_takes_nobody_with_it() -> None:
    async with example_memory() as database:
        gathering = Gathering(Counted(database).unit)

        async def work(uow: UnitOfWork[Any], wanted: Sequence[tuple[Context, int]]) -> list[int]:
            for _, n in wanted:
                uow.audit(AuditEntry(f"thing.{n}", "R"))
                if n == 2:
                    raise ValueError("mine")
            return [10 * n for _, n in wanted]

        told = await asyncio.gather(*(gathering.run(work, Context("example"), n) for n in range(5)), return_exceptions=True)
        assert [repr(one) if isinstance(one, Exception) else one for one in told] == [0, 10, "ValueError('mine')", 30, 40]
        kept = [body.decode().split()[1] for _, _, body in await database.unreceipted()]
        assert kept == ["thing.0", "thing.1", "thing.3", "thing.4"]


async def test_each_work_is_done_once_for_all_who_want_it_and_answers_each() -> None:
    async with example_memory() as database:
        gathering = Gathering(Counted(database).unit)
        given = []

        async def who(_uow: UnitOfWork[Any], wanted: Sequence[tuple[Context, str]]) -> list[str]:
            given.append(wanted)
            return [context.service + what for context, what in wanted]

        async def count(_uow: UnitOfWork[Any], wanted: Sequence[tuple[Context, str]]) -> list[int]:
            return [len(wanted)] * len(wanted)

        each = [gathering.run(work, Context(name), name.upper()) for name in "abc" for work in (who, count)]
        assert await asyncio.gather(*each) == ["aA", 3, "bB", 3, "cC", 3]
        assert [len(wanted) for wanted in given] == [3]
