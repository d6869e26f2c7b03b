"""Every round begins with the model that the rounds before it left, whatever is told in between."""

from __future__ import annotations

import pytest
from tests.unit.federated.test_ranges import PLAN, opened

from medmesh.contracts.federation import Commitment, RoundKind
from medmesh.contracts.message import ObjectRef
from medmesh.contracts.plan import plan_hash
from medmesh.federated.chain import Left, after, begins_with, first, link, undone_link

TRAIN = RoundKind.TRAIN
A, B, C = "a" * 64, "b" * 64, "c" * 64


def left(*links: Commitment, before: Left | None = None) -> Left:
    return after(before or first(PLAN, plan_hash(PLAN)), links)


def test_the_value_is_that_of_the_links_one_after_the_other() -> None:
    one = left(Commitment(round=1, kind=TRAIN, model=A, state=C))
    assert one == Left(link(plan_hash(PLAN), 1, TRAIN, A, C), A, C)
    two = left(Commitment(round=2, kind=TRAIN, model=B), Commitment(round=1, kind=None, model=A, approval="x"), before=one)
    assert two == Left(undone_link(link(one.value, 2, TRAIN, B), 1, A, "x"), A, None)
    assert left(before=two) == two, "a round that came to nothing leaves what was"


def test_a_round_leaves_one_model() -> None:
    with pytest.raises(ValueError, match="one model"):
        left(Commitment(round=1, kind=TRAIN, model=A), Commitment(round=1, kind=TRAIN, model=B))


def test_a_round_begins_with_it_or_is_none() -> None:
    known = left(Commitment(round=1, kind=TRAIN, model=A, state=C))
    right = opened().model_copy(update={"base": ObjectRef(sha256=A, bytes=1), "committed": known.value})
    assert begins_with(right, known)
    wrong = {
        "another model": {"base": ObjectRef(sha256=B, bytes=1)},
        "another chain": {"committed": link(plan_hash(PLAN), 1, TRAIN, B, C)},
        "no chain": {"committed": None},
        "another state": {"state": ObjectRef(sha256=B, bytes=1)},
    }
    for what, values in wrong.items():
        assert not begins_with(right.model_copy(update=values), known), what
    alone = right.model_copy(update={"kind": RoundKind.BASELINE, "base": ObjectRef(sha256=PLAN.initial, bytes=1)})
    assert begins_with(alone, known), "what hospitals train alone begins with the first weights"
    assert not begins_with(alone.model_copy(update={"kind": RoundKind.EVALUATE}), known)
