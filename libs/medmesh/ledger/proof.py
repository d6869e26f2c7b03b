"""C2SP tlog-proof v1: one text file that an auditor verifies offline, with the leaf beside it or inside."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from medmesh.canonical import canonical
from medmesh.canonical import parse as parse_json
from medmesh.errors import Problem
from medmesh.ledger import note
from medmesh.ledger.leaf import commitment, decode
from medmesh.ledger.policy import Believed, Policy, demanding
from medmesh.ledger.record import read_record
from medmesh.ledger.tree import leaf_hash, verify_inclusion

HEAD = "c2sp.org/tlog-proof@v1"
_MOST_HASHES = 63


@dataclass(frozen=True, slots=True)
class Proof:
    """The parts of a file: place of the leaf, audit path, signed checkpoint, and what its maker added (not proven by anything)."""

    index: int
    path: tuple[bytes, ...]
    checkpoint: str
    extra: bytes | None


def encode(index: int, path: Sequence[bytes], checkpoint: str, extra: bytes | None = None) -> str:
    """The `.tlog-proof` file."""
    lines = [HEAD, *([f"extra {base64.b64encode(extra).decode()}"] if extra is not None else []), f"index {index}"]
    lines += [base64.b64encode(p).decode() for p in path]
    return "\n".join(lines) + "\n\n" + checkpoint


def parse(proof: str) -> Proof:
    """Raises `Problem` (`ledger.proof_form`)."""
    head, divider, checkpoint = proof.partition("\n\n")
    lines = head.split("\n")
    try:
        if not divider or lines.pop(0) != HEAD:
            raise ValueError
        extra = note.decode64(lines.pop(0).removeprefix("extra ")) if lines[0].startswith("extra ") else None
        place = lines.pop(0)
        if not place.startswith("index "):
            raise ValueError
        path = tuple(note.decode64(line) for line in lines)
        if len(path) > _MOST_HASHES or any(len(p) != 32 for p in path):
            raise ValueError
        return Proof(note.decimal(place.removeprefix("index ")), path, checkpoint, extra)
    except (ValueError, IndexError):
        raise Problem("ledger.proof_form") from None


def believe(proof: Proof, leaf: bytes, policy: Policy) -> Believed:
    """The checkpoint that satisfies `policy` and has `leaf` (its bytes) at the proof's index. Raises `Problem`."""
    found = policy.verify(proof.checkpoint)
    if not verify_inclusion(leaf_hash(leaf), proof.index, found.checkpoint.size, proof.path, found.checkpoint.root):
        raise Problem("ledger.not_included", seq=proof.index, size=found.checkpoint.size)
    return found


def verify(proof: str, leaf: bytes, vkey: str) -> note.Checkpoint:
    """The log's checkpoint under which `leaf` is included, whoever cosigned. Raises `Problem`."""
    return believe(parse(proof), leaf, demanding(vkey)).checkpoint


@dataclass(frozen=True, slots=True)
class Evidence:
    """One record with everything that proves it."""

    proof: Proof
    leaf: bytes
    salt: bytes
    body: bytes


def read_evidence(content: str | bytes) -> Evidence:
    """From the answer of `/v1/events/{event}/proof`, or from a `.tlog-proof` that carries leaf, salt and body. Raises `Problem`."""
    try:
        content = content.decode() if isinstance(content, bytes) else content
        if content.startswith(HEAD):
            proof = parse(content)
            parts = parse_json(proof.extra or b"{}")
        else:
            parts = parse_json(content)
            proof = parse(parts["proof"])
        return Evidence(proof, *(note.decode64(parts[name]) for name in ("leaf", "salt", "body")))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise Problem("ledger.proof_form") from None


def evidence_file(evidence: Evidence) -> str:
    """One `.tlog-proof` that holds the record too: what other programs pass over as `extra`."""
    parts = {name: base64.b64encode(getattr(evidence, name)).decode() for name in ("leaf", "salt", "body")}
    return encode(evidence.proof.index, evidence.proof.path, evidence.proof.checkpoint, canonical(parts))


def verify_evidence(evidence: Evidence, policy: Policy) -> tuple[dict[str, Any], Believed]:
    """The record that is proven, and under which checkpoint. Raises `Problem`."""
    found = believe(evidence.proof, evidence.leaf, policy)
    if decode(evidence.leaf).commit != commitment(evidence.salt, evidence.body):
        raise Problem("ledger.not_the_record", seq=evidence.proof.index)
    return read_record(evidence.body), found
