"""C2SP tlog-proof v1: one text file that an auditor verifies offline, with the leaf beside it."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence

from medmesh.errors import Problem
from medmesh.ledger import note
from medmesh.ledger.tree import leaf_hash, verify_inclusion

_HEAD = "c2sp.org/tlog-proof@v1"


def encode(index: int, path: Sequence[bytes], checkpoint: str, extra: bytes | None = None) -> str:
    """The `.tlog-proof` file."""
    lines = [_HEAD, *([f"extra {base64.b64encode(extra).decode()}"] if extra is not None else []), f"index {index}"]
    lines += [base64.b64encode(p).decode() for p in path]
    return "\n".join(lines) + "\n\n" + checkpoint


def verify(proof: str, leaf: bytes, vkey: str) -> note.Checkpoint:
    """The checkpoint under which `leaf` (its bytes) is included. Raises `Problem`."""
    head, divider, checkpoint = proof.partition("\n\n")
    lines = head.split("\n")
    if not divider or lines[0] != _HEAD:
        raise Problem("ledger.proof", reason="it is not a tlog-proof")
    lines = [line for line in lines[1:] if not line.startswith("extra ")]
    try:
        index = int(lines[0].removeprefix("index "))
        path = [base64.b64decode(line, validate=True) for line in lines[1:]]
    except (ValueError, IndexError, binascii.Error):
        raise Problem("ledger.proof", reason="it is malformed") from None
    found = note.parse_checkpoint(note.verify(checkpoint, vkey))
    if not verify_inclusion(leaf_hash(leaf), index, found.size, path, found.root):
        raise Problem("ledger.proof", reason="the leaf is not under the checkpoint's root")
    return found
