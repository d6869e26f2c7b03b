"""Noise on a whole model, a piece at a time."""

from __future__ import annotations

from pathlib import Path

from medmesh.federated.streams import FLOATS, Reader, Writer, elements, pieces
from medmesh.learning.noise import Draw, normal

__all__ = ["Draw", "add", "normal"]


def add(source: Path, target: Path, deviation: float, *, without: frozenset[str] = frozenset(), draw: Draw = normal) -> None:
    """Write a model with noise of this standard deviation on every float number, but for the tensors `without`, a piece at a time."""
    with Reader(source) as file, Writer(target, file.signature()) as out:
        for name, tensor in file.signature().items():
            if tensor.dtype not in FLOATS or name in without:
                out.copy(file, name)
                continue
            for start, count in pieces(elements(tensor)):
                out.put(name, start, file.read(name, start, count) + deviation * draw(count))
