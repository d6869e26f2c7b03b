"""The header of a DICOM object as DICOM JSON (PS3.18 F), in one pass over its bytes up to the pixel data and without pydicom's data sets:
reading an object's header is what costs most of taking it in, so it is done once and what it says is kept.

What is large (`BULK_BYTES` and more of binary values, `TEXT_BYTES` of text) is left out and named by a BulkDataURI: `OFFSET+LENGTH`, its
place in the data set as it is encoded. Pixel data are `7FE00010`. Elements behind the pixel data are not read. Every URI begins
with `MARK`, a character that JSON text holds nowhere else; who answers puts the address of the instance there.
"""

from __future__ import annotations

import base64
import re
import struct
import zlib
from dataclasses import dataclass
from json.encoder import encode_basestring as quote
from math import isfinite
from typing import Protocol

from medmesh.archive.charsets import Decode, decoder, undeclared
from medmesh.archive.representations import (
    ALL,
    CODED,
    FREE,
    LONG,
    NUMERIC,
    SHORT,
    SPELLINGS,
    TEXT,
    UNBOUND,
    WIDTHS,
    head,
    private,
    repeated,
    standard,
)
from medmesh.errors import Problem

MARK = "\x01"
BULK_BYTES = 1024
NUMBERS_BYTES = 4096
TEXT_BYTES = 64 * 1024
LARGEST = 64 * 2**20
"""No header has more bytes outside bulk values."""
DEEPEST = 32
READ = 64 * 1024

EXPLICIT, IMPLICIT, BIG, DEFLATED = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"
_UNDEFINED = 0xFFFFFFFF
_PIXELS = (0x7FE00008, 0x7FE00009, 0x7FE00010)
_ITEM, _ITEM_END, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
_SPECIAL = (0x7FE0, 0xFFFE)
"""Groups of pixels, and of what delimits."""
SHORT_BYTES = 1024
"""A value that is no longer is never a bulk value."""


class Readable(Protocol):
    """Gives up to so many bytes; none at the end."""

    def read(self, size: int = -1, /) -> bytes:
        """See above."""


@dataclass(frozen=True, slots=True)
class Header:
    """A header: `members` are its JSON members in order of their tags, e.g. `"00080060":{"vr":"CS","Value":["CT"]}`; `values` the text of
    its single values by tag, decoded, with backslashes between several; `pixels` where the value of the pixel data begins, counted from the
    beginning of the file (of the data set when it is deflated), `pixel_bytes` its length, None when it is encapsulated."""

    syntax: str
    members: dict[int, str]
    values: dict[int, str]
    pixels: int = 0
    pixel_bytes: int | None = 0


def read(source: Readable, wanted: frozenset[int] = frozenset(), syntax: str | None = None) -> Header:
    """The header of a file (PS3.10, or without its preamble), or of a data set in `syntax`; of `wanted` elements the text too.

    Raises `Problem`: `imaging.not_dicom`, `imaging.unreadable` with the place and never a value.
    """
    try:
        return _Reader(source, wanted).header(syntax)
    except (struct.error, zlib.error, RecursionError, ValueError, OverflowError) as error:
        raise _unreadable(type(error).__name__) from None


def _unreadable(reason: str) -> Problem:
    return Problem("imaging.unreadable", reason=reason)


class _Inflated:
    """What a deflated data set holds (PS3.5 A.5)."""

    def __init__(self, source: Readable, begun: bytes) -> None:
        self._source, self._rest = source, begun
        self._inflater = zlib.decompressobj(-zlib.MAX_WBITS)

    def read(self, size: int = -1, /) -> bytes:
        """See `Readable`."""
        while not self._inflater.eof:
            self._rest = self._rest or self._source.read(READ)
            found = self._inflater.decompress(self._rest, size if size > 0 else READ)
            ended = not self._rest
            self._rest = self._inflater.unconsumed_tail
            if found or ended:
                return found
        return b""


class _Reader:
    def __init__(self, source: Readable, wanted: frozenset[int]) -> None:
        self.source, self.wanted = source, wanted
        self.data, self.pos, self.base = b"", 0, 0  # what was read and is not done with; where in it; where it lies in the source
        self.kept = 0
        self.values: dict[int, str] = {}
        self.implicit, self.order = False, "<"
        self.decode: Decode = undeclared
        self.signed = False
        self.creators: dict[int, str] = {}
        self.pixels, self.pixel_bytes = 0, 0

    # bytes

    def fill(self, size: int) -> bool:
        """Have `size` bytes from here on, or all that are left; whether there are as many."""
        missing = size - (len(self.data) - self.pos)
        if missing <= 0:
            return True
        parts = [self.data[self.pos :]]
        self.base += self.pos
        self.pos = 0
        while missing > 0 and (part := self.source.read(max(missing, READ))):
            parts.append(part)
            missing -= len(part)
        self.data = b"".join(parts)
        return missing <= 0

    def take(self, size: int) -> bytes:
        """The next bytes."""
        self.kept += size
        if self.kept > LARGEST:
            raise _unreadable("the header is too large")
        if self.pos + size > len(self.data) and not self.fill(size):
            raise _unreadable("the header is cut short")
        found = self.data[self.pos : self.pos + size]
        self.pos += size
        return found

    def skip(self, size: int) -> None:
        """Past what is not looked at."""
        while size > 0:
            step = min(size, len(self.data) - self.pos)
            self.pos += step
            size -= step
            if size and not self.fill(1):
                raise _unreadable("a value is cut short")

    @property
    def place(self) -> int:
        """Where the next byte lies in the source."""
        return self.base + self.pos

    # structure

    def header(self, syntax: str | None) -> Header:
        """See `read`."""
        bare = False
        if syntax is None:
            self.fill(140)
            if self.data[128:132] == b"DICM":
                self.pos = 132
            elif self.data[:2] not in (b"\x02\x00", b"\x08\x00", b"\x00\x08"):
                raise Problem("imaging.not_dicom")
            else:
                bare = True
            syntax = self.meta()
        if syntax == DEFLATED:
            self.source, self.data, self.pos, self.base = _Inflated(self.source, self.data[self.pos :]), b"", 0, 0
        self.order = ">" if syntax == BIG else "<"
        self.fill(8)
        start = self.data[self.pos : self.pos + 8]
        if syntax == "" and start[:2] == b"\x00\x08":
            syntax, self.order = BIG, ">"
        self.implicit = self.order == "<" and start[4:6] not in ALL  # what is there, whatever is declared
        members = self.elements(None, 0)
        if bare and 0x00080016 not in members:
            raise Problem("imaging.not_dicom")  # any bytes can be taken for elements
        return Header(syntax or (IMPLICIT if self.implicit else EXPLICIT), members, self.values, self.pixels, self.pixel_bytes)

    def meta(self) -> str:
        """Past group 0002, which is in Explicit VR Little Endian; the transfer syntax it names."""
        syntax = ""
        while self.fill(8) and self.data[self.pos : self.pos + 2] == b"\x02\x00":
            _, element, vr, length = struct.unpack_from("<HH2sH", self.data, self.pos)
            self.pos += 8
            if vr in LONG:
                (length,) = struct.unpack("<I", self.take(4))
            elif vr not in ALL:  # some write it implicitly
                (length,) = struct.unpack_from("<I", self.data, self.pos - 4)
            value = self.take(length)
            if element == 0x10:
                syntax = value.decode("latin-1").strip("\0 ")
        if syntax and not re.fullmatch(r"[0-9.]{1,64}", syntax):
            raise _unreadable("the transfer syntax is unknown")
        return syntax

    def elements(self, end: int | None, depth: int) -> dict[int, str]:
        """The elements up to the place `end`, or to what delimits an item, or to the pixel data or the source's end."""
        if depth > DEEPEST:
            raise _unreadable("nested too deeply")
        found: dict[int, str] = {}
        implicit, last, ordered = self.implicit, -1, True
        unpack = struct.Struct(f"{self.order}HH2sH").unpack_from
        long = struct.Struct(f"{self.order}I").unpack_from
        while end is None or self.base + self.pos < end:
            if self.pos + 12 > len(self.data):
                self.fill(12)
                if len(self.data) - self.pos < 8:
                    if depth:
                        raise _unreadable("an item is cut short")
                    break
            data, pos = self.data, self.pos
            group, element, vr, length = unpack(data, pos)
            tag = group << 16 | element
            if (
                vr in SHORT
                and not implicit
                and length <= SHORT_BYTES
                and group not in _SPECIAL
                and element
                and pos + 8 + length <= len(data)
            ):
                # What most elements are. What follows says the same of all the others.
                ordered, last = ordered and tag > last, tag
                if length:
                    self.kept += length
                    if self.kept > LARGEST:
                        raise _unreadable("the header is too large")
                    self.pos = pos + 8 + length
                    raw = data[pos + 8 : self.pos]
                    found[tag] = f"{head(tag, vr)}{self.text(tag, vr, raw, depth) if vr in TEXT else self.numbers(tag, vr, raw)}}}"
                else:
                    self.pos = pos + 8
                    found[tag] = f"{head(tag, vr)}}}"
                continue
            if group == 0xFFFE:
                self.pos += 8
                if tag == _ITEM_END and depth:
                    break
                if depth == 0:
                    break  # nothing that belongs here
                continue
            if implicit or (vr not in ALL and not (vr.isalpha() and vr.isupper())):
                vr = b""
                (length,) = long(data, pos + 4)
                self.pos = pos + 8
            elif vr in LONG or vr not in ALL:  # a kind of value that is not known yet has a long length (PS3.5 §7.1.2)
                if pos + 12 > len(data):
                    raise _unreadable("the header is cut short")
                (length,) = long(data, pos + 8)
                self.pos = pos + 12
                if vr not in ALL:
                    vr = b"UN"
            else:
                self.pos = pos + 8
            if not vr or vr == b"UN":
                vr = self.kind(tag, vr)
            if depth == 0 and tag in _PIXELS:
                found[tag] = f'{head(tag, vr)},"BulkDataURI":"{MARK}{tag:08X}"}}'
                self.pixels, self.pixel_bytes = self.place, None if length == _UNDEFINED else length  # type: ignore[assignment]
                break
            if tag <= last:
                ordered = False
            last = tag
            if element == 0:
                self.skip(length)
                continue
            said = self.value(tag, vr, length, depth)
            found[tag] = f"{head(tag, b'SQ' if length == _UNDEFINED and vr == b'UN' else vr)}{said}}}"
        return found if ordered else dict(sorted(found.items()))

    def value(self, tag: int, vr: bytes, length: int, depth: int) -> str:
        """`,"Value":[...]`, `,"InlineBinary":"..."`, `,"BulkDataURI":"..."`, or nothing."""
        if length == _UNDEFINED:
            if vr in (b"OB", b"OW"):
                return self.fragments()
            return self.items(None, depth, implicitly=vr == b"UN")
        if vr == b"SQ":
            return self.items(self.place + length, depth)
        if length == 0:
            return ""
        most = TEXT_BYTES if vr in TEXT else NUMBERS_BYTES if vr in NUMERIC else BULK_BYTES
        if length > most:
            place = self.place
            self.skip(length)
            return f',"BulkDataURI":"{MARK}{place}+{length}"'
        raw = self.take(length)
        if vr in TEXT:
            return self.text(tag, vr, raw, depth)
        if vr in NUMERIC:
            return self.numbers(tag, vr, raw)
        width = WIDTHS[vr]
        if self.order == ">" and width > 1:
            raw = b"".join(raw[at : at + width][::-1] for at in range(0, len(raw), width))
        return f',"InlineBinary":"{base64.b64encode(raw).decode()}"'

    def items(self, end: int | None, depth: int, *, implicitly: bool = False) -> str:
        """The items of a sequence up to the place `end`, or to its delimiter."""
        made: list[str] = []
        before = self.implicit, self.order, self.decode, self.signed, self.creators
        if implicitly:  # an unknown sequence (PS3.5 §6.2.2 note 2)
            self.implicit, self.order = True, "<"
        while end is None or self.place < end:
            group, element, length = struct.unpack(f"{self.order}HHI", self.take(8))
            tag = group << 16 | element
            if tag == _SEQUENCE_END:
                break
            if tag != _ITEM:
                raise _unreadable("a sequence without items")
            inner = None if length == _UNDEFINED else self.place + length
            if inner is not None and end is not None and inner > end:
                raise _unreadable("an item is longer than its sequence")
            self.creators = {}
            made.append("{" + ",".join(self.elements(inner, depth + 1).values()) + "}")
            if inner is not None and self.place != inner:
                raise _unreadable("an item's length is wrong")
            self.decode, self.signed = before[2], before[3]
        self.implicit, self.order, self.decode, self.signed, self.creators = before
        return f',"Value":[{",".join(made)}]' if made else ""

    def fragments(self) -> str:
        """Past an encapsulated value that is not the object's own pixel data (of an icon)."""
        start = self.place
        while True:
            group, element, length = struct.unpack(f"{self.order}HHI", self.take(8))
            if group << 16 | element == _SEQUENCE_END:
                return f',"BulkDataURI":"{MARK}{start}+{self.place - start}"'
            if group << 16 | element != _ITEM or length == _UNDEFINED:
                raise _unreadable("fragments without items")
            self.skip(length)

    # values

    def kind(self, tag: int, vr: bytes) -> bytes:
        """The kind of a value that does not say it, by the dictionaries (PS3.6; of makers, as far as they are known)."""
        found = standard().get(tag)
        if found is None:
            group, element = tag >> 16, tag & 0xFFFF
            if element == 0:
                return b"UL"
            if group & 1:
                if 0x10 <= element <= 0xFF:
                    return b"LO"
                if vr:
                    return vr
                return private(group, element, self.creators.get(tag >> 8, ""))
            found = repeated(tag)
        if b" or " not in found:
            return found
        if found.endswith(b"OW"):
            return b"OW"
        return b"SS" if self.signed else b"US"

    def text(self, tag: int, vr: bytes, raw: bytes, depth: int) -> str:
        """Of a value of characters."""
        if raw.isascii() and b"\x1b" not in raw:
            text = raw.decode("ascii")
        else:
            text = self.decode(raw) if vr in CODED or b"\x1b" in raw else undeclared(raw)
        text = text.rstrip("\0 ") if vr in FREE else text.strip("\0 ")
        parts = [part.strip("\0 ") for part in text.split("\\")] if "\\" in text and vr not in FREE else None
        if tag == 0x00080005:
            self.decode = decoder(tuple(parts or (text,)))
            text, parts = "ISO_IR 192", None  # JSON is in UTF-8
        elif tag >> 16 & 1 and 0x10 <= tag & 0xFFFF <= 0xFF:
            self.creators[tag >> 16 << 8 | tag & 0xFF] = text
        if depth == 0 and tag in self.wanted:
            self.values[tag] = text
        if not text or (vr == b"PN" and not text.strip("^=\\ ")):
            return ""
        spell = SPELLINGS.get(vr, quote)
        if parts is None:
            return f',"Value":[{spell(text)}]'
        return f',"Value":[{",".join([spell(part) if part else "null" for part in parts])}]'

    def numbers(self, tag: int, vr: bytes, raw: bytes) -> str:
        """Of a value of binary numbers."""
        letter, width = NUMERIC[vr]
        count = len(raw) // width
        found = struct.unpack_from(f"{self.order}{count}{letter}", raw)
        if tag == 0x00280103 and found:
            self.signed = found[0] == 1
        if count == 1 and letter not in "fd":  # also half an AT, which says nothing
            return f',"Value":[{found[0]}]' if vr != b"AT" else ""
        if vr == b"AT":
            made = [f'"{found[at]:04X}{found[at + 1]:04X}"' for at in range(0, count - 1, 2)]
        elif letter in "fd":
            made = [repr(one) if isfinite(one) else quote(UNBOUND[repr(one)]) for one in found]
        else:
            made = [str(one) for one in found]
        return f',"Value":[{",".join(made)}]' if made else ""
