"""From a record to a leaf and to what auditors search for."""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from pydantic_core import from_json

from medmesh.auditing.vocabulary import PURPOSES, VERBS, coding
from medmesh.contracts.audit import AuditRecord
from medmesh.errors import Problem
from medmesh.ledger.leaf import SALT_BYTES, Leaf, commitment, decode
from medmesh.ledger.record import VERSION, parse_record, read_record
from medmesh.ledger.tree import leaf_hash
from medmesh.security.tokens import Actor
from medmesh.service.recording import PLATFORM

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_ID = re.compile(r"[0-9A-Za-z-]{1,36}").fullmatch
_WHEN = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", re.ASCII).fullmatch
_CODINGS = {verb: coding(verb) for verb in VERBS}
_LONGEST = 80
"""Of an organisation's name, as its column holds it."""


class Entry(NamedTuple):
    """One record ready to be sequenced. `hash` is its leaf's."""

    id: str
    emitter: str
    n: int
    body: bytes
    salt: bytes
    leaf: bytes
    hash: bytes
    document: dict[str, Any]


def admit(record: AuditRecord, emitter: str, salt: bytes | None = None) -> Entry:
    """Check a record that `emitter` handed in. Raises `Problem`: nobody writes in another's name or numbering."""
    try:
        body = base64.b64decode(record.body, validate=True)
    except binascii.Error:
        raise Problem("ledger.record", reason="not base64") from None
    document, typed = parse_record(body, from_json)
    if not ((typed or of_the_types(document)) and of_the_form(document)):
        raise Problem("ledger.record", reason="not of the form")
    if document["id"] != record.id or document["n"] != record.n or document["src"].get("service") != emitter:
        raise Problem("audit.emitter", emitter=emitter)
    salt = salt or os.urandom(SALT_BYTES)
    orgs = compartments(document, emitter)
    sub = document["sub"]
    verb = VERBS.get(sub)
    if document["v"] != VERSION or verb is None or document["type"] != _CODINGS[sub] or document["pou"] not in PURPOSES:
        raise Problem("audit.vocabulary", verb=str(sub), version=VERSION)
    leaf = Leaf(document["tr"][:13], emitter, record.n, ",".join(orgs), commitment(salt, body), verb.retention).encode()
    return Entry(record.id, emitter, record.n, body, salt, leaf, leaf_hash(leaf), document)


def of_the_types(document: Mapping[str, Any]) -> bool:
    """Whether the parts that the log itself reads are of the types they ought to be: one emitter's record must not stop everybody's."""
    agents, entities, policy = document["agents"], document["entities"], document["policy"]
    if not (type(agents) is list and type(entities) is list and type(document["orgs"]) is list):
        return False
    for name in ("src", "type", "ctx", "policy", "approval", "detail"):
        if type(document[name]) is not dict:
            return False
    texts = [document["id"], document["t"], document["tr"], document["sub"], document["why"], document["pou"]]
    try:
        texts += [policy["decision"], policy["bundle"]]
        for agent in agents:
            texts += [agent["who"], agent["org"]]
        for entity in entities:
            texts += [entity["type"], entity["id"]]
    except (KeyError, TypeError):
        return False
    return set(map(type, texts)) == {str} and type(document["n"]) is int and type(document["out"]) is int


def of_the_form(document: Mapping[str, Any]) -> bool:
    """Whether what is of the right type can be stored."""
    return (
        _ID(document["id"]) is not None
        and _instant(document["t"])
        and _instant(document["tr"])
        and document["out"] in (0, 4, 8, 12)
        and all(len(agent["org"]) <= _LONGEST for agent in document["agents"])
    )


def _instant(text: str) -> bool:
    try:
        return _WHEN(text) is not None and datetime.fromisoformat(text) is not None
    except ValueError:
        return False


def _shown(text: Any) -> str:
    """As the database can hold it: it knows no NUL."""
    return str(text).replace("\0", "\ufffd")


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
        "who": _shown(agent.get("who", "")),
        "org": _shown(agent.get("org", "")),
        "service": document["src"]["service"],
        "id": document["id"],
        "type": document["type"]["code"],
        "purpose": document["pou"],
        "correlation": _shown(document["ctx"].get("correlation", "")),
        "orgs": list(document["orgs"]),
        "entities": [_shown(f"{entity['type']}:{entity['id']}") for entity in document["entities"]],
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
