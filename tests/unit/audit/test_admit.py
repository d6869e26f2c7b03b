"""What the log takes in: a record in its form, read quickly or thoroughly, and receipts that every emitter can read."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.logs import record

from medmesh.contracts.audit import AuditRecord, Receipts
from medmesh.errors import Problem
from medmesh.ledger.leaf import commitment, decode
from medmesh.ledger.record import parts, record_bytes
from medmesh.ledger.tree import leaf_hash
from medmesh_audit.domain import admit, facts, parts_of
from medmesh_audit.intake import receipts
from medmesh_audit.placing import Placed

PLAIN: dict[str, Any] = json.loads(base64.b64decode(record("registry", 3).body))
ESCAPED = PLAIN | {"why": 'said "no"\n'}


def handed(document: dict[str, Any], body: bytes | None = None) -> AuditRecord:
    return AuditRecord(id=document["id"], n=document["n"], body=base64.b64encode(body or record_bytes(document)).decode())


@pytest.mark.parametrize(("document", "quick"), [(PLAIN, True), (ESCAPED, False)])
def test_a_record_becomes_a_leaf_that_commits_to_it(document: dict[str, Any], quick: bool) -> None:
    assert (parts(record_bytes(document)) is not None) is quick
    entry = admit(handed(document), "registry")
    assert entry.body == record_bytes(document)
    assert entry.hash == leaf_hash(entry.leaf)
    assert (found := decode(entry.leaf)).commit == commitment(entry.salt, entry.body)
    assert (found.emitter, found.n, found.hour, found.compartment) == ("registry", 3, document["tr"][:13], "platform")
    row = facts(7, entry.parts)
    assert (row["who"], row["org"], row["purpose"], row["outcome"]) == ("person:li", "platform", "HRESCH", 0)
    assert (row["t"], row["verb"], row["type"]) == (document["t"], "training.finish", document["type"]["code"])
    assert (row["orgs"], row["entities"], row["service"]) == (["platform"], ["federation:f-3"], "registry")


TEXT = st.text(st.characters(codec="utf-8"), max_size=8)
AGENT = st.builds(lambda who, org, role: {"method": "", "org": org, "req": True, "role": role, "who": who}, TEXT, TEXT, TEXT)
ENTITY = st.builds(lambda kind, id_, digest: {"digest": digest, "id": id_, "type": kind, "ver": ""}, TEXT, TEXT, TEXT)


@given(st.lists(AGENT, max_size=3), st.lists(ENTITY, max_size=3), TEXT, st.sampled_from([0, 4, 8, 12]), st.integers(1, 2**40))
def test_the_quick_reading_finds_what_the_thorough_one_finds(agents: list[Any], entities: list[Any], text: str, out: int, n: int) -> None:
    """A text with an escape somewhere sends a record the long way; otherwise they are the same record."""
    document = PLAIN | {"agents": agents, "entities": entities, "out": out, "n": n, "ctx": PLAIN["ctx"] | {"correlation": text}}
    read = parts_of(record_bytes(document | {"why": "x"}))
    assert read == parts_of(record_bytes(document | {"why": "\\"}))
    assert read.entities == [f"{one['type']}:{one['id']}" for one in entities]
    assert (read.who, read.org) == ((agents[0]["who"], agents[0]["org"]) if agents else ("", ""))
    assert (read.out, read.n, read.correlation, read.orgs) == (out, n, text, ["platform"])


@pytest.mark.parametrize("base", [PLAIN, ESCAPED])
@pytest.mark.parametrize(
    "change",
    [
        {"t": "2026-W48-5T03:00:00.000000Z"},  # Python reads it, the database does not
        {"tr": "2026-11-27T03:00:00.0+00:00"},
        {"tr": "2026-11-31T03:00:00.000000Z"},
        {"t": "٢٠٢٦-11-27T03:00:00.000000Z"},
        {"id": "a_b"},
        {"id": "x" * 37},
        {"out": 1},
        {"agents": [PLAIN["agents"][0] | {"org": "o" * 81}]},
    ],
)
def test_what_could_not_be_stored_is_refused_however_it_is_read(base: dict[str, Any], change: dict[str, Any]) -> None:
    with pytest.raises(Problem) as refused:
        admit(handed(base | change), "registry")
    assert refused.value.code == "ledger.record"


@pytest.mark.parametrize("change", [{"out": True}, {"entities": [{"type": "model"}]}, {"agents": {}}, {"sub": 3}, {"ctx": []}])
def test_parts_of_another_type_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(Problem) as refused:
        admit(handed(PLAIN | change), "registry")
    assert refused.value.code == "ledger.record"


def test_digits_of_another_script_are_no_number() -> None:
    body = record_bytes(PLAIN).replace(b',"n":3,', ',"n":1٣,'.encode())
    with pytest.raises(Problem) as refused:
        admit(handed(PLAIN, body), "registry")
    assert refused.value.code == "ledger.record"


def test_receipts_are_what_emitters_read() -> None:
    placed = [Placed("0199-a", 7, b"\1" * 32), Placed("0199-b", 8, b"\xff" * 32)]
    read = Receipts.model_validate_json(receipts(placed))
    assert read.problem is None and [(r.id, r.seq, bytes.fromhex(r.leaf)) for r in read.receipts] == placed
