"""What may change between rounds is what was signed, and what does change is in the chain of rounds."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from pydantic import ValidationError
from tests.unit.federated.test_plan import plan

from medmesh.canonical import digest
from medmesh.contracts.federation import RoundKind, RoundOpened
from medmesh.contracts.message import ObjectRef
from medmesh.contracts.plan import changed, plan_hash
from medmesh.contracts.privacy import Privacy
from medmesh.errors import Problem
from medmesh.federated.chain import agreed, round_digest, round_seed
from medmesh.federated.plan import explain

RANGES = {"learning_rate": {"low": "0.01", "high": "0.1"}, "local_steps": {"low": "1", "high": "10"}}
PLAN = plan(ranges=RANGES)


def opened(number: int = 2, steps: int = 5, kind: RoundKind = RoundKind.TRAIN, **values: str) -> RoundOpened:
    return RoundOpened(
        federation="f",
        round=number,
        attempt=1,
        kind=kind,
        plan_hash=plan_hash(PLAN),
        base=ObjectRef(sha256=PLAN.initial, bytes=1),
        steps=steps,
        seed=round_seed(PLAN, number),
        deadline=datetime.now(UTC),
        hospitals=("a", "b"),
        changed=values,
    )


def refused(event: RoundOpened) -> str:
    with pytest.raises(Problem) as caught:
        agreed(PLAN, event)
    assert caught.value.code == "federation.round"
    return str(caught.value.params["what"])


def test_a_round_may_change_what_the_plan_lets_it_and_so_far() -> None:
    assert agreed(PLAN, opened()) == PLAN
    found = agreed(PLAN, opened(steps=10, learning_rate="0.01", local_steps="10"))
    assert (found.learning_rate, found.local_steps, found.batch_size) == ("0.01", 10, PLAN.batch_size)


@pytest.mark.parametrize(
    "values",
    [
        {"learning_rate": "0.11"},
        {"learning_rate": "0.0099"},
        {"learning_rate": "NaN"},
        {"learning_rate": "much"},
        {"local_steps": "11"},
        {"local_steps": "1.5"},
        {"batch_size": "8"},
        {"rounds": "3"},
        {"codec": "none"},
    ],
)
def test_what_is_outside_is_refused(values: dict[str, str]) -> None:
    assert refused(opened(**values)) == "changed"


def test_the_steps_of_a_round_are_those_it_says_to_have_changed() -> None:
    assert refused(opened(steps=6)) == "steps"
    assert refused(opened(steps=5, local_steps="6")) == "steps"
    assert refused(opened(number=4, steps=15, kind=RoundKind.BASELINE, learning_rate="0.05")) == "changed", "training rounds only"


def test_the_chain_says_what_changed_and_says_nothing_where_nothing_did() -> None:
    digests = {round_digest(opened()), round_digest(opened(learning_rate="0.05")), round_digest(opened(learning_rate="0.06"))}
    assert len(digests) == 3
    event = opened()
    names = ("federation", "round", "attempt", "steps", "seed", "clip")
    first = {name: getattr(event, name) for name in names} | {"kind": "train", "plan": event.plan_hash, "base": event.base.sha256}
    # As nodes of before compute it.
    assert round_digest(event) == digest({**first, "models": [], "state": "", "hospitals": ["a", "b"]})


def test_ranges_are_part_of_what_is_signed_and_explained() -> None:
    assert plan_hash(PLAN) != plan_hash(plan())
    assert "learning rate 0.01–0.1" in " ".join(explain(PLAN))
    assert "每轮步数 1–10" in " ".join(explain(PLAN, "zh"))


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"learning_rate": {"low": "0.2", "high": "0.3"}}, "outside its own range"),
        ({"learning_rate": {"low": "0.3", "high": "0.2"}}, "backwards"),
        ({"learning_rate": {"low": "0", "high": "0.2"}}, "0 < ranges"),
        ({"rounds": {"low": "1", "high": "9"}}, "learning_rate"),
    ],
)
def test_ranges_that_make_no_sense_are_refused(values: dict[str, dict[str, str]], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        plan(ranges=values)


def test_an_account_of_privacy_holds_for_what_the_plan_says() -> None:
    privacy = Privacy(unit="patient", epsilon="8", delta="0.00001", clip="1", noise="2", rate="0.1")
    with pytest.raises(ValidationError, match=r"plan\.range_privacy"):
        plan(ranges=RANGES, privacy=privacy)
    with pytest.raises(ValueError, match="learning_rate"):
        changed(plan(), {"learning_rate": "0.1"})
