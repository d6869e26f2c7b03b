"""Weights as safetensors: read with limits, checked against the plan's signature, never unpickled."""

from __future__ import annotations

import json
import math
import mmap
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from medmesh.canonical import parse
from medmesh.errors import Problem

if TYPE_CHECKING:  # a worker does without pydantic
    from medmesh.contracts.plan import TensorSignature

MAX_HEADER = 16 * 2**20
_PIECE = 1 << 20
_REMEMBERED = 1 << 16
"""Bytes of the longest header that is remembered."""
_NUMPY = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "I64": np.int64, "I32": np.int32, "U8": np.uint8}
_NUMPY |= {"I16": np.int16, "I8": np.int8, "U16": np.uint16}  # of encoded updates
_KINDS = {np.dtype(dtype): name for name, dtype in _NUMPY.items()}
BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "U16": 2}
"""Of one number, by dtype as safetensors names it."""
_ORDER = ("I64", "F64", "F32", "I32", "F16", "U16", "I16", "I8", "U8")
"""In which tensors lie in a file, those of a dtype by name: as the library of the format has it, so that each begins at a multiple of its
numbers' size."""


def header(path: Path) -> dict[str, dict[str, Any]]:
    """Name to `{"dtype", "shape", "data_offsets"}`, without reading the tensors. Raises `Problem` (`weights.malformed`)."""
    with _opened(path) as file:
        return _header(file, _size(file))


def header_of(data: bytes, size: int | None = None) -> dict[str, dict[str, Any]]:
    """The same of a file's bytes, or of its beginning where it has `size`."""
    return _header(BytesIO(data), len(data) if size is None else size)


def _opened(path: Path) -> BufferedReader:
    try:
        # A worker's folder is untrusted: a link in it must not make us read something else.
        return os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb")
    except OSError:
        raise Problem("weights.malformed") from None


def _size(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size


def _header(file: BinaryIO, size: int) -> dict[str, dict[str, Any]]:
    """Of a file of `size` bytes at its beginning; it is then where its tensors begin."""
    try:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(MAX_HEADER, size):
            raise ValueError
        said = file.read(length)
        tensors, end = _tensors(said) if length <= _REMEMBERED else _tensors.__wrapped__(said)
        if size != 8 + length + end:
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise Problem("weights.malformed") from None
    return tensors


@lru_cache(maxsize=8)
def _tensors(said: bytes) -> tuple[dict[str, dict[str, Any]], int]:
    """What a header says, which nobody alters, and where its tensors end. Remembered: all models of a federation begin with the same bytes,
    and each is looked at several times. Raises what `_header` takes for malformed."""
    tensors = {name: entry for name, entry in parse(said).items() if name != "__metadata__"}
    end = 0
    for entry in sorted(tensors.values(), key=lambda e: e["data_offsets"][0]):
        begin, stop = entry["data_offsets"]
        if any(type(number) is not int or number < 0 for number in (begin, stop, *entry["shape"])):
            raise ValueError
        count = math.prod(entry["shape"])
        if begin != end or stop - begin != count * BYTES[entry["dtype"]]:
            raise ValueError
        end = stop
    return tensors, end


def check(path: Path, signature: Iterable[TensorSignature]) -> None:
    """Raise a `Problem` that names the first tensor that is missing, foreign, or of another shape or type than was agreed."""
    _compare(header(path), signature)


def _compare(found: Mapping[str, Mapping[str, Any]], signature: Iterable[TensorSignature]) -> None:
    wanted = {tensor.name: tensor for tensor in signature}
    for name in sorted(set(found) | set(wanted)):
        if name not in wanted:
            raise Problem("weights.foreign", tensor=name[:120])
        if name not in found:
            raise Problem("weights.missing", tensor=name)
        shape, dtype = tuple(found[name]["shape"]), found[name]["dtype"]
        if shape != wanted[name].shape or dtype != wanted[name].dtype:
            agreed = f"{wanted[name].dtype} {list(wanted[name].shape)}"
            raise Problem("weights.signature", tensor=name, found=f"{dtype} {list(shape)}", agreed=agreed)


def check_finite(
    path: Path, seen: Callable[[bytes], object] = lambda piece: None, signature: Iterable[TensorSignature] | None = None
) -> None:
    """Raise a `Problem` that names the first tensor with NaN or infinity; in one pass, a mebibyte at a time. `seen` gets every byte of the
    file in order, exactly as it was looked at, whoever writes to the file meanwhile. With a `signature`, as `check` before it."""
    with _opened(path) as file:
        layout = _header(file, _size(file))
        if signature is not None:
            _compare(layout, signature)
        file.seek(0)
        length = file.read(8)
        seen(length)
        seen(file.read(int.from_bytes(length, "little")))
        for name, entry in sorted(layout.items(), key=lambda item: item[1]["data_offsets"][0]):
            begin, end = entry["data_offsets"]
            for start in range(begin, end, _PIECE):
                piece = file.read(min(_PIECE, end - start))
                seen(piece)
                if not finite(piece, entry["dtype"]):
                    raise Problem("weights.not_finite", tensor=name)


def read_finite(path: Path) -> bytes:
    """The bytes of a small file, all of which were looked at, whoever writes to it meanwhile; raises as `check_finite` does."""
    with _opened(path) as file:
        data = file.read()
    layout, begins = header_of(data), 8 + int.from_bytes(data[:8], "little")
    for name, entry in layout.items():
        begin, end = entry["data_offsets"]
        if not finite(memoryview(data)[begins + begin : begins + end], entry["dtype"]):
            raise Problem("weights.not_finite", tensor=name)
    return data


def finite(piece: bytes | memoryview, dtype: str) -> bool:
    """Whether numbers of a tensor of this dtype hold neither NaN nor infinity."""
    if dtype == "BF16":  # numpy has none: the upper half of a float32
        return bool((np.frombuffer(piece, np.uint16) & 0x7F80 != 0x7F80).all())
    kind = np.dtype(_NUMPY[dtype])
    return kind.kind != "f" or bool(np.isfinite(np.frombuffer(piece, kind)).all())


def save(tensors: Mapping[str, np.ndarray], path: Path) -> None:
    """Write tensors so that the same ones are the same bytes, from where they lie in memory: the library makes a second copy of them first.
    Raises `Problem` (`weights.malformed`) for a dtype that models have not."""
    made = {name: np.asarray(array, np.asarray(array).dtype.newbyteorder("<"), order="C") for name, array in tensors.items()}
    try:
        kinds = {name: _KINDS[array.dtype] for name, array in made.items()}
    except KeyError:
        raise Problem("weights.malformed") from None
    names = sorted(made, key=lambda name: (_ORDER.index(kinds[name]), name))
    path.unlink(missing_ok=True)  # whoever reads the one before goes on reading it
    with path.open("wb") as file:
        file.write(head((name, kinds[name], made[name].shape) for name in names))
        for name in names:
            file.write(made[name].data)


def head(tensors: Iterable[tuple[str, str, tuple[int, ...]]]) -> bytes:
    """How a file of tensors (name, dtype, shape) begins that lie in it in this order."""
    entries: dict[str, dict[str, Any]] = {}
    end = 0
    for name, dtype, shape in tensors:
        begin, end = end, end + math.prod(shape) * BYTES[dtype]
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    said = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    said += b" " * (-len(said) % 8)
    return len(said).to_bytes(8, "little") + said


def save_rows(
    path: Path, name: str, shape: tuple[int, ...], dtype: str, rows: Iterable[np.ndarray], beside: Mapping[str, np.ndarray]
) -> None:
    """Write a tensor [rows, ...] a row at a time, as `row_writer` does."""
    with row_writer(path, name, shape, dtype, beside) as write:
        for row in rows:
            write(row)


@contextmanager
def row_writer(
    path: Path, name: str, shape: tuple[int, ...], dtype: str, beside: Mapping[str, np.ndarray]
) -> Iterator[Callable[[np.ndarray], None]]:
    """What writes the next row of a tensor [rows, ...] (`dtype` as safetensors names it), after which come those `beside` it, which are
    small: never more than a row in memory. Raises `ValueError` for a row of another shape, or another number of them."""
    kind = np.dtype(_NUMPY[dtype]).newbyteorder("<")
    count = 0
    with path.open("wb") as file:
        file.write(head([(name, dtype, shape), *((other.name, other.dtype, other.shape) for other in signature_of(beside))]))

        def write(row: np.ndarray) -> None:
            nonlocal count
            if row.shape != shape[1:]:
                raise ValueError(f"a row is {row.shape}, not {shape[1:]}")
            file.write(np.ascontiguousarray(row, dtype=kind).data)
            count += 1

        yield write
        if count != shape[0]:
            raise ValueError(f"{count} rows, not {shape[0]}")
        for _, array in sorted(beside.items()):
            file.write(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).data)


def mapped(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a file, read from the disk when they are looked at: only what is used at the moment is in memory. Raises `Problem`
    (`weights.malformed`)."""
    with _opened(path) as file:
        found, begins = _header(file, _size(file)), file.tell()
        # One map for all of them: numpy's own of each takes as long as a step of a small model.
        whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    made: dict[str, np.ndarray] = {}
    for name, entry in found.items():
        kind, shape = np.dtype(_NUMPY[entry["dtype"]]).newbyteorder("<"), tuple(entry["shape"])
        count, at = math.prod(shape), begins + entry["data_offsets"][0]
        made[name] = np.frombuffer(whole, kind, count, at).reshape(shape) if count else np.zeros(shape, kind)
    return made


class Stored(Mapping[str, np.ndarray]):
    """The tensors of a file, each read when it is asked for, into a fresh array of its own: who takes one after the other into a model
    never has all of them twice. Raises `Problem` (`weights.malformed`)."""

    def __init__(self, path: Path) -> None:
        self._mapped = mapped(path)

    def __getitem__(self, name: str) -> np.ndarray:
        return np.array(self._mapped[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._mapped)

    def __len__(self) -> int:
        return len(self._mapped)


def load(path: Path) -> dict[str, np.ndarray]:
    """Read tensors that were checked, once and into fresh arrays of their own. Raises `Problem` (`weights.malformed`)."""
    made: dict[str, np.ndarray] = {}
    with _opened(path) as file:
        found, begins = _header(file, _size(file)), file.tell()
        for name, entry in found.items():
            array = made[name] = np.empty(entry["shape"], np.dtype(_NUMPY[entry["dtype"]]).newbyteorder("<"))
            file.seek(begins + entry["data_offsets"][0])
            if file.readinto(array.reshape(-1).view(np.uint8).data) != array.nbytes:
                raise Problem("weights.malformed")
    return made


def signature_of(tensors: Mapping[str, np.ndarray]) -> tuple[TensorSignature, ...]:
    """The signature of arrays, sorted by name."""
    from medmesh.contracts.plan import TensorSignature

    return tuple(
        TensorSignature(name=name, shape=tuple(tensors[name].shape), dtype=_KINDS[tensors[name].dtype]) for name in sorted(tensors)
    )
