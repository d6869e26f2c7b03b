"""A folder, a zip, a tar, a tar.gz or a single file as one read-only `Source`: nothing is unpacked under a name that somebody else chose.

A folder is walked, a zip's and a tar's directory is read, a tar.gz is unpacked into a nameless temporary file first. Refused as a whole
(`importing.unsafe`): absolute names, `..`, names twice, links that lead out, devices, encrypted members, unknown compression. Refused as
too large: more files or bytes than `Limits`, or many times the archive's own size.
"""

from __future__ import annotations

import errno
import gzip
import io
import os
import re
import stat
import struct
import tarfile
import tempfile
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from medmesh.errors import Problem
from medmesh.importing.port import Source

PIECE = 1 << 20
DAMAGE = (
    zipfile.BadZipFile, gzip.BadGzipFile, tarfile.TarError, zlib.error, struct.error, EOFError, ValueError, RuntimeError, OverflowError,
)  # fmt: skip
"""What the standard library raises for a broken archive; RuntimeError: a compression that zipfile does not know, or a password."""
_GZIP, _ZIP = b"\x1f\x8b", (b"PK\x03\x04", b"PK\x05\x06")
_ONE_FILE = (".npz", ".xlsx", ".docx", ".pptx")  # zips to their programs alone
_LARGEST_DIRECTORY = 256 << 20


@dataclass(frozen=True, slots=True)
class Limits:
    """How much a source may hold: files, bytes when unpacked, and times the archive's own size.

    What unpacks to no more than `slack` bytes is no bomb, whatever its ratio.
    """

    files: int = 5_000_000
    bytes: int = 8 << 40
    ratio: int = 200
    slack: int = 64 << 20


@contextmanager
def opened(path: Path, limits: Limits | None = None, *, archive_only: bool = False) -> Iterator[Source]:
    """The source at `path`; with `archive_only` neither a folder nor a file that is no archive, and a tar.gz is unpacked beside it. Raises
    `Problem`: `importing.unreadable`, `importing.unsafe`, `importing.too_large`, `importing.not_there`."""
    limits = limits or Limits()
    if not path.exists():
        raise Problem("importing.not_there", place=path.name)
    source = _Folder(path, limits) if path.is_dir() and not archive_only else _file(path, limits, archive_only)
    try:
        yield source
    finally:
        source.close()


def _file(path: Path, limits: Limits, archive_only: bool) -> Source:
    with path.open("rb") as file:
        start = file.read(512)
    with _damage_of(path.name):
        if start.startswith(_ZIP) and path.suffix.lower() not in _ONE_FILE:
            return _Zip(path, limits)
        if start[257:262] == b"ustar":
            return _Tar(path, path.open("rb"), limits)
        if start.startswith(_GZIP) and _tar_within(path):
            return _Tar(path, _unpacked(path, limits, path.parent if archive_only else None), limits)
    if archive_only:
        raise Problem("importing.unreadable", place=path.name, reason="it is neither a zip nor a tar")
    return _Single(path)


@contextmanager
def _damage_of(place: str) -> Iterator[None]:
    """What a broken archive raises, as a `Problem` that says where."""
    try:
        yield
    except DAMAGE as error:
        raise Problem("importing.unreadable", place=place, reason=type(error).__name__) from None
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise Problem("importing.unreadable", place=place, reason="a directory that points before the file") from None


class _Named:
    """Names and sizes, checked as they come."""

    def __init__(self, name: str, limits: Limits, packed: int | None = None) -> None:
        self.name = name
        self._limits = limits
        self._allowed = limits.bytes if packed is None else min(limits.bytes, max(limits.slack, limits.ratio * packed))
        self._sizes: dict[str, int] = {}
        self._total = 0
        self._sorted: tuple[str, ...] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        if self._sorted is None:
            self._sorted = tuple(sorted(self._sizes))
        return self._sorted

    def size(self, name: str) -> int:
        return self._sizes[name]

    def close(self) -> None:
        """Nothing to give back."""

    def _take(self, raw: str, size: int) -> str | None:
        """The name under which an entry is known, or None for litter."""
        name = unicodedata.normalize("NFC", raw)
        while name.startswith("./"):
            name = name[2:]
        parts = name.split("/")
        if not name or name.startswith("/") or re.match(r"[A-Za-z]:", name) or "\\" in name or "\0" in name or ".." in parts:
            raise _unsafe(self.name, len(self._sizes), "leads out")
        if litter(name):
            return None
        if name in self._sizes:
            raise _unsafe(self.name, len(self._sizes), "is there twice")
        self._sizes[name] = size
        self._total += size
        if len(self._sizes) > self._limits.files:
            raise Problem("importing.too_large", place=self.name, what="files", limit=self._limits.files)
        if self._total > self._allowed:
            raise Problem("importing.too_large", place=self.name, what="bytes", limit=self._allowed)
        return name


class _Folder(_Named):
    def __init__(self, root: Path, limits: Limits) -> None:
        super().__init__(root.name, limits)
        self._root = root
        self._real = root.resolve()
        self._spelt: dict[str, str] = {}  # as the disk spells it: macOS decomposes
        self._walk("")

    def _walk(self, within: str) -> None:
        with os.scandir(self._root / within) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                name = f"{within}/{entry.name}" if within else entry.name
                if litter(name):
                    continue
                if entry.is_symlink():
                    target = Path(entry.path).resolve()
                    if not target.is_relative_to(self._real) or not target.is_file():
                        raise Problem("importing.unsafe", place=name, entry=len(self._sizes) + 1, reason="is a link that leads out")
                if entry.is_dir():
                    self._walk(name)
                elif stat.S_ISREG(entry.stat().st_mode):
                    if (taken := self._take(name, entry.stat().st_size)) not in (None, name):
                        self._spelt[str(taken)] = name
                else:
                    raise Problem("importing.unsafe", place=name, entry=len(self._sizes) + 1, reason="is no plain file")

    def open(self, name: str) -> BinaryIO:
        self._sizes[name]  # KeyError for a name that is not there
        return (self._root / self._spelt.get(name, name)).open("rb")


class _Single(_Named):
    """One file that is no archive."""

    def __init__(self, path: Path) -> None:
        super().__init__(path.name, Limits())
        self._path = path
        self._take(path.name, path.stat().st_size)

    def open(self, name: str) -> BinaryIO:
        self._sizes[name]  # KeyError for a name that is not there
        return self._path.open("rb")


class _Zip(_Named):
    def __init__(self, path: Path, limits: Limits) -> None:
        super().__init__(path.name, limits, path.stat().st_size)
        self._members: dict[str, zipfile.ZipInfo] = {}
        self._file = Bounded(path.open("rb"))
        try:
            self._opened = zipfile.ZipFile(self._file)
            self._index()
        except BaseException:
            self._file.close()
            raise

    def _index(self) -> None:
        for number, info in enumerate(self._opened.infolist()):
            if info.filename.endswith("/"):
                continue
            if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
                raise _unsafe(self.name, number, "is a link or a special file")
            if info.flag_bits & 0x1:
                raise _unsafe(self.name, number, "is encrypted")
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise _unsafe(self.name, number, "is compressed by another method than deflate")
            if (name := self._take(_zip_name(info), info.file_size)) is not None:
                self._members[name] = info

    def open(self, name: str) -> BinaryIO:
        member = self._members[name]
        with _damage_of(name):
            return _watched(self._opened.open(member), name)

    def close(self) -> None:
        self._opened.close()
        self._file.close()


class _Tar(_Named):
    def __init__(self, path: Path, file: BinaryIO, limits: Limits) -> None:
        super().__init__(path.name, limits, path.stat().st_size)
        self._file = file
        self._places: dict[str, int] = {}
        try:
            self._index()
        except BaseException:
            file.close()
            raise

    def _index(self) -> None:
        with tarfile.open(fileobj=self._file, mode="r:") as archive:
            number = 0
            while (info := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # tarfile keeps every header otherwise
                number += 1
                if info.isdir():
                    continue
                if not info.isreg() or info.issparse():
                    raise _unsafe(self.name, number, "is a link or a special file")
                if (name := self._take(_decoded(info.name.encode("utf-8", "surrogateescape")), info.size)) is not None:
                    self._places[name] = info.offset_data
            self._file.seek(archive.offset)
            if self._file.read(512).strip(b"\0") or self._file.tell() < archive.offset + 512:  # tarfile takes damage for the end
                raise Problem("importing.unreadable", place=self.name, reason="it ends in the middle")

    def open(self, name: str) -> BinaryIO:
        return io.BufferedReader(_Part(self._file, self._places[name], self._sizes[name]))

    def close(self) -> None:
        self._file.close()


class _Part(io.RawIOBase):
    """A stretch of a file, read at its own place."""

    name = ""  # pydicom looks for one

    def __init__(self, file: BinaryIO, start: int, size: int) -> None:
        self._fd, self._start, self._size, self._at = file.fileno(), start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = max(0, offset + (0, self._at, self._size)[whence])
        return self._at

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer)  # type: ignore[arg-type]
        wanted = min(len(view), max(0, self._size - self._at))
        data = os.pread(self._fd, wanted, self._start + self._at)
        view[: len(data)] = data
        self._at += len(data)
        return len(data)


class Bounded(io.RawIOBase):
    """A file of which nobody asks for more at once than it has and a zip's directory may have, whatever a length field says."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._size = file, file.seek(0, io.SEEK_END)
        file.seek(0)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(0, self._size - self._file.tell())
        wanted = left if size is None or size < 0 else min(size, left)
        if wanted > _LARGEST_DIRECTORY:
            raise zipfile.BadZipFile("its directory is too large")
        return self._file.read(wanted)

    def close(self) -> None:
        self._file.close()
        super().close()


class _Watched(io.RawIOBase):
    """A member of a zip whose damage is said with its name."""

    name = ""  # pydicom looks for one

    def __init__(self, member: BinaryIO, name: str) -> None:
        self._member, self._name = member, name

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._member.seek(offset, whence)

    def tell(self) -> int:
        return self._member.tell()

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer)  # type: ignore[arg-type]
        with _damage_of(self._name):
            data = self._member.read(len(view))
        view[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._member.close()
        super().close()


def _watched(member: object, name: str) -> BinaryIO:
    return io.BufferedReader(_Watched(member, name), PIECE)  # type: ignore[arg-type]


def litter(name: str) -> bool:
    """What desktops add by themselves: `._x`, `.DS_Store`, `__MACOSX/`, `Thumbs.db`, and every other hidden file."""
    parts = name.split("/")
    return "__MACOSX" in parts or parts[-1] in ("Thumbs.db", "desktop.ini") or any(part.startswith(".") and part != "." for part in parts)


def _tar_within(path: Path) -> bool:
    with gzip.open(path) as stream:
        return stream.read(512)[257:262] == b"ustar"


def _unpacked(path: Path, limits: Limits, beside: Path | None) -> BinaryIO:
    """A tar.gz as a tar that has no name; what comes out is bounded whatever its headers say."""
    allowed = min(limits.bytes, max(limits.slack, limits.ratio * path.stat().st_size))
    plain = tempfile.TemporaryFile(dir=beside)  # noqa: SIM115
    try:
        with gzip.open(path) as stream:
            while piece := stream.read(PIECE):
                if plain.tell() + len(piece) > allowed:
                    raise Problem("importing.too_large", place=path.name, what="bytes", limit=allowed)
                plain.write(piece)
        plain.seek(0)
    except BaseException:
        plain.close()
        raise
    return plain


def _zip_name(info: zipfile.ZipInfo) -> str:
    """Without the flag of UTF-8, macOS writes it all the same, Chinese Windows GB18030."""
    return info.orig_filename if info.flag_bits & 0x800 else _decoded(info.orig_filename.encode("cp437"))


def _decoded(raw: bytes) -> str:
    for encoding in ("utf-8", "gb18030"):
        try:
            return raw.decode(encoding)
        except UnicodeDecodeError:
            continue
    return raw.decode("latin-1")


def _unsafe(source: str, number: int, reason: str) -> Problem:
    return Problem("importing.unsafe", place=source, entry=number + 1, reason=reason)
