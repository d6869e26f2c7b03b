"""What a node writes down of rounds: those that begin with what the ones before it left, by what it was told before."""

from __future__ import annotations

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
