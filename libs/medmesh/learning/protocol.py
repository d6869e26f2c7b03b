"""Frames between a host and its worker: four bytes of length (big endian), then JSON; tensors travel as files."""

from __future__ import annotations

import json
import math
from typing import Any, BinaryIO

from medmesh.canonical import parse

MAX_FRAME = 1 << 20


def write_frame(stream: BinaryIO, document: dict[str, Any]) -> None:
    """Send one frame. A number that is none (NaN, infinity) goes as null, as in ECMA-404: the reader says what was wrong with it."""
    body = json.dumps(_numbers(document)).encode()
    stream.write(len(body).to_bytes(4, "big") + body)
    stream.flush()


def _numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _numbers(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_numbers(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


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
