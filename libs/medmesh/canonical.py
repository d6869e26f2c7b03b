"""Canonical JSON: one spelling for one value, so that every party hashes, signs and approves the same bytes.

A subset of RFC 8785 (JCS): keys sorted, no white space, UTF-8; floats are refused because a float has more than one
spelling, and integers beyond 2^53 because some readers would round them.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

_LARGEST = 2**53
spell = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode
"""The text of a document that is known to hold neither floats nor large integers."""
_PLAIN = frozenset((str, bool, type(None)))
"""What has one spelling, whatever its value."""


def refuse_ambiguous(value: Any) -> None:
    """Raise `ValueError` for a float or a large integer anywhere inside."""
    waiting: list[Any] = [(value,)]
    for items in waiting:
        for item in items:
            if type(item) in _PLAIN:
                continue
            if isinstance(item, dict):
                waiting.append(item.values())
            elif isinstance(item, list | tuple):
                waiting.append(item)
            elif isinstance(item, float):
                raise ValueError("canonical JSON holds no floats; write a decimal string")
            elif isinstance(item, int) and abs(item) > _LARGEST:
                raise ValueError("canonical JSON holds no integers beyond 2^53")


def canonical(document: Any) -> bytes:
    """The bytes of a document."""
    refuse_ambiguous(document)
    return spell(document).encode()


def _no_float(text: str) -> Any:
    raise ValueError("canonical JSON holds no floats; write a decimal string")


def _exact(text: str) -> int:
    if len(text) > 15 and abs(int(text)) > _LARGEST:
        raise ValueError("canonical JSON holds no integers beyond 2^53")
    return int(text)


_read = json.JSONDecoder(parse_float=_no_float, parse_constant=_no_float, parse_int=_exact).decode


def read(body: bytes) -> Any:
    """The document whose canonical bytes these are. Raises `ValueError` for any other bytes; one pass, for the log's hot path."""
    try:
        document = _read(body.decode())
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if spell(document).encode() != body:
        raise ValueError("not in canonical form")
    return document


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice in one object")
    return found


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


_parse = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_no_constant).decode


def parse(text: bytes | str) -> Any:
    """JSON from outside, canonical or not. Raises `ValueError`, also for what readers understand in different ways (a name twice,
    NaN) and for nesting that is meant to use up the stack."""
    try:
        return _parse(text if isinstance(text, str) else text.decode(json.detect_encoding(text), "surrogatepass"))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def digest(document: Any) -> str:
    """SHA-256 of the canonical bytes, hexadecimal."""
    return hashlib.sha256(canonical(document)).hexdigest()
