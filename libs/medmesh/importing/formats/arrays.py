"""NumPy arrays (.npy, .npz). Source: numpy.lib.format, NEP 1. Numbers only: arrays of objects are pickles, which are programs."""

from __future__ import annotations

import ast
import io
import math
import re
import zipfile
from typing import Any, BinaryIO

import numpy as np

from medmesh.importing.formats.content import Content, Format, bounded, damaged, exactly, unsupported

MAGIC = b"\x93NUMPY"
MOST_ARRAYS = 4096
_LONGEST_HEADER = 10_000
_NUMBERS = re.compile(r"[<>|=]?(?:b1|[iu][1248]|f[248]|c(?:8|16))")
_LETTERS = re.compile(r"[<>|=]?[SU]\d+")


def read_header(file: BinaryIO, place: str = "header") -> tuple[np.dtype, tuple[int, ...], bool, int]:
    """(dtype, shape, whether the first axis is fastest, bytes of the header). Raises `formats.damaged`, `formats.unsupported` (objects,
    records) or `formats.too_large`."""
    start = exactly(file, 8, place)
    if start[:6] != MAGIC or start[6] not in (1, 2, 3):
        raise damaged(place, "this is no array of a known version")
    width = 2 if start[6] == 1 else 4
    length = int.from_bytes(exactly(file, width, place), "little")
    if length > _LONGEST_HEADER:
        raise damaged(place, "it is too long")
    try:
        said = ast.literal_eval(exactly(file, length, place).decode("utf-8" if start[6] == 3 else "latin-1").strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
        raise damaged(place, "it is no dictionary of constants") from None
    if not isinstance(said, dict) or set(said) != {"descr", "fortran_order", "shape"}:
        raise damaged(place, "it must hold descr, fortran_order and shape")
    descr, order, shape = said["descr"], said["fortran_order"], said["shape"]
    if not isinstance(descr, str) or not (_NUMBERS.fullmatch(descr) or (_LETTERS.fullmatch(descr) and len(descr) <= 8)):
        raise unsupported(f"{place}: objects and records (only numbers are taken)")
    if (
        type(order) is not bool
        or not isinstance(shape, tuple)
        or any(type(size) is not int or size < 0 for size in shape)
        or len(shape) > 16
    ):
        raise damaged(place, "the shape must be a tuple of sizes")
    kind = np.dtype(descr)
    bounded(math.prod(shape) * max(1, kind.itemsize), place)
    return kind, shape, order, 8 + width + length


def describe_npy(file: BinaryIO, size: int) -> Content:
    """One array. Its kind follows from its dimensions: 1 a signal, 2 an image, more a volume."""
    kind, shape, _, began = read_header(file)
    wanted = began + math.prod(shape) * kind.itemsize
    if size < wanted:
        raise damaged("values", "the file ends before the last one")
    if kind.kind in "SU":
        raise unsupported("an array of text")
    identity = (("after the array", ""),) if size > wanted else ()
    return Content(_kind(shape), {"shape": list(shape), "dtype": kind.name}, identity)


def describe_npz(file: BinaryIO, size: int) -> Content:
    """Several arrays by name; arrays of text are identity, for they are dropped."""
    identity: list[tuple[str, str]] = []
    arrays: dict[str, dict[str, Any]] = {}
    shapes: list[tuple[int, ...]] = []
    total = 0
    with _opened(file) as archive:
        if archive.comment:
            identity.append(("zip comment", archive.comment.decode("utf-8", errors="replace")))
        for entry in _entries(archive):
            kind, shape = _declared(archive, entry)
            total = bounded(total + entry.file_size, "archive")
            name = entry.filename.removesuffix(".npy")
            if kind.kind in "SU":
                identity.append((f"text array {len(identity)}", ""))
            else:
                shapes.append(shape)
                arrays[name] = {"shape": list(shape), "dtype": kind.name}
            if entry.comment:
                identity.append(("entry comment", entry.comment.decode("utf-8", errors="replace")))
    return Content(_kind(max(shapes, key=math.prod)) if shapes else "table", {"arrays": arrays}, tuple(identity))


def decode(data: bytes) -> dict[str, np.ndarray]:
    """Every array of numbers by name (of an .npy: the name is empty), read-only, as stored."""
    if data[:6] == MAGIC:
        return {"": _array(io.BytesIO(data), "header")}
    with _opened(io.BytesIO(data)) as archive:
        made, total = {}, 0
        for entry in _entries(archive):
            kind, _ = _declared(archive, entry)
            total = bounded(total + entry.file_size, "archive")
            if kind.kind not in "SU":
                with _inside(archive, entry) as inner:
                    made[entry.filename.removesuffix(".npy")] = _array(inner, "an entry")
        return made


def clean_npy(data: bytes) -> bytes:
    """Without what follows the array."""
    file = io.BytesIO(data)
    kind, shape, _, began = read_header(file)
    if kind.kind in "SU":
        raise unsupported("an array of text")
    end = began + math.prod(shape) * kind.itemsize
    if len(data) < end:
        raise damaged("values", "the file ends before the last one")
    return data[:end]


def clean_npz(data: bytes) -> bytes:
    """Without arrays of text, comments, times and other fields of the archive."""
    made = io.BytesIO()
    with _opened(io.BytesIO(data)) as archive, zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as target:
        total = 0
        for entry in _entries(archive):
            kind, _ = _declared(archive, entry)
            total = bounded(total + entry.file_size, "archive")
            if kind.kind in "SU":
                continue
            with _inside(archive, entry) as inner:
                target.writestr(zipfile.ZipInfo(entry.filename), inner.read(entry.file_size + 1), zipfile.ZIP_DEFLATED)
    return made.getvalue()


def _array(file: Any, place: str) -> np.ndarray:
    kind, shape, first, _ = read_header(file, place)
    count = math.prod(shape) * kind.itemsize
    try:
        raw = exactly(file, count, "values")
    except (zipfile.BadZipFile, OSError):
        raise damaged("values", "the archive is damaged") from None
    return np.frombuffer(raw, kind).reshape(shape, order="F" if first else "C")


def _kind(shape: tuple[int, ...]) -> str:
    return "signal" if len(shape) < 2 else "image" if len(shape) == 2 else "volume"


def _opened(file: BinaryIO) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(file)  # NotImplementedError below: a compression, or a version, that it does not know
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError, OverflowError):
        raise damaged("archive", "its directory is damaged") from None


def _entries(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    entries = archive.infolist()
    if not 0 < len(entries) <= MOST_ARRAYS:
        raise damaged("archive", f"it must hold 1 to {MOST_ARRAYS} arrays")
    if len({entry.filename for entry in entries}) != len(entries):
        raise damaged("archive", "two arrays have one name")
    for entry in entries:
        name = entry.filename
        if not name.endswith(".npy") or "/" in name or "\\" in name or not name.isprintable() or len(name) > 128:
            raise damaged("archive", "an entry that is no array")
        if entry.flag_bits & 1:
            raise unsupported("an encrypted archive")
    return entries


class _inside:
    """An entry, whose errors are ours."""

    def __init__(self, archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> None:
        self._archive, self._entry = archive, entry

    def __enter__(self) -> Any:
        try:
            self._file = self._archive.open(self._entry)
        except (zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError, ValueError):
            raise damaged("an entry", "it cannot be opened") from None
        return self._file

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._file.close()
        if isinstance(error, zipfile.BadZipFile | EOFError | OSError) or type(error).__module__ == "zlib":
            raise damaged("an entry", "it cannot be inflated") from None


def _declared(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> tuple[np.dtype, tuple[int, ...]]:
    """The header of an entry; what it promises is what the archive says that it holds, or a bomb would be opened to find out."""
    with _inside(archive, entry) as inner:
        kind, shape, _, began = read_header(inner, "an entry")
    if entry.file_size != began + math.prod(shape) * kind.itemsize:
        raise damaged("an entry", "its size contradicts its shape")
    return kind, shape


def _beside_npy(data: bytes) -> bytes:
    return data[: read_header(io.BytesIO(data))[3]]


def _beside_npz(data: bytes) -> bytes:
    with _opened(io.BytesIO(data)) as archive:
        return b"\n".join([archive.comment, *(entry.filename.encode() + entry.comment + entry.extra for entry in archive.infolist())])


def _is_npz(start: bytes) -> bool:
    return start[:4] == b"PK\x03\x04" and start[30 : 30 + int.from_bytes(start[26:28], "little")].endswith(b".npy")


NPY = Format("npy", "application/x-npy", (".npy",), lambda start: start[:6] == MAGIC, describe_npy, clean_npy, _beside_npy)
NPZ = Format("npz", "application/x-npz", (".npz",), _is_npz, describe_npz, clean_npz, _beside_npz)
