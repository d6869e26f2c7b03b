"""From a record to a leaf and to what auditors search for."""

from __future__ import annotations

import base64
import binascii
import os
import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from medmesh.auditing.vocabulary import PURPOSES, VERBS, coding
from medmesh.contracts.audit import AuditRecord
from medmesh.errors import Problem
from medmesh.ledger.leaf import SALT_BYTES, Leaf, commitment, decode
from medmesh.ledger.record import VERSION, read_record
from medmesh.ledger.tree import leaf_hash
from medmesh.security.tokens import Actor
from medmesh.service.recording import PLATFORM

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")


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
    orgs = compartments(document, emitter)
    verb = VERBS.get(document["sub"])
    if document["v"] != VERSION or verb is None or document["type"] != coding(document["sub"]) or document["pou"] not in PURPOSES:
        raise Problem("audit.vocabulary", verb=str(document["sub"]), version=VERSION)
    leaf = Leaf(document["tr"][:13], emitter, record.n, ",".join(orgs), commitment(salt, body), verb.retention)
    return Entry(record.id, emitter, record.n, body, salt, leaf.encode(), document)


def compartments(document: dict[str, Any], emitter: str) -> list[str]:
    """Whose data a record is about: sorted, at least one. Raises `Problem`: a hospital's node speaks of its own hospital only."""
    orgs = document["orgs"]
    named = isinstance(orgs, list) and orgs == sorted(set(orgs)) and all(isinstance(org, str) and _NAME.fullmatch(org) for org in orgs)
    if not named or not orgs or (emitter.startswith("edge:") and orgs != [emitter.removeprefix("edge:")]):
        raise Problem("audit.compartment", emitter=emitter)
    return list(orgs)


def facts(seq: int, document: dict[str, Any]) -> dict[str, Any]:
    """The row auditors' queries run on."""
    agent = document["agents"][0] if document["agents"] else {}
    return {
        "seq": seq,
        "t": datetime.fromisoformat(document["t"]),
        "recorded": datetime.fromisoformat(document["tr"]),
        "verb": document["sub"],
        "outcome": document["out"],
        "who": str(agent.get("who", "")),
        "org": str(agent.get("org", "")),
        "service": document["src"]["service"],
        "id": document["id"],
        "type": document["type"]["code"],
        "purpose": document["pou"],
        "correlation": str(document["ctx"].get("correlation", "")),
        "orgs": list(document["orgs"]),
        "entities": [f"{entity['type']}:{entity['id']}" for entity in document["entities"]],
    }


def whole(row: Any) -> bool:
    """Whether a row of `entries` is what was logged: leaf and hash fit, and the body is the one the leaf commits to."""
    try:
        read_record(row.body)
        return leaf_hash(row.leaf) == row.hash and decode(row.leaf).commit == commitment(row.salt, row.body)
    except Problem:
        return False


def scope(actor: Actor) -> str | None:
    """The one organisation whose records somebody sees; None, everything, is for the platform's auditors alone."""
    everything = actor.kind == "person" and actor.organisation == PLATFORM
    return None if everything else actor.organisation


@dataclass(frozen=True, slots=True)
class Shown:
    """A checkpoint with its cosignatures, and whether they are enough."""

    size: int
    note: str
    state: str
    root: bytes
