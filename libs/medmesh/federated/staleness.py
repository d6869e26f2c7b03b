"""Updates that come rounds late: what they say is taken over to the present model, and weighs less."""

from __future__ import annotations

from pathlib import Path

from medmesh.contracts.plan import SemiAsynchrony
from medmesh.federated.streams import FLOATS, Reader, Writer, elements, pieces

SCALE = 1000
"""Weights are whole numbers: so many for a sample that is not late."""


def weight(samples: int, late: int, pace: SemiAsynchrony) -> int:
    """Of an update on `samples` that comes `late` rounds after its own: samples * (1 + late) ^ -decay, in thousandths, at least one of
    them (Xie et al. 2019, arXiv:1903.03934, polynomial staleness)."""
    return max(1, round(samples * SCALE * (1 + late) ** -float(pace.decay)))


def carried(update: Path, before: Path, now: Path, target: Path) -> Path:
    """The model `now` changed by what training changed in `before`: now + (update - before), in float64, a piece at a time. Tensors of
    other numbers as they are in `update`. Raises `Problem` (`weights.not_finite`)."""
    with Reader(update) as trained, Reader(before) as old, Reader(now) as new:
        signature = trained.signature()
        with Writer(target, signature) as out:
            for name, tensor in signature.items():
                if tensor.dtype not in FLOATS:
                    out.copy(trained, name)
                    continue
                for start, count in pieces(elements(tensor)):
                    out.put(name, start, new.read(name, start, count) + (trained.read(name, start, count) - old.read(name, start, count)))
    return target
