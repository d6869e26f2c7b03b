"""Frames between a host and its worker: four bytes of length (big endian), then JSON; tensors travel as files."""

from __future__ import annotations

import json
from typing import Any, BinaryIO

from medmesh.canonical import parse

MAX_FRAME = 1 << 20


def write_frame(stream: BinaryIO, document: dict[str, Any]) -> None:
    """Send one frame."""
    body = json.dumps(document).encode()
    stream.write(len(body).to_bytes(4, "big") + body)
    stream.flush()


def read_frame(stream: BinaryIO) -> dict[str, Any] | None:
    """The next frame; None at the end. Raises `ValueError` for anything that is not a frame."""
    head = stream.read(4)
    if len(head) < 4:
        return None
    length = int.from_bytes(head, "big")
    if length > MAX_FRAME:
        raise ValueError("the frame is too long")
    return parse_frame(stream.read(length))


def parse_frame(body: bytes) -> dict[str, Any]:
    """The document in a frame's body."""
    document = parse(body)
    if not isinstance(document, dict):
        raise ValueError("a frame holds an object")
    return document
