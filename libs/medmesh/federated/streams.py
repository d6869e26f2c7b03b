"""Safetensors files read and written a piece at a time: memory is one piece of each open file, whatever their size."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np

from medmesh.contracts.plan import TensorSignature
from medmesh.errors import Problem
from medmesh.learning.weights import BYTES, MAX_HEADER, head, header, header_of

CHUNK_ELEMENTS = 1 << 19
LEAST_ELEMENTS = 1 << 12
"""Of a piece: to read fewer at once takes longer than to work on them."""
MOST_THREADS = 4
"""That work on one file: more wait for memory."""
FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
"""What is averaged, and its bytes; tensors of whole numbers (counters) are not."""
_NUMPY: dict[str, Any] = {"F64": np.float64, "F32": np.float32, "F16": np.float16}


def decode(data: bytes, dtype: str) -> np.ndarray:
    """The numbers in `data` as float64."""
    if dtype == "BF16":  # numpy has none: the upper half of a float32
        return (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return np.frombuffer(data, _NUMPY[dtype]).astype(np.float64)


def encode(values: np.ndarray, dtype: str) -> bytes:
    """float64 as `dtype`, rounded to the nearest, to even on a tie. Raises `Problem` (`weights.not_finite`) when it does not fit."""
    with np.errstate(over="ignore"):
        if dtype == "BF16":
            single = values.astype(np.float32)
            bits = single.view(np.uint32)
            rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
            finite = bool(np.isfinite(single).all() and (rounded & 0x7F80 != 0x7F80).all())
            data = rounded.tobytes()
        else:
            made = values.astype(_NUMPY[dtype])
            finite, data = bool(np.isfinite(made).all()), made.tobytes()
    if not finite:
        raise Problem("weights.not_finite", tensor="")
    return data


def pieces(count: int, together: int = 1) -> Iterator[tuple[int, int]]:
    """(start, elements) of each piece of a tensor; so much smaller where so many are `together` in memory."""
    size = max(min(CHUNK_ELEMENTS, LEAST_ELEMENTS), CHUNK_ELEMENTS // together)
    for start in range(0, count, size):
        yield start, min(size, count - start)


def side_by_side(work: Callable[..., None], given: Iterable[tuple[Any, ...]]) -> None:
    """Do `work` with each of `given`, several at once where there are processors: numpy, ciphers and files let the interpreter go. Raises
    what the first that failed raised; nothing is begun after that."""
    with ThreadPoolExecutor(min(MOST_THREADS, os.cpu_count() or 1)) as pool:
        doing = [pool.submit(work, *one) for one in given]
        try:
            for one in doing:
                one.result()
        finally:
            pool.shutdown(cancel_futures=True)


class Bytes(Protocol):
    """Bytes that are read where they lie."""

    size: int

    def at(self, start: int, size: int) -> bytes:
        """`size` of them from the byte `start`."""

    def close(self) -> None:
        """Give back what it holds."""


class _File:
    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self.size = os.fstat(self._file.fileno()).st_size

    def at(self, start: int, size: int) -> bytes:
        return os.pread(self._file.fileno(), size, start)

    def close(self) -> None:
        self._file.close()


class _Held:
    def __init__(self, data: bytes) -> None:
        self._data, self.size = data, len(data)

    def at(self, start: int, size: int) -> bytes:
        return self._data[start : start + size]

    def close(self) -> None:
        return None


class Reader:
    """A safetensors file that was checked, or the bytes of one."""

    def __init__(self, source: Path | bytes | Bytes) -> None:
        known = header(source) if isinstance(source, Path) else None
        self._source: Bytes = _File(source) if isinstance(source, Path) else _Held(source) if isinstance(source, bytes) else source
        self._start = 8 + int.from_bytes(self._source.at(0, 8), "little")
        # What says that it is longer than any is read so far, and refused.
        self.layout = known or header_of(self._source.at(0, min(self._start, 8 + MAX_HEADER)), self._source.size)
        self._at = Counter[str]()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._source.close()

    def signature(self) -> dict[str, TensorSignature]:
        """Its tensors by name."""
        return {n: TensorSignature(name=n, shape=tuple(e["shape"]), dtype=e["dtype"]) for n, e in self.layout.items()}

    def read(self, name: str, start: int, count: int) -> np.ndarray:
        """float64 [count] of a tensor of floats, from its element `start` in row-major order."""
        dtype = self.layout[name]["dtype"]
        return decode(self.raw(name, start * FLOATS[dtype], count * FLOATS[dtype]), dtype)

    def raw(self, name: str, start: int, size: int) -> bytes:
        """`size` bytes of a tensor from its byte `start`."""
        return self._source.at(self._start + int(self.layout[name]["data_offsets"][0]) + start, size)

    def next(self, name: str, size: int) -> bytes:
        """The `size` bytes after those that this said last of a tensor."""
        self._at[name] += size
        return self.raw(name, self._at[name] - size, size)

    def bytes_of(self, name: str) -> int:
        """A tensor's length in bytes."""
        begin, end = self.layout[name]["data_offsets"]
        return int(end - begin)


class Writer:
    """A safetensors file whose pieces are put in any order. The same tensors are the same bytes. Not durable: the store that takes it
    sees to that."""

    def __init__(self, path: Path, signature: Mapping[str, TensorSignature]) -> None:
        self.signature = dict(sorted(signature.items()))
        self._at = Counter[str]()
        begins, self._places, size = laid_out(self.signature)
        self._file = path.open("wb")
        self._file.write(begins)
        self._file.flush()
        self._start = len(begins)
        self._file.truncate(self._start + size)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()

    def put(self, name: str, start: int, values: np.ndarray) -> None:
        """float64 values from the element `start` on. Raises `Problem` (`weights.not_finite`)."""
        dtype = self.signature[name].dtype
        try:
            self.put_raw(name, start * FLOATS[dtype], encode(values, dtype))
        except Problem:
            raise Problem("weights.not_finite", tensor=name) from None

    def put_raw(self, name: str, start: int, data: bytes | memoryview) -> None:
        """Bytes from the byte `start` on."""
        place = self._start + self._places[name] + start
        while data:
            written = os.pwrite(self._file.fileno(), data, place)
            data, place = data[written:], place + written

    def append(self, name: str, data: bytes | memoryview) -> None:
        """Bytes after those that were appended last."""
        self.put_raw(name, self._at[name], data)
        self._at[name] += len(data)

    def copy(self, source: Reader, name: str, origin: str | None = None) -> None:
        """A whole tensor as it is in `source`, there under the name `origin`."""
        origin = origin or name
        size, step = source.bytes_of(origin), 8 * CHUNK_ELEMENTS
        for place in range(0, size, step):
            self.put_raw(name, place, source.raw(origin, place, min(step, size - place)))


def laid_out(signature: Mapping[str, TensorSignature]) -> tuple[bytes, dict[str, int], int]:
    """(what a file of these tensors begins with, where each of them begins after it, how many bytes all of them are), in their order."""
    place, places = 0, {}
    for name, tensor in signature.items():
        places[name] = place
        place += elements(tensor) * BYTES[tensor.dtype]
    return head((name, tensor.dtype, tensor.shape) for name, tensor in signature.items()), places, place


def elements(tensor: TensorSignature) -> int:
    """How many numbers a tensor has."""
    return math.prod(tensor.shape)


def merge(target: Path, sources: Mapping[str, Path]) -> Path:
    """A file of the tensors named, each from its own source."""
    readers = {path: Reader(path) for path in set(sources.values())}
    try:
        signature = {name: readers[path].signature()[name] for name, path in sources.items()}
        with Writer(target, signature) as out:
            for name, path in sources.items():
                out.copy(readers[path], name)
    finally:
        for reader in readers.values():
            reader.close()
    return target
