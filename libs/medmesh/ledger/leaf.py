"""A leaf: a small header and a salted commitment to the record's body.

Leaves may be shown to anyone who checks the log: without body and salt a commitment tells nothing, so that no hospital
learns another's records from tiles, and a body can be forgotten while the log stays verifiable.
"""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass
from typing import Any

from medmesh.canonical import parse, spell
from medmesh.errors import Problem

SALT_BYTES = 16

LAYOUT = re.compile(
    rb'\{"c":"(?P<c>[^"\\\x00-\x1f]*)","commit":"(?P<commit>[0-9a-f]{64})","e":"(?P<e>[^"\\\x00-\x1f]+)",'
    rb'"h":"(?P<h>\d{4}-\d\d-\d\dT\d\d)","k":"[a-z]+","n":(?P<n>[1-9]\d{0,15}),"v":2\}'
)
"""The bytes of a leaf whose texts need no escapes. What matches is canonical; the rest is left to `decode`, eight times slower."""

_PLAIN = re.compile(r"[0-9a-zA-Z:,._-]*").fullmatch
_COMMIT, _HOUR = re.compile("[0-9a-f]{64}").fullmatch, re.compile(r"\d{4}-\d\d-\d\dT\d\d", re.ASCII).fullmatch


@dataclass(frozen=True, slots=True)
class Leaf:
    """`hour` coarse time (UTC, `2026-11-24T02`), `emitter` and its counter `n`, `compartment` the organisations the body belongs to
    (sorted, commas between), `retention` the class that says how long the body is kept."""

    hour: str
    emitter: str
    n: int
    compartment: str
    commit: str
    retention: str = "security"

    def encode(self) -> bytes:
        """The canonical bytes that are hashed into the tree."""
        if _PLAIN(f"{self.compartment}{self.emitter}{self.retention}"):  # five times as fast as JSON, and the same bytes
            return (
                f'{{"c":"{self.compartment}","commit":"{self.commit}","e":"{self.emitter}","h":"{self.hour}",'
                f'"k":"{self.retention}","n":{self.n},"v":2}}'
            ).encode()
        header = {"v": 2, "h": self.hour, "e": self.emitter, "n": self.n, "c": self.compartment, "k": self.retention}
        return spell({**header, "commit": self.commit}).encode()


def decode(data: bytes) -> Leaf:
    """Raises `Problem`."""
    try:
        document: dict[str, Any] = parse(data)
        leaf = Leaf(document["h"], document["e"], document["n"], document["c"], document["commit"], document["k"])
        texts = all(isinstance(text, str) for text in (leaf.hour, leaf.emitter, leaf.compartment, leaf.commit, leaf.retention))
        if not texts or type(leaf.n) is not int or leaf.n < 1 or leaf.encode() != data:
            raise ValueError
        if not _COMMIT(leaf.commit) or not _HOUR(leaf.hour):
            raise ValueError
    except (ValueError, KeyError, TypeError):
        raise Problem("ledger.leaf") from None
    return leaf


def commitment(salt: bytes, body: bytes) -> str:
    """SHA-256(salt || body), hexadecimal; the salt is 16 random bytes."""
    return hashlib.sha256(salt + body).hexdigest()


def body_document(salt: bytes, body: bytes) -> dict[str, str]:
    """How salt and body travel to an auditor."""
    return {"salt": base64.b64encode(salt).decode(), "body": base64.b64encode(body).decode()}
