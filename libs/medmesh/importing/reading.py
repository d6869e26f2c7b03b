"""What importers read with: rows of CSV with their lines, JSON with its keys, headers of images, all streamed and said with their place."""

from __future__ import annotations

import csv
import gzip
import io
import math
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

from medmesh.canonical import parse
from medmesh.errors import Problem
from medmesh.importing.port import Report, Source
from medmesh.importing.sources import DAMAGE, Bounded

LARGEST_CELL = 16 << 20
LARGEST_JSON = 64 << 20
_DAMAGED = (gzip.BadGzipFile, zlib.error, EOFError, OSError)
PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"


@dataclass(frozen=True, slots=True)
class Row:
    """`number` counts rows from 1, without a header; `line` is the one in the file on which the row begins."""

    number: int
    line: int
    cells: dict[str, str]

    def __getitem__(self, column: str) -> str:
        return self.cells[column]


@contextmanager
def plain(source: Source, name: str) -> Iterator[BinaryIO]:
    """The bytes of a file, unpacked when it is a gzip. Raises `Problem` (`importing.unreadable`) for damage met while reading."""
    with source.open(name) as file:
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        try:
            yield gzip.GzipFile(fileobj=file) if packed else file  # type: ignore[misc]
        except _DAMAGED as error:
            raise Problem("importing.unreadable", place=name, reason=type(error).__name__) from None


def rows(
    source: Source,
    name: str,
    report: Report,
    *,
    columns: Sequence[str] = (),
    header: Sequence[str] | None = None,
    aliases: Mapping[str, str] | None = None,
    upper: bool = False,
) -> Iterator[Row]:
    """The rows of a CSV file (RFC 4180, UTF-8), also gzipped, in constant memory.

    `columns` must be there; `header` stands for a file that has none; `aliases` turns other spellings into ours, `upper` makes names
    upper case. A row with another number of cells is an error and left out.
    """
    csv.field_size_limit(LARGEST_CELL)
    with plain(source, name) as file:
        lines = csv.reader(io.TextIOWrapper(file, encoding="utf-8-sig", newline=""), strict=True)
        try:
            if header is None:
                names = [cell.strip() for cell in next(lines, [])]
                names = [cell.upper() for cell in names] if upper else names
                names = [(aliases or {}).get(cell, cell) for cell in names]
            else:
                names = list(header)
            missing = [column for column in columns if column not in names]
            for column in missing:
                report.error("importing.column", name, line=1, column=column)
            if missing:
                return
            number, line = 0, lines.line_num + 1
            for cells in lines:
                begun, line = line, lines.line_num + 1
                if not cells:
                    continue
                number += 1
                if len(cells) != len(names):
                    report.error("importing.cells", name, line=begun, found=len(cells), expected=len(names))
                    continue
                yield Row(number, begun, dict(zip(names, cells, strict=True)))
        except UnicodeDecodeError:
            report.error("importing.csv", name, line=lines.line_num + 1, reason="not UTF-8")
        except csv.Error as error:
            report.error("importing.csv", name, line=lines.line_num, reason=str(error))


def document(source: Source, name: str, report: Report) -> dict[str, Any] | None:
    """The object in a JSON file; None when there is none, which is an error of the report."""
    found = json_of(source, name, report)
    if found is not None and not isinstance(found, dict):
        report.error("importing.json_key", name, key="", expected="an object")
        return None
    return found


def json_of(source: Source, name: str, report: Report) -> Any:
    """What a JSON file holds; None when it cannot be read, which is an error of the report."""
    if source.size(name) > LARGEST_JSON:
        report.error("importing.json", name, reason="too large")
        return None
    with source.open(name) as file:
        data = file.read()
    try:
        return parse(data.decode("utf-8-sig"))
    except ValueError as error:
        report.error("importing.json", name, line=getattr(error, "lineno", None), reason=getattr(error, "msg", str(error)))
        return None


def begins(source: Source, name: str, report: Report, *, expected: str, magics: Sequence[bytes]) -> bool:
    """Whether a file starts as one of `magics`; otherwise it is an error."""
    with source.open(name) as file:
        start = file.read(max(map(len, magics)))
    if not start.startswith(tuple(magics)):
        report.error("importing.format", name, expected=expected)
        return False
    return True


def nifti_shape(source: Source, name: str, report: Report) -> tuple[int, ...] | None:
    """The dimensions in the header of a NIfTI-1 or NIfTI-2 file, also gzipped; None with an error when it is none.

    https://nifti.nimh.nih.gov/nifti-1/: sizeof_hdr at 0, dim at 40 (int16), magic at 344; NIfTI-2: magic at 4, dim at 16 (int64).
    """
    try:
        with plain(source, name) as file:
            start = file.read(540)
    except Problem as problem:
        report.error("importing.unreadable", name, reason=str(problem.params["reason"]))
        return None
    shape: tuple[int, ...] | None = None
    if len(start) >= 348:
        for order in "<>":
            (size,) = struct.unpack_from(order + "i", start)
            if size == 348 and start[344:347] in (b"n+1", b"ni1"):
                shape = struct.unpack_from(order + "8h", start, 40)
            elif size == 540 and len(start) >= 540 and start[4:7] in (b"n+2", b"ni2"):
                shape = struct.unpack_from(order + "8q", start, 16)
    if shape is None or not 1 <= shape[0] <= 7 or any(side < 1 for side in shape[1 : shape[0] + 1]):
        report.error("importing.format", name, expected="NIfTI")
        return None
    return shape[1 : shape[0] + 1]


def same_grid(source: Source, image: str, mask: str, report: Report) -> bool:
    """Whether an image and its mask have the same first three dimensions; otherwise an error that names the mask."""
    first, second = nifti_shape(source, image, report), nifti_shape(source, mask, report)
    if first is None or second is None:
        return False
    if first[:3] != second[:3]:
        found, expected = ("x".join(map(str, shape[:3])) for shape in (second, first))
        report.error("importing.grid", mask, found=found, expected=expected)
        return False
    return True


@contextmanager
def within_zip(source: Source, name: str) -> Iterator[zipfile.ZipFile]:
    """A zip that lies in the source as it was published. Raises `Problem` (`importing.unreadable`) for one that is none."""
    with source.open(name) as file:
        try:
            archive = zipfile.ZipFile(Bounded(file))
        except (*DAMAGE, OSError) as error:
            raise Problem("importing.unreadable", place=name, reason=type(error).__name__) from None
        with archive:
            yield archive


@dataclass(frozen=True, slots=True)
class Array:
    """The header of an array in an .npz."""

    shape: tuple[int, ...]
    dtype: str


def npz(source: Source, name: str, report: Report) -> dict[str, Array] | None:
    """The headers of the arrays in an .npz, by key; None with an error when it is none or holds Python objects."""
    from numpy.lib import format as npy

    found: dict[str, Array] = {}
    try:
        with source.open(name) as file, zipfile.ZipFile(file) as archive:
            for info in archive.infolist():
                with archive.open(info) as member:
                    version = npy.read_magic(member)  # type: ignore[no-untyped-call]
                    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
                    shape, _, dtype = read(member)  # type: ignore[no-untyped-call]
                key = info.filename.removesuffix(".npy")
                if dtype.hasobject:
                    report.error("importing.pickled", name, key=key)
                    return None
                if math.prod(shape) * dtype.itemsize > info.file_size:
                    report.error("importing.unreadable", name, key=key, reason="shorter than its header says")
                    return None
                found[key] = Array(shape, str(dtype))
    except (*DAMAGE, OSError) as error:
        report.error("importing.unreadable", name, reason=type(error).__name__)
        return None
    return found


def npz_array(source: Source, name: str, key: str) -> Any:
    """One array of an .npz that `npz` found sound; no Python objects. Raises `Problem` (`importing.unreadable`) for damage."""
    from numpy.lib import format as npy

    try:
        with source.open(name) as file, zipfile.ZipFile(file) as archive, archive.open(f"{key}.npy") as member:
            return npy.read_array(member, allow_pickle=False)  # type: ignore[no-untyped-call]
    except (*DAMAGE, KeyError, OSError) as error:
        raise Problem("importing.unreadable", place=f"{name}[{key}]", reason=type(error).__name__) from None


def published(report: Report, source: Source, what: str, found: int, count: int) -> None:
    """Say when a count is not the published one: a part, a re-pack, or a newer release."""
    if found != count:
        report.warning("importing.count", source.name, what=what, found=found, published=count)


def within(name: str, *folders: str) -> bool:
    """Whether a name stands in a folder of one of these names, whatever their case."""
    return any(part.casefold() in folders for part in name.split("/")[:-1])


def stem(name: str) -> str:
    """The file's name without folders and `.nii.gz` or `.nii`."""
    return name.rpartition("/")[2].removesuffix(".gz").removesuffix(".nii")


def folder_of(name: str) -> str:
    """What stands before the last part, with its `/`; empty at the top."""
    return name[: name.rfind("/") + 1]
