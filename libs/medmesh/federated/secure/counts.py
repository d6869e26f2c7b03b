"""Evaluations in a secure sum: tables of counts as whole numbers behind those of the model, in the same vector and under the same masks.

One sum a round stays one sum: what hospitals counted is opened with their updates or not at all, and over as many of them. Of a training
round that evaluates, the numbers are the counts of the model it began with and the loss of its training; of an evaluation round, which has
no update, the counts of every model in their order, last those of hospitals' own models where the algorithm makes such.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from medmesh.contracts.federation.common import RoundKind
from medmesh.contracts.plan import Plan
from medmesh.errors import Problem
from medmesh.federated.plan import evaluates

Table = list[list[int]]


@dataclass(frozen=True, slots=True)
class Summed:
    """Over all hospitals in a sum: `tables[...][true][predicted]`, and the mean loss of a training weighted by samples."""

    tables: tuple[Table, ...]
    loss: float | None = None


def tables(plan: Plan, kind: RoundKind, number: int, models: int) -> int:
    """How many tables the vector of a round carries; `models` are those that an evaluation round names."""
    from medmesh.federated.aggregation import makes_own

    if kind is RoundKind.EVALUATE:
        return models + makes_own(plan)
    return int(evaluates(plan, number))


def width(plan: Plan, kind: RoundKind, number: int, models: int) -> int:
    """How many numbers that makes."""
    count = tables(plan, kind, number, models)
    return count * len(plan.data.classes) ** 2 + (1 if count and kind is RoundKind.TRAIN else 0)


def numbers(told: Sequence[Table], *, loss: float | None = None, samples: int = 1, bits: int) -> list[int]:
    """One hospital's: its tables, then its loss x samples in fixed point. Raises `Problem` (`secure.range`) for a loss that is none."""
    cells = list(chain.from_iterable(chain.from_iterable(told)))
    if loss is None:
        return cells
    if not math.isfinite(scaled := loss * samples * 2.0**bits):
        raise Problem("secure.range", tensor="loss")
    return [*cells, round(scaled)]


def summed(plan: Plan, kind: RoundKind, found: Sequence[int], samples: int) -> Summed:
    """What the numbers of an opened sum say. Raises `Problem` (`secure.sum`) for counts that nobody's samples made."""
    assert plan.secure is not None
    classes = len(plan.data.classes)
    cells, loss = (found[:-1], found[-1]) if kind is RoundKind.TRAIN else (found, None)
    if any(cell < 0 for cell in cells):
        raise Problem("secure.sum")
    lines = [list(cells[at : at + classes]) for at in range(0, len(cells), classes)]
    made = tuple(lines[at : at + classes] for at in range(0, len(lines), classes))
    return Summed(made, None if loss is None else loss * 2.0**-plan.secure.bits / samples)
