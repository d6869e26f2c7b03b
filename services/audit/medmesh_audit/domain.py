"""From a record to a leaf and to what auditors search for."""

from __future__ import annotations

import base64
import binascii
import os
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from medmesh.contracts.audit import AuditRecord
from medmesh.errors import Problem
from medmesh.ledger.leaf import SALT_BYTES, Leaf, commitment
from medmesh.ledger.record import read_record


@dataclass(frozen=True, slots=True)
class Entry:
    """One record ready to be sequenced."""

    id: str
    emitter: str
    n: int
    body: bytes
    salt: bytes
    leaf: bytes
    document: dict[str, Any]


def admit(record: AuditRecord, emitter: str, salt: bytes | None = None) -> Entry:
    """Check a record that `emitter` handed in. Raises `Problem`: nobody writes in another's name or numbering."""
    try:
        body = base64.b64decode(record.body, validate=True)
    except binascii.Error:
        raise Problem("ledger.record", reason="not base64") from None
    document = read_record(body)
    if document["id"] != record.id or document["n"] != record.n or document["src"].get("service") != emitter:
        raise Problem("audit.emitter", emitter=emitter)
    salt = salt or os.urandom(SALT_BYTES)
    compartment = next((str(agent.get("org", "")) for agent in document["agents"]), "")
    leaf = Leaf(document["tr"][:13], emitter, record.n, compartment, commitment(salt, body))
    return Entry(record.id, emitter, record.n, body, salt, leaf.encode(), document)


def facts(seq: int, document: dict[str, Any]) -> dict[str, Any]:
    """The row auditors' queries run on."""
    agent = document["agents"][0] if document["agents"] else {}
    return {
        "seq": seq,
        "t": datetime.fromisoformat(document["t"]),
        "verb": document["sub"],
        "outcome": document["out"],
        "who": str(agent.get("who", "")),
        "org": str(agent.get("org", "")),
        "service": document["src"]["service"],
        "entities": [f"{entity['type']}:{entity['id']}" for entity in document["entities"]],
    }


@dataclass(frozen=True, slots=True)
class Shown:
    """A checkpoint with its cosignatures, and whether they are enough."""

    size: int
    note: str
    state: str
