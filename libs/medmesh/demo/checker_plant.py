"""What `checker.py scan` must find before it is believed: every canary, in every encoding, in every container.

Nothing here is shared with the search but the picture of a canary (`pattern`): what is planted is written with the plain
encoders of the standard library, so that a mistake in the search's own tables shows as blindness.
"""

from __future__ import annotations

import base64
import bz2
import gzip
import io
import json
import lzma
import sqlite3
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from urllib.parse import quote

Encoder = Callable[[str, int], bytes]  # of a canary and its index
Pattern = Callable[[str], bytes]


def text_encoders() -> dict[str, Encoder]:
    """Ways of writing the text, each within other text."""

    def in_charset(canary: str, _: int, charset: str) -> bytes:
        return f"姓名={canary};".encode(charset)

    def in_hex(canary: str, _: int, charset: str, upper: bool) -> bytes:
        digits = f"姓名={canary};".encode(charset).hex()
        return (digits.upper() if upper else digits).encode()

    def in_base64(canary: str, _: int, charset: str, before: int, encode: Callable[[bytes], bytes]) -> bytes:
        return encode(b"=" * before + canary.encode(charset) + b";")

    encoders: dict[str, Encoder] = {
        "json-escape": lambda canary, _: json.dumps({"PatientName": canary}).encode(),
        "percent": lambda canary, _: b"GET /patients?name=" + quote(canary).encode() + b"&page=1",
    }
    for charset in ("utf-8", "gb18030", "utf-16-le", "utf-16-be"):
        encoders[charset] = partial(in_charset, charset=charset)
    for charset in ("utf-8", "gb18030"):
        encoders[f"hex-lower-{charset}"] = partial(in_hex, charset=charset, upper=False)
        encoders[f"hex-upper-{charset}"] = partial(in_hex, charset=charset, upper=True)
        for before in range(3):
            encoders[f"base64-{before}-{charset}"] = partial(in_base64, charset=charset, before=before, encode=base64.b64encode)
            encoders[f"base64url-{before}-{charset}"] = partial(in_base64, charset=charset, before=before, encode=base64.urlsafe_b64encode)
    return encoders


def pixel_encoders(pattern: Pattern) -> dict[str, Encoder]:
    """Ways of storing one 32-pixel row of the picture, each between other pixels; every canary shows another row."""

    def row(canary: str, index: int) -> bytes:
        start = index % 32 * 32
        return b"\x10\x20" + pattern(canary)[start : start + 32] + b"\x30"

    return {
        "pixels-8": row,
        "pixels-8-inverted": lambda canary, index: bytes(255 - value for value in row(canary, index)),
        "pixels-16-le": lambda canary, index: struct.pack("<35H", *row(canary, index)),
        "pixels-16-be": lambda canary, index: struct.pack(">35H", *row(canary, index)),
        "pixels-rgb": lambda canary, index: bytes(value for value in row(canary, index) for _ in range(3)),
        "pixels-base64-0": lambda canary, index: base64.b64encode(row(canary, index)[2:]),
        "pixels-base64-1": lambda canary, index: base64.b64encode(row(canary, index)[1:]),
        "pixels-base64-2": lambda canary, index: base64.b64encode(row(canary, index)),
    }


def in_zip(content: bytes, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method, compresslevel=1) as archive:
        archive.writestr("first.txt", "nothing here")
        archive.writestr("data.bin", content)
    return stream.getvalue()


def in_tar(content: bytes) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz", compresslevel=1) as archive:
        member = tarfile.TarInfo("data.bin")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def in_sqlite(rows: list[bytes]) -> bytes:
    with sqlite3.connect(":memory:") as database:
        database.execute("CREATE TABLE store (id INTEGER PRIMARY KEY, value BLOB)")
        database.executemany("INSERT INTO store (value) VALUES (?)", [(row,) for row in rows])
        database.commit()
        content = database.serialize()
    database.close()
    return content


def in_png(rows: list[bytes]) -> bytes:
    """A grey 8-bit PNG whose image rows are `rows`, padded with zeros; the line filters 0 to 4 take turns; IDAT in two parts."""
    width = max(len(row) for row in rows)
    above, filtered = bytes(width), bytearray()
    for number, row in enumerate(rows):
        line = row.ljust(width, b"\0")
        filtered.append(number % 5)
        filtered += _filter(number % 5, line, above)
        above = line
    packed = zlib.compress(bytes(filtered), 1)
    header = struct.pack(">IIBBBBB", width, len(rows), 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", packed[:1000]), (b"IDAT", packed[1000:]), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def _filter(kind: int, line: bytes, above: bytes) -> bytes:
    """PNG specification, clause 9.2, with one byte a pixel."""
    left, corner = b"\0" + line[:-1], b"\0" + above[:-1]
    if kind == 0:
        return line
    if kind == 1:
        return bytes((value - a) & 255 for value, a in zip(line, left, strict=True))
    if kind == 2:
        return bytes((value - b) & 255 for value, b in zip(line, above, strict=True))
    if kind == 3:
        return bytes((value - (a + b) // 2) & 255 for value, a, b in zip(line, left, above, strict=True))
    return bytes((value - _nearest(a, b, c)) & 255 for value, a, b, c in zip(line, left, above, corner, strict=True))


def _nearest(a: int, b: int, c: int) -> int:
    return min((a, b, c), key=lambda guess: abs(guess - (a + b - c)))  # the first of equals, as the clause asks


def containers() -> dict[str, Callable[[list[bytes]], bytes]]:
    """Ways of keeping rows of bytes; compressed ones stand behind other bytes, as in a larger file."""

    def behind(pack: Callable[[bytes], bytes]) -> Callable[[list[bytes]], bytes]:
        return lambda rows: b"something before\n" + pack(b"\n".join(rows)) + b"\nsomething after"

    return {
        "file": b"\n".join,
        "sqlite": in_sqlite,
        "png": in_png,
        "gzip": behind(lambda content: gzip.compress(content, 1)),
        "zlib": behind(lambda content: zlib.compress(content, 6)),
        "bz2": behind(lambda content: bz2.compress(content, 1)),
        "xz": behind(lambda content: lzma.compress(content, preset=0)),
        "zip": behind(in_zip),
        "zip-of-gzip": behind(lambda content: in_zip(gzip.compress(content, 1))),
        "zip-of-bz2": behind(lambda content: in_zip(content, zipfile.ZIP_BZIP2)),
        "tar-gz": lambda rows: in_tar(b"\n".join(rows)),
    }


def plants(canaries: list[str], pattern: Pattern) -> Iterator[tuple[str, bytes]]:
    """Name and content of each file to plant. Every file holds every canary."""
    for encoding, encode in {**text_encoders(), **pixel_encoders(pattern)}.items():
        rows = [encode(canary, index) for index, canary in enumerate(canaries)]
        for container, pack in containers().items():
            yield f"{encoding}.{container}", pack(rows)
