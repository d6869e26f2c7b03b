"""The beginning of a file (PS3.10 §7.1) for an object that came over the network without one: equal for equal objects."""

from __future__ import annotations

import struct

IMPLEMENTATION = "2.25.252613914104957853871105217843920215711"
_PREAMBLE = bytes(128) + b"DICM"


def beginning(sop_class: str, sop: str, syntax: str) -> bytes:
    """Preamble and file meta information, Explicit VR Little Endian."""
    elements = (
        struct.pack("<HH2sHL", 2, 0x0001, b"OB", 0, 2) + b"\0\1",
        _uid(0x0002, sop_class),
        _uid(0x0003, sop),
        _uid(0x0010, syntax),
        _uid(0x0012, IMPLEMENTATION),
    )
    body = b"".join(elements)
    return _PREAMBLE + struct.pack("<HH2sHL", 2, 0, b"UL", 4, len(body)) + body


def _uid(element: int, value: str) -> bytes:
    text = value.encode("ascii")
    text += b"\0" * (len(text) % 2)
    return struct.pack("<HH2sH", 2, element, b"UI", len(text)) + text


def read(data: bytes | bytearray) -> tuple[str, str, str, int] | None:
    """(SOP class, SOP instance, transfer syntax, where the data set begins) of a file; None where it does not begin as one does."""
    if len(data) < 144 or data[128:140] != b"DICM\2\0\0\0UL\4\0":
        return None
    end = 144 + int.from_bytes(data[140:144], "little")
    if end > len(data):
        return None
    found, place = {}, 144
    while place + 8 <= end:
        group, element, vr, length = struct.unpack_from("<HH2sH", data, place)
        place += 8
        if vr in (b"OB", b"UN"):
            length = int.from_bytes(data[place : place + 4], "little")
            place += 4
        if group != 2 or place + length > end:
            return None
        found[element] = bytes(data[place : place + length]) if length <= 64 else b""
        place += length
    texts = [found.get(element, b"").decode("ascii", "replace").strip(" \0") for element in (0x0002, 0x0003, 0x0010)]
    return texts[0], texts[1], texts[2], end
