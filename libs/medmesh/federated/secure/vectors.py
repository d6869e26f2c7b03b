"""The numbers of a secure sum: a model and its samples as int64 in fixed point, masked and added modulo 2^64, chunk by chunk.

A vector is one tensor `secure.sum` of shape [1 + numbers]: first the samples, then samples x value x 2^bits of every float tensor in
the order of their names. The sum of vectors gives the mean weighted by samples, and shows neither a model nor how many samples made it.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from medmesh.contracts.plan import TensorSignature
from medmesh.errors import Problem
from medmesh.learning.weights import header

CHUNK = 1 << 19
TENSOR = "secure.sum"
_FLOATS: dict[str, Any] = {"F64": np.float64, "F32": np.float32, "F16": np.float16}
_ZEROS = bytes(8 * CHUNK)


@dataclass(frozen=True, slots=True)
class Mask:
    """A pseudorandom vector that is added (`sign` 1) or taken away (-1): AES-256-CTR over zeros under a key that is used once."""

    key: bytes
    sign: int

    def stream(self) -> _Stream:
        """From its beginning."""
        return _Stream(self)


class _Stream:
    def __init__(self, mask: Mask) -> None:
        self._cipher, self._sign = Cipher(algorithms.AES(mask.key), modes.CTR(bytes(16))).encryptor(), mask.sign

    def apply(self, vector: np.ndarray) -> None:
        """Add the next numbers to `vector` (uint64, in place)."""
        numbers = np.frombuffer(self._cipher.update(memoryview(_ZEROS)[: 8 * vector.size]), "<u8")
        if self._sign > 0:
            np.add(vector, numbers, out=vector)
        else:
            np.subtract(vector, numbers, out=vector)


def signature(tensors: Iterable[TensorSignature]) -> tuple[TensorSignature, ...]:
    """What a hospital sends in place of the float tensors among `tensors`."""
    count = sum(math.prod(tensor.shape) for tensor in tensors if tensor.dtype in _FLOATS)
    return (TensorSignature(name=TENSOR, shape=(1 + count,), dtype="I64"),)


def encode(
    model: Path, samples: int, target: Path, *, bits: int, parties: int, masks: Sequence[Mask] = (), without: frozenset[str] = frozenset()
) -> None:
    """Write the vector of a model that was trained on `samples`, masked. Raises `Problem` (`secure.range`) naming the first tensor with
    a number that is not finite, or so large that the sum over `parties` might not fit; then nothing is left of `target`."""
    if not 0 < samples <= (2**63 - 1) // parties:
        raise Problem("secure.range", tensor="samples")
    streams = [mask.stream() for mask in masks]
    try:
        with target.open("wb") as out:
            out.write(_head(1 + _count(header(model), without)))
            for chunk in _chunks(_numbers(model, samples, bits, parties, without)):
                for stream in streams:
                    stream.apply(chunk)
                out.write(chunk.astype("<u8").tobytes())
            out.flush()
            os.fsync(out.fileno())
    except Problem:
        target.unlink(missing_ok=True)
        raise


def add(vectors: Sequence[Path], target: Path, *, masks: Sequence[Mask] = ()) -> None:
    """Write the sum modulo 2^64 of vectors, with `masks` on top. Raises `Problem` (`weights.signature`) when one is of another length."""
    sizes = {_length(path) for path in vectors}
    if len(sizes) != 1:
        raise Problem("weights.signature", tensor=TENSOR, found="another length", agreed="the same for all")
    streams, count = [mask.stream() for mask in masks], sizes.pop()
    with ExitStack() as stack, target.open("wb") as out:
        files = [stack.enter_context(path.open("rb")) for path in vectors]
        for file in files:
            file.seek(8 + int.from_bytes(file.read(8), "little"))
        out.write(_head(count))
        for start in range(0, count, CHUNK):
            size = min(CHUNK, count - start)
            total = np.zeros(size, np.uint64)
            for file in files:
                total += np.frombuffer(file.read(8 * size), "<u8")
            for stream in streams:
                stream.apply(total)
            out.write(total.astype("<u8").tobytes())
        out.flush()
        os.fsync(out.fileno())


def decode(total: Path, base: Path, target: Path, *, bits: int, without: frozenset[str] = frozenset()) -> int:
    """Write the mean as a model like `base`, whose tensors that are not floats it keeps, `without` these tensors; returns all samples.
    Raises `Problem` (`secure.sum`) for a sum that nobody's samples made, (`weights.not_finite`) where the mean does not fit its dtype."""
    layout = {name: entry for name, entry in header(base).items() if name not in without}
    if _length(total) != 1 + _count(layout):
        raise Problem("weights.signature", tensor=TENSOR, found="another length", agreed="that of the model")
    with total.open("rb") as sums, base.open("rb") as origin, target.open("wb") as out:
        sums.seek(8 + int.from_bytes(sums.read(8), "little"))
        samples = int(np.frombuffer(sums.read(8), "<i8")[0])
        if samples <= 0:
            raise Problem("secure.sum")
        start = 8 + int.from_bytes(origin.read(8), "little")
        entries, place = {}, 0
        for name in sorted(layout):
            size = layout[name]["data_offsets"][1] - layout[name]["data_offsets"][0]
            entries[name] = {"dtype": layout[name]["dtype"], "shape": layout[name]["shape"], "data_offsets": [place, place + size]}
            place += size
        out.write(_framed(entries))
        for name in sorted(layout):
            begin, end = layout[name]["data_offsets"]
            dtype = _FLOATS.get(layout[name]["dtype"])
            count = (end - begin) // np.dtype(dtype).itemsize if dtype else 0
            for first in range(0, count, CHUNK):
                numbers = np.frombuffer(sums.read(8 * min(CHUNK, count - first)), "<i8")
                with np.errstate(over="ignore"):
                    mean = (np.ldexp(numbers.astype(np.float64), -bits) / samples).astype(dtype)
                if not np.isfinite(mean).all():
                    raise Problem("weights.not_finite", tensor=name)
                out.write(mean.tobytes())
            for first in range(begin, end if dtype is None else begin, 8 * CHUNK):
                origin.seek(start + first)
                out.write(origin.read(min(8 * CHUNK, end - first)))
        out.flush()
        os.fsync(out.fileno())
    return samples


def _numbers(model: Path, samples: int, bits: int, parties: int, without: frozenset[str]) -> Iterator[np.ndarray]:
    layout, limit = header(model), float((2**63 - 1) // parties)
    yield np.array([samples], np.int64).view(np.uint64)
    with model.open("rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        for name in sorted(layout):
            if (dtype := _FLOATS.get(layout[name]["dtype"])) is None or name in without:
                continue
            (begin, end), size = layout[name]["data_offsets"], np.dtype(dtype).itemsize
            for place in range(begin, end, CHUNK * size):
                file.seek(start + place)
                values = np.frombuffer(file.read(min(CHUNK * size, end - place)), dtype).astype(np.float64)
                scaled = np.rint(np.ldexp(values * samples, bits))
                # Also false for what is not a number. Below the limit by a part in 2^53, so that rounding cannot step over it.
                if not (np.abs(scaled) < limit * (1 - 2**-52)).all():
                    raise Problem("secure.range", tensor=name)
                yield scaled.astype(np.int64).view(np.uint64)


def _chunks(pieces: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """The same numbers in arrays of `CHUNK`, so that the masks of all parties are cut alike."""
    waiting: list[np.ndarray] = []
    held = 0
    for piece in pieces:
        while held + piece.size >= CHUNK:
            cut = CHUNK - held
            yield np.concatenate([*waiting, piece[:cut]])
            waiting, held, piece = [], 0, piece[cut:]
        if piece.size:
            waiting.append(piece)
            held += piece.size
    if waiting:
        yield np.concatenate(waiting)


def _count(layout: dict[str, Any], without: frozenset[str] = frozenset()) -> int:
    return sum(math.prod(entry["shape"]) for name, entry in layout.items() if entry["dtype"] in _FLOATS and name not in without)


def _length(vector: Path) -> int:
    found = header(vector)
    if set(found) != {TENSOR} or found[TENSOR]["dtype"] != "I64" or len(found[TENSOR]["shape"]) != 1 or found[TENSOR]["shape"][0] < 1:
        raise Problem("weights.missing", tensor=TENSOR)
    return int(found[TENSOR]["shape"][0])


def _head(count: int) -> bytes:
    return _framed({TENSOR: {"dtype": "I64", "shape": [count], "data_offsets": [0, 8 * count]}})


def _framed(entries: dict[str, Any]) -> bytes:
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
