"""What the log takes in: a record in its form, read quickly or thoroughly, and receipts that every emitter can read."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from tests.logs import record

from medmesh.contracts.audit import AuditRecord, Receipts
from medmesh.errors import Problem
from medmesh.ledger.leaf import commitment, decode
from medmesh.ledger.record import parse_record, record_bytes
from medmesh.ledger.tree import leaf_hash
from medmesh_audit.domain import admit, facts
from medmesh_audit.intake import receipts
from medmesh_audit.placing import Placed

PLAIN: dict[str, Any] = json.loads(base64.b64decode(record("registry", 3).body))
ESCAPED = PLAIN | {"why": 'said "no"\n'}


def handed(document: dict[str, Any], body: bytes | None = None) -> AuditRecord:
    return AuditRecord(id=document["id"], n=document["n"], body=base64.b64encode(body or record_bytes(document)).decode())


@pytest.mark.parametrize(("document", "quick"), [(PLAIN, True), (ESCAPED, False)])
def test_a_record_becomes_a_leaf_that_commits_to_it(document: dict[str, Any], quick: bool) -> None:
    assert parse_record(record_bytes(document))[1] is quick
    entry = admit(handed(document), "registry")
    assert entry.document == document and entry.body == record_bytes(document)
    assert entry.hash == leaf_hash(entry.leaf)
    assert (found := decode(entry.leaf)).commit == commitment(entry.salt, entry.body)
    assert (found.emitter, found.n, found.hour, found.compartment) == ("registry", 3, document["tr"][:13], "platform")
    assert facts(7, entry.document)["who"] == "person:li"


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
