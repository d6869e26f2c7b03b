"""Which field of an altered record differs, although only a hash of the original is left.

The commitment is a test for guesses: every bit, and in a record of ordinary size every byte, is put to its other values until the hash
fits. So an altered digit, letter or outcome is named, with what it was; larger alterations are named only where the leaf tells.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from medmesh.canonical import canonical
from medmesh.ledger.leaf import Leaf

_ALL_VALUES = 2_048
"""Up to this many bytes every value of every byte is tried (half a million hashes), beyond it every bit."""


def differs(salt: bytes, body: bytes, leaf: Leaf) -> str:
    """The path of the field (`entities[0].id`), `salt`, or "" where it cannot be told."""
    original = _original(salt + body, leaf.commit)
    if original is not None:
        return "salt" if original[: len(salt)] != salt else _field(original[len(salt) :], body)
    try:
        record = json.loads(body)
        if record["n"] != leaf.n:
            return "n"
        if record["src"]["service"] != leaf.emitter:
            return "src.service"
        return "" if record["tr"][:13] == leaf.hour else "tr"
    except (ValueError, KeyError, TypeError):
        return ""


def _original(altered: bytes, commit: str) -> bytes | None:
    """The bytes with this hash that differ from `altered` in one byte."""
    wanted = bytes.fromhex(commit)
    values = range(1, 256) if len(altered) <= _ALL_VALUES else [1 << bit for bit in range(8)]
    before = hashlib.sha256()
    for place, byte in enumerate(altered):
        after = altered[place + 1 :]
        for value in values:
            guess = before.copy()
            guess.update(bytes([byte ^ value]) + after)
            if guess.digest() == wanted:
                return altered[:place] + bytes([byte ^ value]) + after
        before.update(altered[place : place + 1])
    return None


def _field(original: bytes, altered: bytes) -> str:
    try:
        was = json.loads(original)
    except ValueError:
        return ""
    try:
        found = _first(was, json.loads(altered))
    except ValueError:
        found = ""
    # An alteration that broke the JSON still lies somewhere in the original, which is canonical.
    return found or _at(was, next(i for i, pair in enumerate(zip(original, altered, strict=False)) if pair[0] != pair[1]))


def _first(was: Any, now: Any, path: str = "") -> str:
    """The path of the first difference; "" for none."""
    if isinstance(was, dict) and isinstance(now, dict):
        for name in sorted(was.keys() | now.keys()):
            if name not in was or name not in now:
                return f"{path}.{name}".lstrip(".") if name in was else path or name
            if found := _first(was[name], now[name], f"{path}.{name}".lstrip(".")):
                return found
        return ""
    if isinstance(was, list) and isinstance(now, list) and len(was) == len(now):
        return next((found for i, pair in enumerate(zip(was, now, strict=True)) if (found := _first(*pair, f"{path}[{i}]"))), "")
    return "" if was == now and type(was) is type(now) else path


def _at(document: Any, place: int) -> str:
    """The top-level field whose canonical bytes hold this place."""
    position = 1
    for name in sorted(document) if isinstance(document, dict) else ():
        position += len(canonical({name: document[name]})) - 1
        if place < position:
            return str(name)
    return ""
