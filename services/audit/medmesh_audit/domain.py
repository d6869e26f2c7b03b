"""From a record to a leaf and to what auditors search for."""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any, NamedTuple

from medmesh.auditing.vocabulary import PURPOSES, VERBS, coding
from medmesh.canonical import spell
from medmesh.contracts.audit import AuditRecord
from medmesh.errors import Problem
from medmesh.ledger.leaf import SALT_BYTES, Leaf, commitment, decode
from medmesh.ledger.record import VERSION, read_record
from medmesh.ledger.record import parts as record_parts
from medmesh.ledger.tree import leaf_hash
from medmesh.security.tokens import Actor
from medmesh.service.recording import PLATFORM

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}").fullmatch
_ID = re.compile(r"[0-9A-Za-z-]{1,36}").fullmatch
_WHEN = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", re.ASCII).fullmatch
_CODINGS = {verb: spell(coding(verb)) for verb in VERBS}
_AGENTS = re.compile(r'"org":"([^"]*)","req":(?:true|false),"role":"[^"]*","who":"([^"]*)"').findall
_ENTITIES = re.compile(r'"id":"([^"]*)","type":"([^"]*)"').findall
_TEXTS = re.compile(r'"([^"]*)"').findall
_LONGEST = 80
"""Of an organisation's name, as its column holds it."""


class Parts(NamedTuple):
    """What the log itself reads of a record. `who` and `org` are of its first agent, `entities` are KIND:ID, `coding` its `type`."""

    id: str
    n: int
    service: str
    t: str
    tr: str
    sub: str
    out: int
    pou: str
    who: str
    org: str
    coding: str
    correlation: str
    orgs: list[str]
    entities: list[str]


class Entry(NamedTuple):
    """One record ready to be sequenced. `hash` is its leaf's."""

    id: str
    emitter: str
    n: int
    body: bytes
    salt: bytes
    leaf: bytes
    hash: bytes
    parts: Parts


def admit(record: AuditRecord, emitter: str, salt: bytes | None = None) -> Entry:
    """Check a record that `emitter` handed in. Raises `Problem`: nobody writes in another's name or numbering."""
    try:
        body = base64.b64decode(record.body, validate=True)
    except binascii.Error:
        raise Problem("ledger.record", reason="not base64") from None
    parts = parts_of(body)
    if not of_the_form(parts):
        raise Problem("ledger.record", reason="not of the form")
    if parts.id != record.id or parts.n != record.n or parts.service != emitter:
        raise Problem("audit.emitter", emitter=emitter)
    salt = salt or os.urandom(SALT_BYTES)
    compartment = compartments(parts.orgs, emitter)
    verb = VERBS.get(parts.sub)
    if verb is None or parts.coding != _CODINGS[parts.sub] or parts.pou not in PURPOSES:
        raise Problem("audit.vocabulary", verb=parts.sub, version=VERSION)
    leaf = Leaf(parts.tr[:13], emitter, record.n, compartment, commitment(salt, body), verb.retention).encode()
    return Entry(record.id, emitter, record.n, body, salt, leaf, leaf_hash(leaf), parts)


def parts_of(body: bytes) -> Parts:
    """From canonical bytes. Raises `Problem`: what is no record, or has parts of another type; one emitter's record must not stop
    everybody's."""
    if (found := record_parts(body)) is not None:  # the layout of nearly all: read in half the time of parsing it
        agents = _AGENTS(found["agents"])
        org, who = agents[0] if agents else ("", "")
        return Parts(
            found["id"],
            int(found["n"]),
            found["service"],
            found["t"],
            found["tr"],
            found["sub"],
            int(found["out"]),
            found["pou"],
            who,
            org,
            found["type"],
            found["correlation"],
            _TEXTS(found["orgs"]),
            [f"{kind}:{id_}" for id_, kind in _ENTITIES(found["entities"])],
        )
    document = read_record(body)
    if not of_the_types(document):
        raise Problem("ledger.record", reason="not of the form")
    if document["v"] != VERSION:
        raise Problem("audit.vocabulary", verb=document["sub"], version=VERSION)
    agent = document["agents"][0] if document["agents"] else {}
    return Parts(
        document["id"],
        document["n"],
        document["src"]["service"],
        document["t"],
        document["tr"],
        document["sub"],
        document["out"],
        document["pou"],
        agent.get("who", ""),
        agent.get("org", ""),
        spell(document["type"]),
        document["ctx"].get("correlation", ""),
        document["orgs"],
        [f"{entity['type']}:{entity['id']}" for entity in document["entities"]],
    )


def of_the_types(document: Mapping[str, Any]) -> bool:
    """Whether the parts that the log itself reads are of the types they ought to be."""
    agents, entities = document["agents"], document["entities"]
    if not (type(agents) is list and type(entities) is list and type(document["orgs"]) is list):
        return False
    for name in ("src", "type", "ctx", "policy", "approval", "detail"):
        if type(document[name]) is not dict:
            return False
    try:
        texts = [*(document[name] for name in ("id", "t", "tr", "sub", "why", "pou")), *document["orgs"], document["src"]["service"]]
        texts += [document["policy"]["decision"], document["policy"]["bundle"], document["ctx"].get("correlation", "")]
        for agent in agents:
            texts += [agent["who"], agent["org"]]
        for entity in entities:
            texts += [entity["type"], entity["id"]]
    except (KeyError, TypeError):
        return False
    return set(map(type, texts)) == {str} and type(document["n"]) is int and type(document["out"]) is int


def of_the_form(parts: Parts) -> bool:
    """Whether they can be stored."""
    return (
        _ID(parts.id) is not None and _instant(parts.t) and _instant(parts.tr) and parts.out in (0, 4, 8, 12) and len(parts.org) <= _LONGEST
    )


def _instant(text: str) -> bool:
    try:
        return _WHEN(text) is not None and datetime.fromisoformat(text) is not None
    except ValueError:
        return False


def _shown(text: str) -> str:
    """As the database can hold it: it knows no NUL."""
    return text.replace("\0", "\ufffd")


def compartments(orgs: list[str], emitter: str) -> str:
    """Whose data a record is about: sorted, at least one, with commas between. Raises `Problem`: a hospital's node speaks of its own
    hospital only."""
    named = orgs and orgs == sorted(set(orgs)) and all(map(_NAME, orgs))
    if not named or (emitter.startswith("edge:") and orgs != [emitter.removeprefix("edge:")]):
        raise Problem("audit.compartment", emitter=emitter)
    return ",".join(orgs)


@cache
def _code(coding: str) -> str:
    return str(json.loads(coding)["code"])


def facts(seq: int, parts: Parts) -> dict[str, Any]:
    """The row auditors' queries run on."""
    return {
        "seq": seq,
        "t": parts.t,
        "recorded": parts.tr,
        "verb": parts.sub,
        "outcome": parts.out,
        "who": _shown(parts.who),
        "org": _shown(parts.org),
        "service": parts.service,
        "id": parts.id,
        "type": _code(parts.coding),
        "purpose": parts.pou,
        "correlation": _shown(parts.correlation),
        "orgs": parts.orgs,
        "entities": [_shown(entity) for entity in parts.entities],
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
