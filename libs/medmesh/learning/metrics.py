"""What counts tell: balanced accuracy with an interval, from confusion matrices alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

Counts = Sequence[Sequence[int]]


def add(matrices: Iterable[Counts]) -> np.ndarray:
    """The sum of confusion matrices [true][predicted]."""
    return np.sum([np.asarray(matrix, dtype=np.int64) for matrix in matrices], axis=0)


def balanced_accuracy(counts: Counts | np.ndarray) -> float:
    """Mean recall over the classes that occur."""
    matrix = np.asarray(counts, dtype=np.float64)
    totals = matrix.sum(axis=1)
    seen = totals > 0
    return float((np.diag(matrix)[seen] / totals[seen]).mean()) if seen.any() else 0.0


def interval(counts: Counts | np.ndarray, *, draws: int = 4000, seed: int = 0) -> tuple[float, float]:
    """95 % interval of balanced accuracy: each class's recall drawn from its Jeffreys posterior (Brown, Cai, DasGupta 2001)."""
    matrix = np.asarray(counts, dtype=np.float64)
    totals, hits = matrix.sum(axis=1), np.diag(matrix)
    generator = np.random.default_rng(seed)
    recalls = [generator.beta(hit + 0.5, total - hit + 0.5, draws) for hit, total in zip(hits, totals, strict=True) if total > 0]
    if not recalls:
        return 0.0, 1.0
    low, high = np.quantile(np.mean(recalls, axis=0), [0.025, 0.975])
    # Where every sample is right (or none), the interval of Brown et al. ends at the estimate itself.
    estimate = balanced_accuracy(matrix)
    return min(float(low), estimate), max(float(high), estimate)
