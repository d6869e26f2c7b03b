"""What a node writes down of rounds: those that begin with what the ones before it left, by what it was told before."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, select
from tests.unit.edge.test_privacy import SETTINGS, opened
from tests.unit.federated.test_plan import plan

from medmesh.contracts.federation import Commitment, RoundChain, RoundKind, RoundOpened
from medmesh.contracts.message import ObjectRef
from medmesh.contracts.plan import plan_hash
from medmesh.errors import Problem
from medmesh.federated.chain import Left, after, extend, first, round_digest, round_seed
from medmesh_edge import chain
from medmesh_edge.ports import Site, site
from medmesh_edge.tables import chain as seen
from medmesh_edge.tables import committed

PLAN = plan(rounds=9)
BEGIN = first(PLAN, plan_hash(PLAN))


def told(number: int, previous: str, left: Left, *links: Commitment, **changed: Any) -> RoundOpened:
    values = {"base": ObjectRef(sha256=left.model, bytes=1), "committed": left.value, "links": links, "steps": PLAN.local_steps, **changed}
    made = opened(PLAN, number).model_copy(update={"seed": round_seed(PLAN, number), "previous": previous, **values})
    return made.model_copy(update={"chain": extend(previous, [round_digest(made)])})


def of(number: int, model: str) -> Commitment:
    return Commitment(round=number, kind=RoundKind.TRAIN, model=model * 64)


async def noted(node: Site, event: RoundOpened) -> bool:
    async with node.unit() as uow:
        await chain.note(uow, PLAN, event)
    async with node.unit() as uow:
        return await uow.first(select(seen).where(seen.c.round == event.round)) is not None


async def test_a_round_is_written_down_where_it_begins_with_what_was_left(private: Path) -> None:
    SETTINGS.save(private)
    async with site(private) as node:
        begun = told(1, plan_hash(PLAN), BEGIN)
        assert not await noted(node, told(1, plan_hash(PLAN), BEGIN, committed=None)), "a platform that tells no chain"
        assert await noted(node, begun)
        one, link = after(BEGIN, [of(1, "a")]), of(1, "a")
        previous = begun.chain or ""
        assert not await noted(node, told(2, previous, one)), "untold"
        assert not await noted(node, told(2, previous, one, link, base=ObjectRef(sha256="b" * 64, bytes=1)))
        two = told(2, previous, one, link)
        assert await noted(node, two)
        assert await noted(node, told(3, two.chain or "", one)), "a round that came to nothing leaves what was"


@pytest.mark.parametrize("model", ["a", "b"])
async def test_a_store_of_an_earlier_version_believes_one_chain_once(private: Path, model: str) -> None:
    SETTINGS.save(private)
    async with site(private) as node:
        begun = told(1, plan_hash(PLAN), BEGIN)
        assert await noted(node, begun)
        async with node.unit() as uow:
            await uow.execute(delete(committed))
        unknown = Left("5" * 64, "a" * 64)
        two = told(2, begun.chain or "", unknown, of(1, "a"))
        assert await noted(node, two)
        left = after(unknown, [of(2, "a")])
        three = told(3, two.chain or "", Left(left.value, model * 64), of(2, "a"))
        assert await noted(node, three) == (model == "a"), "from then on it folds"


async def test_a_history_that_another_round_overtook_is_looked_at_again(private: Path) -> None:
    """While the platform is asked what this hospital missed, it may tell it something else."""
    SETTINGS.save(private)
    async with site(private) as node:
        begun = told(1, plan_hash(PLAN), BEGIN)
        assert await noted(node, begun)
        one, link, previous = after(BEGIN, [of(1, "a")]), of(1, "a"), begun.chain or ""
        overtakes, shown = told(2, previous, one, link), told(2, previous, one, link, hospitals=("a", "b"))
        three = told(3, shown.chain or "", after(one, [of(2, "b")]), of(2, "b"))

        class Platform:
            async def ask(self, _: str, reply: type[RoundChain], **place: int) -> RoundChain:
                if place["round"] == 1:
                    assert await noted(node, overtakes)
                return reply(digests=(round_digest(shown),), links=((link,),), round=2, attempt=1, more=False)

        for code in ("request.failed", "federation.chain"):  # not now, and then that it is another history
            with pytest.raises(Problem) as caught:
                await chain.follow(node, Platform(), PLAN, three)  # type: ignore[arg-type]
            assert caught.value.code == code
        async with node.unit() as uow:
            assert [row.round for row in await uow.all(select(seen.c.round).order_by(seen.c.round))] == [1, 2]


class Shows:
    """A platform that answers whoever asks for the rounds after a place as `page` says, which is given the number of the question."""

    def __init__(self, page: Callable[[int, int], RoundChain]) -> None:
        self._page, self._numbers = page, count()
        self.asked = 0

    async def ask(self, _: str, reply: type[RoundChain], round: int, attempt: int) -> RoundChain:
        self.asked += 1
        await asyncio.sleep(0)  # as from a network: whoever gives it a time to end is heard
        return self._page(next(self._numbers), round)


def shown(place: tuple[int, int], *digests: str, more: bool = True) -> RoundChain:
    return RoundChain(digests=digests, round=place[0], attempt=place[1], more=more)


@pytest.mark.parametrize(
    ("page", "asked"),
    [
        (lambda n, round_: shown((round_, 0), "f" * 64), 1),  # does not advance
        (lambda n, round_: shown((2 - n, 1), "f" * 64), 2),  # goes back
        (lambda n, round_: shown((n + 1, 1)), 1),  # empty
        (lambda n, round_: shown((n + 1, 1), "f" * 64), 8),  # goes past the round itself
        (lambda n, round_: shown((1, n + 1), "f" * 64), chain.MOST_PAGES),  # an attempt more for ever
    ],
)
async def test_a_history_without_end_is_refused(private: Path, page: Callable[[int, int], RoundChain], asked: int) -> None:
    SETTINGS.save(private)
    async with site(private) as node:
        platform = Shows(page)
        with pytest.raises(Problem) as caught:
            async with asyncio.timeout(20):
                await chain.follow(node, platform, PLAN, told(8, "e" * 64, BEGIN))  # type: ignore[arg-type]
        assert (caught.value.code, platform.asked) == ("federation.chain", asked)
        async with node.unit() as uow:
            assert await uow.first(select(seen)) is None


async def test_a_thousand_rounds_that_were_missed_are_folded_in_page_by_page(private: Path) -> None:
    """Also where the page that leads here goes on with rounds that were opened since; and no page is kept."""
    SETTINGS.save(private)
    federation, alive = plan(rounds=1001), weakref.WeakSet[Commitment]()
    value, left, history = plan_hash(federation), first(federation, plan_hash(federation)), []
    for number in range(1, 1001):
        link = (of(number - 1, "a"),) if number > 1 else ()
        left, digest = after(left, link), f"{number:064x}"
        value = extend(value, [digest])
        history.append((digest, number - 1))
    left = after(left, [of(1000, "a")])
    most = 0

    def page(_: int, round_: int) -> RoundChain:
        nonlocal most
        gc.collect()
        most = max(most, len(alive))
        links = tuple((of(number, "a"),) if number else () for _, number in history[round_ : round_ + 150])
        alive.update(one for (one,) in filter(None, links))
        last, more = min(round_ + 150, 1000), round_ + 150 < 1000
        digests = [digest for digest, _ in history[round_ : round_ + 150]] + ([] if more else ["d" * 64])
        return RoundChain(digests=tuple(digests), links=links, round=last if more else 1002, attempt=1, more=more)

    async with site(private) as node:
        made = told(1001, value, left, of(1000, "a"), seed=round_seed(federation, 1001), plan_hash=plan_hash(federation))
        platform = Shows(page)
        await chain.follow(node, platform, federation, made)  # type: ignore[arg-type]
        assert platform.asked == 7
        assert most <= 150, "earlier pages are kept"
        async with node.unit() as uow:
            row = await uow.first(select(committed))
        assert (row.round, row.value) == (1001, left.value)
