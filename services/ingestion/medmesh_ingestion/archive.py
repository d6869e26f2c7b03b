"""Unpacking an archive that somebody else made: everything in it is checked before anything of it is used.

Files are written under numbers, never under their names, so that no name can lead anywhere; names serve only to match rows of
the label file. Nothing raised here repeats a name: it may be a patient's.
"""

from __future__ import annotations

import errno
import gzip
import io
import re
import stat
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from medmesh.errors import Problem
from medmesh.security.residue import wipe

PIECE = 1 << 20
LARGEST_READ = 32 << 20  # a zip's directory is read in one go, and so is the long name of a tar's entry
_DAMAGE = (
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    tarfile.TarError,
    zlib.error,
    struct.error,
    EOFError,
    ValueError,
    RuntimeError,
    OverflowError,
)
_MAGIC = (b"PK\x03\x04", b"PK\x05\x06", b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"7z\xbc\xaf\x27\x1c", b"Rar!\x1a\x07", b"\x28\xb5\x2f\xfd")


@dataclass(frozen=True, slots=True)
class Limits:
    """How much an archive may hold: entries, bytes when unpacked, and times its own size."""

    files: int
    bytes: int
    ratio: int


@dataclass(frozen=True, slots=True)
class File:
    """A file of an archive: its path in there (NFC, `/` between the parts) and where its bytes lie now."""

    name: PurePosixPath
    path: Path


def unpack(archive: Path, folder: Path, limits: Limits) -> list[File]:
    """Every file of a zip, tar or tar.gz, unpacked into the empty `folder`, in the order of their names.

    Raises `Problem`: `ingestion.archive_unreadable`, `ingestion.archive_too_large`, `ingestion.archive_unsafe` for an entry that leads
    out, is a link or is an archive again, `objects.full`.
    """
    allowed = min(limits.bytes, limits.ratio * archive.stat().st_size)
    try:
        with _Bounded(io.FileIO(archive)) as packed:
            found = list(_write(_entries(packed, folder / "plain.tar", allowed), folder, limits, allowed))
    except _DAMAGE as error:
        raise _unreadable(type(error).__name__) from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise Problem("objects.full") from None
        if error.errno == errno.EINVAL:  # a directory that points before its file
            raise _unreadable("a wrong offset") from None
        raise
    wipe(folder / "plain.tar")
    if len({file.name for file in found}) < len(found):
        raise _unreadable("two files have the same name")
    return sorted(found, key=lambda file: file.name)


@dataclass(frozen=True, slots=True)
class _Entry:
    """`fault` says why it is none that we take; `opened` gives the bytes."""

    name: str
    folder: bool
    fault: str
    opened: zipfile.ZipExtFile | IO[bytes] | None


class _Bounded(io.BufferedReader):
    """A file of which nobody may ask for more at once than `LARGEST_READ`, whatever a length field in it says."""

    def read(self, size: int | None = -1, /) -> bytes:
        whole = size is None or size < 0
        data = super().read(min(LARGEST_READ + 1, size if size is not None and not whole else LARGEST_READ + 1))
        if len(data) > LARGEST_READ:
            raise _unreadable("its directory is too large")
        return data


def _entries(packed: _Bounded, plain: Path, allowed: int) -> Iterator[_Entry]:
    """What the archive holds. A tar.gz is unpacked to `plain` first: `allowed` bounds what comes out whatever the headers say."""
    start = packed.peek(4)[:4]
    if start in (b"PK\x03\x04", b"PK\x05\x06"):
        yield from _zip_entries(packed)
    elif start[:2] == b"\x1f\x8b":
        with gzip.GzipFile(fileobj=packed) as stream, plain.open("xb") as target:
            while piece := stream.read(PIECE):
                if target.tell() + len(piece) > allowed:
                    raise _too_large("bytes", allowed)
                target.write(piece)
        with _Bounded(io.FileIO(plain)) as file:
            yield from _tar_entries(file)
    else:
        yield from _tar_entries(packed)


def _zip_entries(packed: _Bounded) -> Iterator[_Entry]:
    with zipfile.ZipFile(packed) as opened:
        for info in opened.infolist():
            name = info.orig_filename
            if not info.flag_bits & 0x800:  # no UTF-8 declared: macOS writes it all the same, Chinese Windows writes GB18030
                name = _decoded(name.encode("cp437"))
            kind = stat.S_IFMT(info.external_attr >> 16)
            fault = ""
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                fault = "is a link or a special file"
            elif info.flag_bits & 0x1:
                fault = "is encrypted"
            elif info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                fault = "is compressed by another method than deflate"
            folder = info.filename.endswith("/")  # is_dir() stumbles over an empty name
            yield _Entry(name, folder, fault, None if folder or fault else opened.open(info))


def _tar_entries(file: _Bounded) -> Iterator[_Entry]:
    with tarfile.open(fileobj=file, mode="r:") as opened:
        while (info := opened.next()) is not None:
            name = _decoded(info.name.encode("utf-8", "surrogateescape"))
            plain = info.isreg() and not info.issparse()
            fault = "" if plain or info.isdir() else "is a link or a special file"
            yield _Entry(name, info.isdir(), fault, opened.extractfile(info) if plain else None)
        file.seek(opened.offset)
        if file.read(512).strip(b"\0") or file.tell() < opened.offset + 512:  # tarfile takes damage for the end
            raise _unreadable("it ends in the middle")


def _write(entries: Iterator[_Entry], folder: Path, limits: Limits, allowed: int) -> Iterator[File]:
    total = 0
    for number, entry in enumerate(entries, start=1):
        if number > limits.files:
            raise _too_large("files", limits.files)
        if fault := entry.fault or _leads_out(entry.name):
            raise _unsafe(number, fault)
        if entry.opened is None:
            continue
        name = PurePosixPath(unicodedata.normalize("NFC", entry.name))
        # A package that somebody trains with is no data: the archive is erased once its images are taken in.
        if name.name == "medmesh.toml":
            raise _unsafe(number, "belongs to a training package")
        path = folder / f"{number:06d}"
        with entry.opened as source, path.open("xb") as target:
            while piece := source.read(PIECE):
                if target.tell() == 0 and _is_archive(piece):
                    raise _unsafe(number, "is an archive itself")
                total += len(piece)
                if total > allowed:
                    raise _too_large("bytes", allowed)
                target.write(piece)
        yield File(name, path)


def _leads_out(name: str) -> str:
    """Why a name is none of something inside; empty when it is one. `\\` and `C:` separate and root on other systems."""
    rooted = name.startswith("/") or re.match(r"[A-Za-z]:", name)
    if not name or rooted or "\0" in name or "\\" in name or ".." in name.split("/"):
        return "leads out of the archive"
    return ""


def _is_archive(start: bytes) -> bool:
    """Known by its first bytes; the preamble of a DICOM file may hold anything and is not kept."""
    return start[128:132] != b"DICM" and (start.startswith(_MAGIC) or start[257:262] == b"ustar")


def _decoded(raw: bytes) -> str:
    for encoding in ("utf-8", "gb18030"):
        try:
            return raw.decode(encoding)
        except UnicodeDecodeError:
            continue
    return raw.decode("latin-1")


def _unreadable(reason: str) -> Problem:
    return Problem("ingestion.archive_unreadable", reason=reason)


def _unsafe(entry: int, reason: str) -> Problem:
    return Problem("ingestion.archive_unsafe", entry=entry, reason=reason)


def _too_large(what: str, limit: int) -> Problem:
    return Problem("ingestion.archive_too_large", what=what, limit=limit)
