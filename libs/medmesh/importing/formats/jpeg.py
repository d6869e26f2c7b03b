"""JPEG (ITU-T T.81). Segments are copied or left out; the compressed pixels are not touched.

Kept of the application's segments are JFIF without its thumbnail, Adobe's (which says how colours were turned) and of EXIF nothing but how
the picture is turned: an image lying on its side would be another image.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import BinaryIO

from medmesh.importing.formats.content import Content, Format, bounded, damaged, strings

_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_TABLES = frozenset((0xC4, 0xDB))
_STANDALONE = frozenset((0, 1, *range(0xD0, 0xD8), 0xD8))
_MARKER = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]")
_COLOURS = {1: "grey", 3: "rgb", 4: "cmyk"}


def describe(file: BinaryIO, size: int) -> Content:
    """Size, depth, colour, process; all other segments of applications and comments are identity."""
    identity: list[tuple[str, str]] = []
    meta: dict[str, object] = {}
    data = file.read(bounded(size, "the file"))
    end, tables = 0, b"".join(body for marker, body, _ in _segments(data) if marker in _TABLES)
    for marker, body, after in _segments(data):
        end = after
        if marker in _FRAMES:
            meta = _frame(marker, body) | meta
        elif _of_applications(marker):
            if marker == 0xE1 and (turned := _orientation(body)) > 1:
                meta["turned"] = turned
            if _kept(marker, body) != body:
                identity.append(("COM" if marker == 0xFE else f"APP{marker - 0xE0}", _words(body, tables)))
    if "rows" not in meta:
        raise damaged("SOF", "there is no frame")
    if end < len(data):
        identity.append(("after the end", ""))
    return Content("image", meta, tuple(identity))


def clean(data: bytes) -> bytes:
    """Without them."""
    made = [b"\xff\xd8"]
    for marker, body, _ in _segments(data):
        kept = _kept(marker, body) if _of_applications(marker) else body
        if kept is not None:
            made.append(_written(marker, kept))
    return b"".join(made)


def beside(data: bytes) -> bytes:
    """The segments that may hold words."""
    return b"".join(body for marker, body, _ in _segments(data) if _of_applications(marker) and _kept(marker, body) != body)


def _segments(data: bytes) -> Iterator[tuple[int, bytes, int]]:
    """(marker, content without its length, where it ends); what is coded after a scan's header comes as marker 0. Ends with EOI."""
    if data[:2] != b"\xff\xd8":
        raise damaged("SOI", "this is no JPEG")
    at = 2
    while True:
        if data[at : at + 1] != b"\xff":
            raise damaged("a marker", "the file ends, or other bytes stand where one must be")
        while data[at : at + 1] == b"\xff":  # fill bytes, §B.1.1.2
            at += 1
        if at >= len(data):
            raise damaged("EOI", "the file ends before")
        marker = data[at]
        at += 1
        if marker == 0xD9:
            yield marker, b"", at
            return
        if marker in _STANDALONE:
            raise damaged("a marker", "one that stands within pixels alone")
        length = int.from_bytes(data[at : at + 2], "big")
        if length < 2 or at + length > len(data):
            raise damaged("a segment", "its length is wrong")
        yield marker, data[at + 2 : at + length], at + length
        at += length
        if marker == 0xDA:
            found = _MARKER.search(data, at)
            if found is None:
                raise damaged("the pixels", "the file ends here")
            yield 0, data[at : found.start()], found.start()
            at = found.start()


def _frame(marker: int, body: bytes) -> dict[str, object]:
    if len(body) < 6 or len(body) != 6 + 3 * body[5]:
        raise damaged("SOF", "its length is wrong")
    bits, rows, columns, channels = body[0], int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big"), body[5]
    if not rows or not columns or channels not in _COLOURS or not 2 <= bits <= 16:
        raise damaged("SOF", "a size of 0, or colours or a depth that is not taken")
    bounded(rows * columns * channels * (2 if bits > 8 else 1), "SOF")
    process = {0xC0: "baseline", 0xC1: "extended", 0xC2: "progressive", 0xC3: "lossless"}.get(marker, "other")
    return {"rows": rows, "columns": columns, "bits": bits, "colour": _COLOURS[channels], "process": process}


def _words(body: bytes, tables: bytes) -> str:
    """What is readable; the codes of a thumbnail look so too, and are those of the image."""
    return " ".join(run for run in strings(body) if run.encode() not in tables)


def _of_applications(marker: int) -> bool:
    return 0xE0 <= marker <= 0xEF or marker == 0xFE


def _kept(marker: int, body: bytes) -> bytes | None:
    """What is written of an application's segment."""
    if marker == 0xE0 and body[:5] == b"JFIF\0" and len(body) >= 14:
        return body[:12] + b"\0\0"
    if marker == 0xEE and body[:5] == b"Adobe" and len(body) >= 12:
        return body[:12]
    if marker == 0xE1 and body[:6] == b"Exif\0\0" and (turned := _orientation(body)) > 1:
        return _exif(turned)
    return None


def _exif(turned: int) -> bytes:
    """EXIF with the one tag 0x0112 (TIFF 6.0, Orientation)."""
    return b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01" + bytes((0, turned)) + b"\0\0\0\0\0\0"


def _orientation(body: bytes) -> int:
    """1 to 8, or 0 where the segment does not say."""
    tiff = body[6:]
    order = {b"II": "little", b"MM": "big"}.get(tiff[:2])
    if order is None:
        return 0
    little = order == "little"

    def number(at: int, width: int) -> int:
        return int.from_bytes(tiff[at : at + width], "little" if little else "big")

    start = number(4, 4)
    for place in range(min(number(start, 2), 64)):
        at = start + 2 + 12 * place
        if number(at, 2) == 0x0112 and at + 10 <= len(tiff):
            found = number(at + 8, 2)
            return found if 1 <= found <= 8 else 0
    return 0


def _written(marker: int, body: bytes) -> bytes:
    if marker == 0:
        return body
    if marker == 0xD9:
        return b"\xff\xd9"
    return bytes((0xFF, marker)) + (len(body) + 2).to_bytes(2, "big") + body


JPEG = Format("jpeg", "image/jpeg", (".jpg", ".jpeg"), lambda start: start[:3] == b"\xff\xd8\xff", describe, clean, beside)
