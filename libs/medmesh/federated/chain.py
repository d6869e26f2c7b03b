"""How rounds follow each other, from the plan on: each names the one before it, so that who saw one knows whether the next continues it.

There are two chains. One is of rounds as they were opened; the other of what they left, so that each begins with the model that the one
before it committed.

The value after the plan is the plan's hash. A round's is SHA-256 over the value before and the digest of the round as it was opened. Who
missed rounds is shown their digests and folds them in: no other history has the same value.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from medmesh.canonical import digest
from medmesh.contracts.federation import Commitment, RoundKind, RoundOpened
from medmesh.contracts.plan import Plan, changed
from medmesh.errors import Problem
from medmesh.memo import by_identity


@by_identity()
def round_digest(event: RoundOpened) -> str:
    """SHA-256 of everything in a round that holds for every hospital: not its deadline, which may be extended, nor what is told to one."""
    # What a round has none of it does not mention, as rounds did before there was such a thing.
    beside: dict[str, Any] = {"changed": event.changed} if event.changed else {}
    beside |= {"undoing": event.undoing.model_dump()} if event.undoing else {}
    return digest(
        {
            **beside,
            "federation": event.federation,
            "round": event.round,
            "attempt": event.attempt,
            "kind": event.kind.value,
            "plan": event.plan_hash,
            "base": event.base.sha256,
            "models": [[model.name, model.weights.sha256] for model in event.models],
            "state": event.state.sha256 if event.state else "",
            "steps": event.steps,
            "seed": event.seed,
            "clip": event.clip,
            "hospitals": sorted(event.everybody),
        }
    )


def extend(value: str, digests: Iterable[str]) -> str:
    """The value after these rounds."""
    for one in digests:
        value = hashlib.sha256(f"medmesh-round-v1\n{value}\n{one}\n".encode()).hexdigest()
    return value


@dataclass(frozen=True, slots=True)
class Left:
    """What the rounds so far left: the chain's value, the model (SHA-256) that the next round begins with, and what the algorithm
    remembers, where it remembers anything."""

    value: str
    model: str
    state: str | None = None


def first(plan: Plan, plan_hash: str) -> Left:
    """Before any round."""
    return Left(plan_hash, plan.initial)


def after(left: Left, links: Iterable[Commitment]) -> Left:
    """Folded in. Raises `ValueError` where one round would have left two models."""
    rounds = 0
    for one in links:
        if one.kind is None:
            left = Left(undone_link(left.value, one.round, one.model, one.approval), one.model, one.state)
            continue
        rounds += 1
        if rounds > 1:
            raise ValueError("a round leaves one model")
        left = Left(link(left.value, one.round, one.kind, one.model, one.state), one.model, one.state)
    return left


def link(chain: str, number: int, kind: RoundKind, model: str, state: str | None = None) -> str:
    """The next link: rounds chain from the plan's hash, so that a model proves the rounds that made it."""
    return _link(chain, number, kind, model, *([state] if state else []))


def undone_link(chain: str, number: int, model: str, approval: str) -> str:
    """The next link where a federation goes back to the model of round `number`: what a final model proves says so."""
    return _link(chain, "rollback", number, model, approval)


def _link(*lines: object) -> str:
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()


def begins_with(event: RoundOpened, left: Left) -> bool:
    """Whether a round begins with what the rounds before it left. What hospitals train alone begins with the plan's first weights."""
    model = event.kind is RoundKind.BASELINE or event.base.sha256 == left.model
    state = event.kind is not RoundKind.TRAIN or event.state is None or event.state.sha256 == left.state
    return event.committed == left.value and model and state


def round_seed(plan: Plan, number: int) -> int:
    """The seed of a round; a repeated attempt has the same."""
    return (plan.seed * 1_000_003 + number) % 2**53


def agreed(plan: Plan, event: RoundOpened) -> Plan:
    """The plan as it is for this round, which may change within the ranges that were signed. Raises a `Problem` (`federation.round`) when a
    round asks for anything but what the plan says: another number of steps (one step is a gradient of one batch), other weights to begin
    with, another seed, one round more."""
    try:
        if event.changed and event.kind is not RoundKind.TRAIN:
            raise ValueError
        plan = changed(plan, event.changed) if event.changed else plan
    except ValueError:
        raise Problem("federation.round", federation=event.federation, round=event.round, what="changed") from None
    first = event.kind is RoundKind.TRAIN and event.round == 1
    wanted = {
        "round": event.kind is not RoundKind.TRAIN or 1 <= event.round <= plan.rounds,
        "steps": event.steps == plan.local_steps * (plan.rounds if event.kind is RoundKind.BASELINE else 1),
        "seed": event.seed == round_seed(plan, event.round),
        "base": not (first or event.kind is RoundKind.BASELINE) or event.base.sha256 == plan.initial,
        "baseline": event.kind is not RoundKind.BASELINE or (plan.baseline and not plan.local),
    }
    for name, holds in wanted.items():
        if not holds:
            raise Problem("federation.round", federation=event.federation, round=event.round, what=name)
    return plan
