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
