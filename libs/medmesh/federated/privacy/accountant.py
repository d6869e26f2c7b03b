"""A Renyi accountant of the Gaussian mechanism, with and without Poisson sampling.

RDP of the Gaussian mechanism: Mironov, CSF 2017, proposition 7. Sampled: Mironov, Talwar and Zhang 2019 (arXiv 1908.10530), equation for
whole orders. From RDP to (epsilon, delta): Canonne, Kamath and Steinke 2020 (arXiv 2004.00010), proposition 12. Every order gives a valid
bound, so that fewer orders give a larger epsilon and never one that is too small.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

ORDERS: tuple[int, ...] = (*range(2, 65), 80, 96, 128, 192, 256, 512)


def rdp(rate: float, noise: float, order: int) -> float:
    """Renyi divergence of `order` of one step: `rate` is the probability with which a unit takes part, `noise` the standard deviation
    over the clipping norm. Infinite without noise. Raises `ValueError` outside 0 < rate <= 1, noise >= 0, order >= 2."""
    if not 0 < rate <= 1 or not noise >= 0 or order < 2:
        raise ValueError("0 < rate <= 1, noise >= 0, order >= 2")
    if noise == 0:
        return math.inf
    if rate == 1:
        return order / (2 * noise**2)
    terms = [
        math.lgamma(order + 1)
        - math.lgamma(k + 1)
        - math.lgamma(order - k + 1)
        + k * math.log(rate)
        + (order - k) * math.log1p(-rate)
        + (k * k - k) / (2 * noise**2)
        for k in range(order + 1)
    ]
    most = max(terms)
    return (most + math.log(math.fsum(math.exp(term - most) for term in terms))) / (order - 1)


def epsilon(rate: float, noise: float, steps: int, delta: float, orders: Sequence[int] = ORDERS) -> float:
    """What `steps` of the same mechanism spend at `delta`; 0 for no step. Raises `ValueError` as `rdp`, and outside 0 < delta < 1."""
    return composed([Part(rate, noise, steps)], delta, orders)


class Part(NamedTuple):
    """So many steps of one mechanism."""

    rate: float
    noise: float
    steps: int


def composed(parts: Iterable[Part], delta: float, orders: Sequence[int] = ORDERS) -> float:
    """What mechanisms spend together at `delta`, whatever their order and however each was chosen after the ones before: Renyi divergences
    add up, order by order (Mironov, CSF 2017, proposition 1). Raises `ValueError` as `epsilon`."""
    given = Counter[tuple[float, float]]()
    for part in parts:
        if part.steps < 0:
            raise ValueError("steps >= 0")
        given[part.rate, part.noise] += part.steps
    if not 0 < delta < 1:
        raise ValueError("0 < delta < 1")
    used = [(rate, noise, steps) for (rate, noise), steps in given.items() if steps]
    if not used:
        return 0.0
    bounds = [
        math.fsum(steps * rdp(rate, noise, order) for rate, noise, steps in used)
        + math.log1p(-1 / order)
        - (math.log(delta) + math.log(order)) / (order - 1)
        for order in orders
    ]
    return max(0.0, min(bounds))


def steps_within(rate: float, noise: float, budget: float, delta: float, limit: int) -> int:
    """The most steps, of at most `limit`, whose epsilon does not exceed `budget`."""
    low, high = 0, limit
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if epsilon(rate, noise, middle, delta) <= budget else (low, middle - 1)
    return low
