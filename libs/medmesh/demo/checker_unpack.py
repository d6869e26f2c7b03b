"""What `checker.py scan` can open: streams and archives known by how they begin, wherever in a file they begin."""

from __future__ import annotations

import bz2
import lzma
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import accumulate
from typing import Any

PIECE = 1 << 26  # unpacked bytes held at a time
PNG = b"\x89PNG\r\n\x1a\n"
ZIP = b"PK\x03\x04"
STREAMS: dict[str, tuple[bytes, Callable[[], Any]]] = {
    "gzip": (rb"\x1f\x8b\x08", partial(zlib.decompressobj, 31)),
    "zlib": (rb"x[\x01\x5e\x9c\xda]", zlib.decompressobj),
    "bz2": (rb"BZh[1-9]1AY&SY", bz2.BZ2Decompressor),
    "xz": (rb"\xfd7zXZ\x00", partial(lzma.LZMADecompressor, lzma.FORMAT_XZ)),
    "zip": (re.escape(ZIP), partial(zlib.decompressobj, -15)),
    "png": (re.escape(PNG), zlib.decompressobj),
}
# One pattern each: a pattern that begins with a literal is searched ten times faster than an alternation of them.
MAGICS = {kind: re.compile(magic, re.DOTALL) for kind, (magic, _) in STREAMS.items()}
BROKEN = (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError)


def unpack(decoder: Callable[[], Any], view: memoryview, overlap: int) -> Iterator[bytes]:
    """What the stream at the start of `view` holds, in pieces that repeat the last `overlap` bytes of the one before.

    A stream that breaks off gives what came before the break; it is then fed byte by byte, because a decoder that fails
    drops what it made of the last feed.
    """
    for step in (1 << 16, 1):
        stream, made, position = decoder(), bytearray(), 0
        try:
            while position < len(view) and not stream.eof:
                made += stream.decompress(view[position : position + step])
                position += step
                if len(made) > PIECE:
                    yield bytes(made)
                    made = made[len(made) - overlap :]
        except BROKEN:
            if step > 1:
                continue
        yield bytes(made)
        return


def png_chunks(view: memoryview) -> tuple[bytes, bytes, int]:
    """IHDR, all IDAT joined, and where the first IDAT's data starts, of the PNG at the start of `view`."""
    header, data, first, position = b"", [], 0, len(PNG)
    while position + 8 <= len(view):
        length, kind = int.from_bytes(view[position : position + 4], "big"), bytes(view[position + 4 : position + 8])
        content = view[position + 8 : position + 8 + length]
        if kind == b"IHDR":
            header = bytes(content)
        elif kind == b"IDAT":
            first = first or position + 8
            data.append(bytes(content))
        elif kind == b"IEND":
            break
        position += 12 + length
    return header, b"".join(data), first


def png_raster(header: bytes, filtered: bytes) -> bytes:
    """Undo the line filters (PNG specification, clause 9): the rows of the image. Interlaced or malformed data is given as it is."""
    if len(header) != 13 or header[12]:
        return filtered
    bits = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}.get(header[9], 1) * header[8]
    stride, pixel = -(-int.from_bytes(header[:4], "big") * bits // 8), max(1, bits // 8)
    if not 0 < stride < len(filtered):
        return filtered
    rows, above = [], bytes(stride)
    for start in range(0, len(filtered), stride + 1):
        row = bytearray(filtered[start + 1 : start + 1 + stride])
        _unfilter(filtered[start], row, above, pixel)
        above = bytes(row).ljust(stride, b"\0")
        rows.append(bytes(row))
    return b"".join(rows)


def _unfilter(kind: int, row: bytearray, above: bytes, pixel: int) -> None:
    if kind == 1:
        for lane in range(pixel):
            row[lane::pixel] = bytes(total & 255 for total in accumulate(row[lane::pixel]))
    elif kind == 2:
        row[:] = bytes((value + up) & 255 for value, up in zip(row, above, strict=False))
    elif kind in (3, 4):
        for lane in range(pixel):
            row[lane::pixel] = (_average if kind == 3 else _paeth)(row[lane::pixel], above[lane::pixel])


def _average(row: bytearray, above: bytes) -> bytearray:
    left = 0
    for place, up in zip(range(len(row)), above, strict=False):
        row[place] = left = (row[place] + (left + up >> 1)) & 255
    return row


def _paeth(row: bytearray, above: bytes) -> bytearray:
    """The nearest of left, up and corner to left + up - corner; written out because it runs once per pixel."""
    left = corner = 0
    for place, up in zip(range(len(row)), above, strict=False):
        to_left, to_up = up - corner, left - corner
        to_corner = abs(to_left + to_up)
        to_left, to_up = abs(to_left), abs(to_up)
        guess = left if to_left <= to_up and to_left <= to_corner else up if to_up <= to_corner else corner
        row[place] = left = (row[place] + guess) & 255
        corner = up
    return row


def zip_member(view: memoryview) -> tuple[int, str]:
    """Where the data of the member whose local header starts `view` begins, 0 for nothing to unpack, and what is unsupported.

    A stored member lies open in the file, and bzip2 within a zip has its own magic: both are met by the search itself.
    """
    flags, method = int.from_bytes(view[6:8], "little"), int.from_bytes(view[8:10], "little")
    if method > 99 or method in (0, 12):  # above 99 nothing is assigned: four bytes that look like a header by chance
        return 0, ""
    if flags & 1:
        return 0, "encrypted zip member"
    if method != 8:
        return 0, f"zip compression method {method}"
    return 30 + int.from_bytes(view[26:28], "little") + int.from_bytes(view[28:30], "little"), ""


def open_container(kind: str, content: memoryview, overlap: int) -> tuple[Iterable[bytes], int, str]:
    """What the container of this kind at the start of `content` holds, in pieces that overlap by `overlap` bytes; the offset
    of a stream in it that need not be opened again, or 0; and what of it cannot be opened, or "".
    """
    decoder = STREAMS[kind][1]
    if kind == "png":
        header, data, first = png_chunks(content)
        return [png_raster(header, b"".join(unpack(decoder, memoryview(data), 0)))], first, ""
    if kind == "zip":
        start, unsupported = zip_member(content)
        return (unpack(decoder, content[start:], overlap) if start else []), 0, unsupported
    return unpack(decoder, content, overlap), 0, ""
