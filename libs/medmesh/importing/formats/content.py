"""What every file format here has in common: it is known by its bytes, described from its header, and stripped of who it is about.

Parsers are our own where a file may be hostile: each length is checked against the bytes that are there before anything is made of it, no
pickle is loaded, no extension of a header is run. Messages name a place and never a value: a value may be a patient's name.
"""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from medmesh.errors import Problem

START = 4096
"""Bytes from a file's beginning that its format is recognised by."""
LARGEST = 2 << 30
"""Bytes of one decoded item: a small file may ask for any amount of memory."""
MOST_TEXT = 1 << 20
"""Bytes of text (comments, metadata) taken from one file."""
THIS = "the file"
"""Its place in an error, until whoever opened it says its name."""

_RUN = re.compile(r"[^\x00-\x1f\x7f\ufffd]{4,}")


@dataclass(frozen=True, slots=True)
class Content:
    """What stands in one file, read from its header. `kind` is an item's kind; `identity` are fields that may tell who somebody is, with
    their text; `labels` are values of the file that are labels, by name."""

    kind: str
    meta: Mapping[str, Any]
    identity: tuple[tuple[str, str], ...] = ()
    labels: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Format:
    """A file format. `matches` sees the first `START` bytes; `describe` an open file and its size in bytes, which it reads no further
    than it must; `clean` a whole file, and answers it without identity, its samples bit for bit the same. `names` are the usual endings,
    which decide nothing: a file that is named otherwise is told so. `text(cleaned)` are the bytes beside the samples, for the verifier.
    All raise `Problem` (`formats.*`)."""

    name: str
    media_type: str
    names: tuple[str, ...]
    matches: Callable[[bytes], bool]
    describe: Callable[[BinaryIO, int], Content]
    clean: Callable[[bytes], bytes]
    text: Callable[[bytes], bytes]


def damaged(where: str, reason: str, **found: int) -> Problem:
    """The file breaks its format at `where`, for `reason` (both in English, without values); `line` in a text file, from 1."""
    return Problem("formats.damaged", place=THIS, where=where, reason=reason, **found)


def unsupported(what: str) -> Problem:
    """The file is what it should be, and of a kind that is not taken."""
    return Problem("formats.unsupported", place=THIS, what=what)


def exactly(file: BinaryIO, count: int, where: str) -> bytes:
    """The next `count` bytes. Raises `formats.damaged` when the file ends before."""
    data = file.read(count)
    if len(data) != count:
        raise damaged(where, "the file ends here")
    return data


def bounded(count: int, where: str) -> int:
    """`count` bytes, if they may be decoded at once."""
    if count < 0:
        raise damaged(where, "a negative size")
    if count > LARGEST:
        raise Problem("formats.too_large", place=THIS, where=where)
    return count


class Inflated(io.RawIOBase):
    """A gzip file as its content, forward only, at most `LARGEST` bytes. Raises `formats.damaged` or `formats.too_large`."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self._file, self._inflater, self._total = file, zlib.decompressobj(zlib.MAX_WBITS | 16), 0
        self._rest, self._ended = b"", False

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        """As io.RawIOBase asks."""
        while not self._ended:
            if not self._rest:
                self._rest = self._file.read(1 << 16)
                if not self._rest:
                    raise damaged("the compressed data", "the file ends here")
            try:
                made = self._inflater.decompress(self._rest, len(target))
            except zlib.error:
                raise damaged("the compressed data", "it cannot be inflated") from None
            self._rest = self._inflater.unconsumed_tail
            if self._inflater.eof:
                self._rest = self._inflater.unused_data or self._file.read(1 << 16)
                if self._rest[:2] == b"\x1f\x8b":  # bgzip writes many members
                    self._inflater = zlib.decompressobj(zlib.MAX_WBITS | 16)
                else:
                    self._ended = True
            if made:
                self._total += len(made)
                if self._total > LARGEST:
                    raise Problem("formats.too_large", place=THIS, where="the compressed data")
                target[: len(made)] = made
                return len(made)
        return 0


def is_gzip(data: bytes) -> bool:
    """Whether `data` begins like a gzip file (RFC 1952 §2.3.1)."""
    return data[:3] == b"\x1f\x8b\x08"


def inflated(data: bytes) -> bytes:
    """The content of a gzip file, or `data` if it is none."""
    return io.BufferedReader(Inflated(io.BytesIO(data)), 1 << 20).read() if is_gzip(data) else data


def beginning(data: bytes, count: int) -> bytes:
    """The first bytes of a file or, if it is compressed, of its content; what cannot be inflated is empty."""
    if not is_gzip(data):
        return data[:count]
    try:
        return zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(data, count)
    except zlib.error:
        return b""


def gzip_identity(start: bytes) -> tuple[tuple[str, str], ...]:
    """The name and comment that a gzip header may hold (RFC 1952 §2.3): whose scan it is, often."""
    found, at = [], 10
    flags = start[3] if len(start) > 3 else 0
    if flags & 4:
        at += 2 + int.from_bytes(start[at : at + 2], "little")
    for bit, name in ((8, "gzip name"), (16, "gzip comment")):
        if flags & bit:
            end = start.find(b"\0", at)
            end = len(start) if end < 0 else end
            found.append((name, start[at:end].decode("latin-1")))
            at = end + 1
    return tuple(found)


def zipped(data: bytes) -> bytes:
    """`data` as a gzip file without a name or a time: equal data give equal files."""
    packer = zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS)
    body = packer.compress(data) + packer.flush()
    return b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + body + zlib.crc32(data).to_bytes(4, "little") + (len(data) & 0xFFFFFFFF).to_bytes(4, "little")


def strings(blob: bytes) -> Iterator[str]:
    """Runs of at least 4 printable characters in bytes whose structure is somebody's own (EXIF, private chunks)."""
    for encoding in ("utf-8", "utf-16-le"):
        for found in _RUN.findall(blob[:MOST_TEXT].decode(encoding, errors="replace")):
            if encoding == "utf-8" or found.isascii():
                yield found.strip()


def text(raw: bytes) -> str:
    """A text field of a header: up to its first NUL, without blanks around, in UTF-8, else GB18030, else Latin-1."""
    raw = raw.split(b"\0", 1)[0].strip()
    for encoding in ("utf-8", "gb18030"):
        try:
            return raw.decode(encoding)
        except UnicodeDecodeError:
            continue
    return raw.decode("latin-1")
