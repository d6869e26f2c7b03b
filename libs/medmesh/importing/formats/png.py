"""PNG (W3C Portable Network Graphics, 3rd edition, 2025). Chunks are copied or left out; the compressed pixels are not touched."""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from medmesh.importing.formats.content import MOST_TEXT, Content, Format, bounded, damaged, exactly, strings

MAGIC = b"\x89PNG\r\n\x1a\n"
_KEPT = frozenset((b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"sBIT", b"gAMA", b"pHYs"))
_COLOURS = {0: ("grey", 1), 2: ("rgb", 3), 3: ("palette", 1), 4: ("grey+alpha", 2), 6: ("rgba", 4)}  # §11.2.1
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}


def describe(file: BinaryIO, size: int) -> Content:
    """Size, depth and colour; every text, time, profile and unknown chunk is identity, as is what follows the end."""
    identity, meta, pixels = [], {}, 0
    for name, body in _chunks(file, size):
        if name == b"IHDR":
            meta = _header(body)
        elif name == b"IDAT":
            pixels += len(body)
        elif name not in _KEPT:
            said = " ".join(strings(_inflated(name, body)))
            identity.append((name.decode() if name.isalpha() else "unknown chunk", said))
    if not pixels:
        raise damaged("IDAT", "there are no pixels")
    if file.read(1):
        identity.append(("after the end", ""))
    return Content("image", meta, tuple(identity))


def clean(data: bytes) -> bytes:
    """Without them."""
    file = io.BytesIO(data)
    kept = [name_body for name_body in _chunks(file, len(data)) if name_body[0] in _KEPT]
    return MAGIC + b"".join(_chunk(name, body) for name, body in kept)


def beside(data: bytes) -> bytes:
    """Every chunk that is not pixels."""
    return b"".join(name + body for name, body in _chunks(io.BytesIO(data), len(data)) if name != b"IDAT")


def _chunks(file: BinaryIO, size: int) -> Iterator[tuple[bytes, bytes]]:
    if file.read(8) != MAGIC:
        raise damaged("signature", "this is no PNG")
    first, left = True, size - 8
    while True:
        length = int.from_bytes(exactly(file, 4, "a chunk"), "big")
        name = exactly(file, 4, "a chunk")
        left -= 12 + length
        if left < 0:
            raise damaged("a chunk", "the file ends here")
        if first is not (name == b"IHDR"):
            raise damaged("IHDR", "it must come first, and once")
        body = exactly(file, length, "a chunk")
        if zlib.crc32(name + body) != int.from_bytes(exactly(file, 4, "a chunk"), "big"):
            raise damaged("a chunk", "its checksum is wrong")
        yield name, body
        if name == b"IEND":
            return
        first = False


def _header(body: bytes) -> dict[str, object]:
    if len(body) != 13:
        raise damaged("IHDR", "its length is wrong")
    columns, rows, depth, colour = int.from_bytes(body[:4], "big"), int.from_bytes(body[4:8], "big"), body[8], body[9]
    if colour not in _COLOURS or depth not in _DEPTHS[colour] or body[10] or body[11] or body[12] > 1:
        raise damaged("IHDR", "colour, depth or method that the standard does not know")
    if not columns or not rows:
        raise damaged("IHDR", "a size of 0")
    name, channels = _COLOURS[colour]
    bounded(columns * rows * channels * max(1, depth // 8), "IHDR")
    return {"rows": rows, "columns": columns, "bits": depth, "colour": name}


def _inflated(name: bytes, body: bytes) -> bytes:
    """The text of a chunk, also of a compressed one."""
    if name not in (b"zTXt", b"iTXt", b"iCCP"):
        return body
    for at in range(len(body)):  # where the compressed part begins depends on the chunk; try at every zlib header
        if body[at : at + 1] == b"\x78":
            try:
                return body[:at] + zlib.decompressobj().decompress(body[at:], MOST_TEXT)
            except zlib.error:
                continue
        if at > 256:
            break
    return body


def _chunk(name: bytes, body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + name + body + zlib.crc32(name + body).to_bytes(4, "big")


PNG = Format("png", "image/png", (".png",), lambda start: start[:8] == MAGIC, describe, clean, beside)
