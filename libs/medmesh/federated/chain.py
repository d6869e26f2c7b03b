"""How rounds follow each other, from the plan on: each names the one before it, so that who saw one knows whether the next continues it.

The value after the plan is the plan's hash. A round's is SHA-256 over the value before and the digest of the round as it was opened. Who
missed rounds is shown their digests and folds them in: no other history has the same value.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from medmesh.canonical import digest
from medmesh.contracts.federation import RoundKind, RoundOpened
from medmesh.contracts.plan import Plan
from medmesh.errors import Problem


def round_digest(event: RoundOpened) -> str:
    """SHA-256 of everything in a round that holds for every hospital: not its deadline, which may be extended, nor what is told to one."""
    undoing = {"undoing": event.undoing.model_dump()} if event.undoing else {}  # else as it was before there was such a thing
    return digest(
        {
            **undoing,
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


def round_seed(plan: Plan, number: int) -> int:
    """The seed of a round; a repeated attempt has the same."""
    return (plan.seed * 1_000_003 + number) % 2**53


def check_agreed(plan: Plan, event: RoundOpened) -> None:
    """Raise a `Problem` (`federation.round`) when a round asks for anything but what the plan says: another number of steps (one step is
    a gradient of one batch), other weights to begin with, another seed, one round more."""
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
