"""The numbers of a secure sum: a model and its samples in fixed point, masked and added modulo 2^64 (or 2^32), chunk by chunk.

A vector is one tensor `secure.sum` of shape [1 + numbers + beside]: first the samples, then samples x value x 2^bits of every float tensor
in the order of their names, then whole numbers beside the model (`counts`). The sum of vectors gives the mean weighted by samples, and
shows neither a model nor how many samples made it. Its dtype says the ring: I64, or I32 where the plan says so (decision 0123).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from medmesh.contracts.message import ObjectRef
from medmesh.contracts.plan import TensorSignature
from medmesh.errors import Problem
from medmesh.federated.streams import FLOATS, Bytes, Reader, Writer, elements, laid_out, pieces, side_by_side
from medmesh.store.objects.port import Digest

CHUNK = 1 << 14
"""Numbers that are worked on at once: what every mask does to them stays within a core's cache."""
TENSOR = "secure.sum"
RINGS = {64: "I64", 32: "I32"}
"""Bits of a ring, and how safetensors names its numbers."""
_BLOCK = 16
"""Bytes for which AES in counter mode counts one on."""
_SIGNED, _UNSIGNED = {"I64": "<i8", "I32": "<i4"}, {"I64": "<u8", "I32": "<u4"}


@dataclass(frozen=True, slots=True)
class Mask:
    """A pseudorandom vector that is added (`sign` 1) or taken away (-1): AES-256-CTR over zeros under a key that is used once."""

    key: bytes
    sign: int


class _Streams:
    """Masks from a vector's number `start` on, which are put on its pieces one after the other; `width` is the bytes of a number."""

    def __init__(self, masks: Sequence[Mask], start: int = 0, width: int = 8) -> None:
        block, inside = divmod(start * width, _BLOCK)
        counter = modes.CTR(block.to_bytes(_BLOCK, "big"))
        self._masks = [(Cipher(algorithms.AES(mask.key), counter).encryptor(), mask.sign) for mask in masks]
        self._zeros, self._room = memoryview(bytes(8 * CHUNK)), bytearray(8 * CHUNK)
        for cipher, _ in self._masks:
            cipher.update_into(self._zeros[:inside], self._room)

    def apply(self, vector: np.ndarray) -> None:
        """Add the next numbers of all of them to `vector` (uint64 or uint32, in place)."""
        zeros, numbers = self._zeros[: vector.nbytes], np.frombuffer(self._room, vector.dtype, vector.size)
        for cipher, sign in self._masks:
            cipher.update_into(zeros, self._room)
            (np.add if sign > 0 else np.subtract)(vector, numbers, out=vector)


def signature(tensors: Iterable[TensorSignature], beside: int = 0, ring: int = 64) -> tuple[TensorSignature, ...]:
    """What a hospital sends in place of the float tensors among `tensors`, with so many whole numbers beside."""
    count = sum(math.prod(tensor.shape) for tensor in tensors if tensor.dtype in FLOATS)
    return tuple(_vector(1 + count + beside, RINGS[ring]).values())


def masked(
    model: Path | bytes | Bytes | None,
    samples: int,
    *,
    bits: int,
    parties: int,
    ring: int = 64,
    masks: Sequence[Mask] = (),
    without: frozenset[str] = frozenset(),
    beside: Sequence[int] = (),
) -> Iterator[bytes]:
    """The bytes, a piece at a time, of the vector of a model (a file, or bytes) that was trained on `samples`, or of no model, with the
    numbers `beside`, masked: the same however often they are made.

    Raises `Problem` (`secure.range`) naming the first tensor with a number that is not finite, or so large that the sum over `parties`
    might not fit.
    """
    most, dtype = (2 ** (ring - 1) - 1) // parties, RINGS[ring]
    if not 0 < samples <= most:
        raise Problem("secure.range", tensor="samples")
    if any(abs(number) > most for number in beside):
        raise Problem("secure.range", tensor="counts")
    with ExitStack() as stack:
        parts = [_Part(1, lambda start, size: np.array([samples]))]
        if model is not None:
            file, scale = stack.enter_context(Reader(model)), samples * 2.0**bits
            parts += [_Part(elements(one), partial(_fixed, file, one.name, scale, most)) for one in _summed(file, without)]
        parts += [_Part(len(beside), lambda start, size: np.array(beside[start : start + size]))]
        streams = _Streams(masks)
        yield laid_out(_vector(sum(part.count for part in parts), dtype))[0]
        for chunk in _chunks(parts, dtype):
            streams.apply(chunk)
            yield chunk.tobytes()


def encode(model: Path | bytes | Bytes | None, samples: int, target: Path, *, digest: Digest | None = None, **settings: Any) -> ObjectRef:
    """Write what is `masked`; not durable, since it can be made again. A fresh `digest` has what its bytes are known by afterwards.
    Raises `Problem`; then nothing is left of `target`."""
    digest = digest or Digest()
    try:
        with target.open("wb") as out:
            for piece in masked(model, samples, **settings):
                digest.update(piece)
                out.write(piece)
    except Problem:
        target.unlink(missing_ok=True)
        raise
    return ObjectRef(sha256=digest.hexdigest(), bytes=digest.size)


class Sum:
    """The sum of vectors in their ring, with `masks` on top: worked out where it is read, by several threads at once if need be.
    Raises `Problem` (`weights.signature`) when one is of another length or ring."""

    def __init__(self, vectors: Sequence[Path], masks: Sequence[Mask] = ()) -> None:
        self._masks = masks
        with ExitStack() as opening:
            self._files = [opening.enter_context(Reader(path)) for path in vectors]
            shapes = {(_length(file), _dtype(file)) for file in self._files}
            if len(shapes) != 1:
                raise Problem("weights.signature", tensor=TENSOR, found="another length", agreed="the same for all")
            self._stack = opening.pop_all()
        self.length, dtype = shapes.pop()
        self._signed, self._unsigned = np.dtype(_SIGNED[dtype]), np.dtype(_UNSIGNED[dtype])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def numbers(self, start: int, stop: int) -> Iterator[np.ndarray]:
        """Those from the place `start` up to `stop`, signed, `CHUNK` after `CHUNK`."""
        width = self._unsigned.itemsize
        streams = _Streams(self._masks, start, width)
        for place in range(start, stop, CHUNK):
            size = min(CHUNK, stop - place)
            total = np.zeros(size, self._unsigned)
            for file in self._files:
                total += np.frombuffer(file.raw(TENSOR, place * width, size * width), self._unsigned)
            streams.apply(total)
            yield total.view(self._signed)

    def last(self, count: int) -> list[int]:
        """The last `count` numbers: those beside the model. Raises `Problem` (`weights.signature`) for a sum that has no such."""
        if self.length < 1 + count:
            raise Problem("weights.signature", tensor=TENSOR, found="another length", agreed="that of the round")
        return [int(number) for piece in self.numbers(self.length - count, self.length) for number in piece]


def decode(total: Sum, base: Path, target: Path, *, bits: int, without: frozenset[str] = frozenset(), beside: int = 0) -> int:
    """Write the mean as a model like `base`, whose tensors that are not floats it keeps, `without` these tensors; returns all samples.
    The last `beside` numbers are no model's.
    Raises `Problem` (`secure.sum`) for a sum that nobody's samples made, (`weights.not_finite`) where the mean does not fit its dtype."""
    with Reader(base) as origin:
        signature = {name: tensor for name, tensor in origin.signature().items() if name not in without}
        summed = _summed(origin, without)
        if total.length != 1 + sum(map(elements, summed)) + beside:
            raise Problem("weights.signature", tensor=TENSOR, found="another length", agreed="that of the model")
        samples = int(next(total.numbers(0, 1))[0])
        if samples <= 0:
            raise Problem("secure.sum")
        with Writer(target, signature) as out:

            def write(name: str, place: int, start: int, count: int) -> None:
                for numbers in total.numbers(place, place + count):
                    out.put(name, start, numbers * 2.0**-bits / samples)
                    start += len(numbers)

            side_by_side(write, _places(summed))
            for name in signature.keys() - {tensor.name for tensor in summed}:
                out.copy(origin, name)
    return samples


def _places(summed: Iterable[TensorSignature]) -> Iterator[tuple[str, int, int, int]]:
    """(tensor, where it is in the vector, from which of its elements, how many) of each piece of a model."""
    place = 1
    for tensor in summed:
        for start, count in pieces(elements(tensor)):
            yield tensor.name, place + start, start, count
        place += elements(tensor)


def _summed(model: Reader, without: frozenset[str]) -> list[TensorSignature]:
    """The tensors whose numbers are in the sum, in their order."""
    return [tensor for name, tensor in sorted(model.signature().items()) if tensor.dtype in FLOATS and name not in without]


@dataclass(frozen=True, slots=True)
class _Part:
    """Some numbers of a vector: how many, and what makes `size` of them from the place `start`."""

    count: int
    numbers: Callable[[int, int], np.ndarray]


def _fixed(model: Reader, name: str, scale: float, most: int, start: int, size: int) -> np.ndarray:
    """A tensor's numbers in fixed point, as float64."""
    values = model.read(name, start, size)
    values *= scale  # a power of two changes no digit: as exact as the product with the samples alone
    np.rint(values, out=values)
    # Also false for what is not a number. Below the limit by a part in 2^53, so that rounding cannot step over it.
    limit = float(most) * (1 - 2**-52)
    if not (-limit < values.min() and values.max() < limit):
        raise Problem("secure.range", tensor=name)
    return values


def _chunks(parts: Iterable[_Part], dtype: str) -> Iterator[np.ndarray]:
    """All numbers of a vector in their ring, `CHUNK` after `CHUNK` in the same room."""
    signed, unsigned = np.dtype(_SIGNED[dtype]), np.dtype(_UNSIGNED[dtype])
    chunk, filled = np.empty(CHUNK, signed), 0
    for part in parts:
        start = 0
        while start < part.count:
            size = min(CHUNK - filled, part.count - start)
            chunk[filled : filled + size] = part.numbers(start, size)
            start, filled = start + size, filled + size
            if filled == CHUNK:
                yield chunk.view(unsigned)
                filled = 0
    if filled:
        yield chunk[:filled].view(unsigned)


def _vector(count: int, dtype: str) -> dict[str, TensorSignature]:
    return {TENSOR: TensorSignature(name=TENSOR, shape=(count,), dtype=dtype)}


def _dtype(vector: Reader) -> str:
    return str(vector.layout[TENSOR]["dtype"])


def _length(vector: Reader) -> int:
    found = vector.layout
    if set(found) != {TENSOR} or found[TENSOR]["dtype"] not in _SIGNED or len(found[TENSOR]["shape"]) != 1 or found[TENSOR]["shape"][0] < 1:
        raise Problem("weights.missing", tensor=TENSOR)
    return int(found[TENSOR]["shape"][0])
