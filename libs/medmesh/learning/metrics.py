"""What counts tell: balanced accuracy with an interval, from confusion matrices alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

Counts = Sequence[Sequence[int]]
Tables = Counts | Sequence[Counts] | np.ndarray
Steps = Sequence[Sequence[int]]
"""Of each table, to which multiple it was rounded (0 or 1: not at all), by each of those who are in it."""


def add(matrices: Iterable[Counts]) -> np.ndarray:
    """The sum of confusion matrices [true][predicted]."""
    return np.sum([np.asarray(matrix, dtype=np.int64) for matrix in matrices], axis=0)


def balanced_accuracy(counts: Counts | np.ndarray) -> float:
    """Mean recall over the classes that occur; `missing` says of how many it is silent."""
    matrix = np.asarray(counts, dtype=np.float64)
    totals = matrix.sum(axis=1)
    seen = totals > 0
    return float((np.diag(matrix)[seen] / totals[seen]).mean()) if seen.any() else 0.0


def missing(counts: Counts | np.ndarray) -> int:
    """How many classes have no sample. Where there are some, balanced accuracy is of the others alone: a model that always answers one of
    those may reach 1, and the number is comparable with none over all classes."""
    return int((np.asarray(counts).sum(axis=1) == 0).sum())


def _draws(counts: Tables, draws: int, seed: int, steps: Steps) -> np.ndarray:
    """[draws] of balanced accuracy as the counts leave it possible; empty where no class occurs."""
    generator = np.random.default_rng(seed)
    tables = np.asarray(counts, dtype=np.float64)
    tables = tables[None] if tables.ndim == 2 else tables
    matrix = np.broadcast_to(tables.sum(axis=0), (draws, *tables.shape[1:]))
    if any(step > 1 for each in steps for step in each):
        # What was rounded at random lies within one step of what is told, nearer more likely; each table was rounded by itself, and of
        # a sum each party's.
        matrix = np.zeros(matrix.shape)
        for table, each in zip(tables, steps, strict=True):
            off = np.zeros(matrix.shape)
            for step in (step for step in each if step > 1):
                off += step * (generator.random(matrix.shape) - generator.random(matrix.shape))
            matrix += np.where(table > 0, table + off, np.where(table.sum(axis=1, keepdims=True) > 0, np.abs(off), 0))
    seen = tables.sum(axis=(0, 2)) > 0
    hits, totals = np.diagonal(matrix, axis1=1, axis2=2)[:, seen], matrix.sum(axis=2)[:, seen]
    recalls = generator.beta(hits + 0.5, np.maximum(totals - hits, 0) + 0.5)
    return np.asarray(recalls.mean(axis=1)) if seen.any() else np.empty(0)


def interval(counts: Tables, *, draws: int = 4000, seed: int = 0, steps: Steps = ()) -> tuple[float, float]:
    """95 % interval of balanced accuracy: each class's recall drawn from its Jeffreys posterior (Brown, Cai, DasGupta 2001). `counts` is
    one table [true][predicted] or several that count together; `steps` tells of each table to which multiple it was rounded at random, or,
    of a sum, each of those it is the sum of."""
    found = _draws(counts, draws, seed, steps)
    if not len(found):
        return 0.0, 1.0
    low, high = np.quantile(found, [0.025, 0.975])
    # Where every sample is right (or none), the interval of Brown et al. ends at the estimate itself.
    tables = np.asarray(counts)
    estimate = balanced_accuracy(tables if tables.ndim == 2 else tables.sum(axis=0))
    return min(float(low), estimate), max(float(high), estimate)


def difference(one: Tables, other: Tables, *, draws: int = 4000, steps: Steps = ()) -> tuple[float, float]:
    """95 % interval of `one`'s balanced accuracy minus `other`'s, as if they had been counted on different samples."""
    a, b = _draws(one, draws, 0, steps), _draws(other, draws, 1, steps)
    if not len(a) or not len(b):
        return -1.0, 1.0
    low, high = np.quantile(a - b, [0.025, 0.975])
    return float(low), float(high)
