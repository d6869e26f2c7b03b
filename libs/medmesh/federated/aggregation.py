"""Aggregation as functions on streams of arrays: memory is one chunk of each party, whatever the model's size.

An algorithm is a plug-in of `begin / add / finish`. Parties are added in the order of their names and summed in float64,
so that a repeated aggregation gives the same bytes.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

from medmesh.errors import Problem
from medmesh.learning.weights import header

CHUNK_ELEMENTS = 1 << 19
_NUMPY: dict[str, Any] = {"F64": np.float64, "F32": np.float32, "F16": np.float16}


class Algorithm(Protocol):
    """One round's aggregation."""

    def begin(self, base: Path) -> None:
        """`base` is the model the round began with (safetensors)."""

    def add(self, party: str, update: Path, samples: int) -> None:
        """One party's trained model and on how many samples; parties come in the order of their names."""

    def finish(self, target: Path) -> None:
        """Write the new model, durably."""


@dataclass
class FedAvg:
    """The mean weighted by samples (McMahan et al. 2017, algorithm 1). Integer tensors are never averaged: they stay as in `base`."""

    _base: Path | None = None
    _parties: list[tuple[str, Path, int]] = field(default_factory=list)

    def begin(self, base: Path) -> None:
        """See `Algorithm`."""
        self._base, self._parties = base, []

    def add(self, party: str, update: Path, samples: int) -> None:
        """See `Algorithm`."""
        if self._parties and party <= self._parties[-1][0]:
            raise ValueError("parties are added once and in the order of their names")
        self._parties.append((party, update, samples))

    def finish(self, target: Path) -> None:
        """See `Algorithm`. Raises `Problem` (`weights.*`) naming nothing but tensors."""
        assert self._base is not None
        total = sum(samples for _, _, samples in self._parties)
        if total <= 0:
            raise ValueError("nobody was added")
        layout = header(self._base)
        with _Tensors(self._base) as base, target.open("wb") as out:
            out.write(_head(layout))
            for name in sorted(layout):
                if layout[name]["dtype"] in _NUMPY:
                    self._average(name, layout[name], total, out)
                else:
                    for piece in base.pieces(name, 1):
                        out.write(piece)
            out.flush()
            os.fsync(out.fileno())

    def _average(self, name: str, entry: dict[str, Any], total: int, out: BinaryIO) -> None:
        dtype = np.dtype(_NUMPY[entry["dtype"]])
        opened = [(_Tensors(path), samples) for _, path, samples in self._parties]
        try:
            streams = [(tensors.pieces(name, dtype.itemsize), samples) for tensors, samples in opened]
            count = int(np.prod(entry["shape"], dtype=np.int64)) if entry["shape"] else 1
            for start in range(0, count, CHUNK_ELEMENTS):
                sum_ = np.zeros(min(CHUNK_ELEMENTS, count - start), dtype=np.float64)
                for stream, samples in streams:
                    part = np.frombuffer(next(stream), dtype=dtype).astype(np.float64)
                    sum_ += part * samples
                mean = sum_ / total
                if not np.isfinite(mean).all():
                    raise Problem("weights.not_finite", tensor=name)
                out.write(mean.astype(dtype).tobytes())
        finally:
            for tensors, _ in opened:
                tensors.close()


ALGORITHMS: dict[str, type[FedAvg]] = {"fedavg": FedAvg}
"""Name in the plan to its implementation."""


def aggregate(algorithm: str, base: Path, updates: list[tuple[str, Path, int]], target: Path) -> None:
    """One round: (party, update, samples) in any order."""
    running = ALGORITHMS[algorithm]()
    running.begin(base)
    for party, path, samples in sorted(updates):
        running.add(party, path, samples)
    running.finish(target)


def _head(layout: dict[str, dict[str, Any]]) -> bytes:
    """A safetensors header for the same tensors in the order of their names."""
    entries, place = {}, 0
    for name in sorted(layout):
        begin, end = layout[name]["data_offsets"]
        entries[name] = {"dtype": layout[name]["dtype"], "shape": layout[name]["shape"], "data_offsets": [place, place + end - begin]}
        place += end - begin
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


class _Tensors:
    """A safetensors file read piece by piece."""

    def __init__(self, path: Path) -> None:
        self._layout = header(path)
        self._file = path.open("rb")
        self._start = 8 + int.from_bytes(self._file.read(8), "little")

    def __enter__(self) -> _Tensors:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def pieces(self, name: str, itemsize: int) -> Any:
        """The tensor's bytes, `CHUNK_ELEMENTS` elements at a time."""
        begin, end = self._layout[name]["data_offsets"]
        step = CHUNK_ELEMENTS * itemsize
        for place in range(begin, end, step):
            self._file.seek(self._start + place)
            yield self._file.read(min(step, end - place))
