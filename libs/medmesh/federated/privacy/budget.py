"""What a plan's privacy spends: a pure function of the plan and of how many attempts at training rounds were begun.

An attempt counts from the moment it is begun, whatever becomes of it: what was spent is written before anything can be released.
"""

from __future__ import annotations

import math
from functools import lru_cache

from medmesh.contracts.plan import Plan
from medmesh.contracts.privacy import Privacy
from medmesh.federated.privacy.accountant import Part, composed

COUNT_NOISE = 2.0
"""With an adaptive norm the number of updates within it is released, too: noised by this times `noise`, standard deviation of a sum of
numbers that are -1/2 or 1/2."""


def multiplier(privacy: Privacy) -> float:
    """The noise of the sum of updates over the clipping norm. Where the count is released beside it, both together spend as much as
    `noise` alone would (Andrew et al. 2021, theorem 1): 3.3 % more noise than without."""
    noise = float(privacy.noise)
    return noise / math.sqrt(1 - 1 / (2 * COUNT_NOISE) ** 2) if privacy.adaptive else noise


def spent(plan: Plan, attempts: int) -> float:
    """Epsilon after so many attempts at training rounds, at the plan's delta; 0 without privacy in the plan."""
    return 0.0 if plan.privacy is None else together((part(plan, attempts),), float(plan.privacy.delta))


def part(plan: Plan, attempts: int) -> Part:
    """What so many attempts at training rounds put into the account of whose contribution the plan hides."""
    assert plan.privacy is not None
    steps = attempts * (plan.local_steps if plan.privacy.unit == "patient" else 1)
    return Part(float(plan.privacy.rate), float(plan.privacy.noise), steps)


def affordable(plan: Plan, attempts: int) -> bool:
    """Whether so many attempts stay within the budget."""
    return plan.privacy is None or spent(plan, attempts) <= float(plan.privacy.epsilon)


def rounds_within(plan: Plan) -> int:
    """How many of the plan's rounds fit into the budget when no attempt fails."""
    low, high = 0, plan.rounds
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if affordable(plan, middle) else (low, middle - 1)
    return low


@lru_cache(maxsize=1024)
def together(parts: tuple[Part, ...], delta: float) -> float:
    """Epsilon at `delta` of what several plans put into one account."""
    return composed(parts, delta)
