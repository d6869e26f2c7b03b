"""The small-cell rule: what a hospital tells of counts so that no single patient can be read from them, nor from two of them.

Every cell is told as a multiple of `smallest`, rounded up or down at random so that it is right on average: Statistics New Zealand's
fixed random rounding (Microdata Output Guide, 2020), here to any base. The chance is drawn from a key of the hospital's own and the very
samples in the cell (the cell-key method of Fraser and Wooton, UNECE/Eurostat work session, 2005): asking again answers the same, and two
evaluations that differ by one sample are rounded independently, so that subtracting them tells little. `cohort` sees to it that who is
counted changes only by `smallest` samples at once.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence, Set

import numpy as np


def cohort(before: Set[str], now: Set[str], smallest: int, key: bytes) -> frozenset[str]:
    """Whom to count of one class, who counted `before` and has `now`: newcomers wait until they are `smallest`; whoever left (a patient
    forgotten) takes others along, so that nobody leaves alone. Below `smallest` nobody is counted."""
    staying, new = before & now, now - before
    left = len(before) - len(staying)
    if 0 < left < smallest:
        staying = frozenset(sorted(staying, key=lambda item: _draw(key, [item]))[smallest - left :])
    counted = staying | new if len(new) >= smallest else staying
    return frozenset(counted) if len(counted) >= smallest else frozenset()


def told(
    truth: np.ndarray, predicted: np.ndarray, items: Sequence[str], *, classes: int, smallest: int = 0, key: bytes = b""
) -> list[list[int]]:
    """`counts[true][predicted]` as they may leave. `truth` and `predicted` are int64 [samples] below `classes`, `items` the samples' names.
    With `smallest` below 2 they are exact."""
    counts = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(counts, (truth, predicted), 1)
    if smallest < 2:
        found: list[list[int]] = counts.tolist()
        return found
    names = np.asarray(items, dtype=object)
    return [
        [
            (int(counts[a, b]) + _draw(key, sorted(names[(truth == a) & (predicted == b)])) % smallest) // smallest * smallest
            for b in range(classes)
        ]
        for a in range(classes)
    ]


def _draw(key: bytes, items: Sequence[str]) -> int:
    return int.from_bytes(hmac.digest(key, "\n".join(items).encode(), hashlib.sha256)[:8], "big")
