"""Records at a glance: the quick reading agrees with the thorough one, on every record and on everything that is none."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.ledgers import Ledger, entry, write

from medmesh.canonical import canonical
from medmesh.errors import Problem
from medmesh.ledger import leaf, record
from medmesh.ledger.leaf import Leaf, commitment
from medmesh.ledger.record import outline, read_record, record_bytes
from medmesh.security.tokens import Actor
from medmesh.service.recording import recorder
from medmesh.store.unit import AuditEntry, Context, Entity

DOCUMENT: dict[str, Any] = json.loads(entry(7).body)
FREE = st.dictionaries(st.text(max_size=5), st.one_of(st.text(max_size=5), st.integers(-(2**53), 2**53), st.booleans()), max_size=4)


def thorough(body: bytes) -> tuple[int, str, str, str] | None:
    try:
        found = read_record(body)
        return int(found["n"]), str(found["src"]["service"]), str(found["t"]), str(found["tr"])
    except (Problem, KeyError, TypeError, ValueError):
        return None


def quick(body: bytes) -> tuple[int, str, str, str] | None:
    try:
        return outline(body)
    except Problem:
        return None


@given(FREE, FREE, st.text(max_size=8), st.integers(0, 2**53))
def test_both_readings_agree_on_records(detail: dict[str, Any], approval: dict[str, Any], who: str, n: int) -> None:
    document = DOCUMENT | {"detail": detail, "approval": approval, "n": n}
    document["agents"] = [DOCUMENT["agents"][0] | {"who": who}]
    body = record_bytes(document)
    assert quick(body) == thorough(body) == (n, "gateway", DOCUMENT["t"], DOCUMENT["tr"])


@given(st.data())
def test_both_readings_agree_on_whatever_is_not_quite_a_record(data: st.DataObject) -> None:
    body = bytearray(record_bytes(DOCUMENT | {"detail": {"a": 1, "b": "x"}, "approval": {"id": "1", "by": "y"}}))
    for _ in range(data.draw(st.integers(1, 3))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.sampled_from(b'"{}[],: \\0a\n\xff-'))
    assert quick(bytes(body)) == thorough(bytes(body))


@pytest.mark.parametrize(
    "change",
    [
        lambda body: body.replace(b'"detail":{"rounds":2}', b'"detail":{"b":1,"a":2}'),
        lambda body: body.replace(b'"detail":{"rounds":2}', b'"detail":{"a":1,"a":2}'),
        lambda body: body.replace(b'"out":0', b'"out":0.0'),
        lambda body: body.replace(b'"out":0', b'"out": 0'),
        lambda body: body.replace(b'"n":2,', b'"n":2,"n":2,'),
        lambda body: body.replace(b'"why":""', b'"why":"\\u0041"'),
    ],
)
def test_another_spelling_is_no_record(change: Any) -> None:
    body = change(entry(7).body)
    assert body != entry(7).body
    assert quick(body) is None


def test_a_record_too_large_is_none() -> None:
    for length, readable in ((1_000, True), (record.MAX_BYTES, False)):
        assert (quick(canonical(DOCUMENT | {"pou": "x" * length})) is not None) == readable


def test_what_services_record_is_read_at_a_glance() -> None:
    """Otherwise verification is three times as slow: a new field belongs into the form, too."""
    make = recorder(service="federation", instance="federation-1", organisation="platform", version="0.1.0")
    actor = Actor("person", "li", "platform", frozenset({"researcher", "approver"}))
    said = AuditEntry("federation.create", "C", entities=(Entity("federation", "f-1", "1", "ab" * 32),), detail={"rounds": 3, "dry": False})
    body = make(said, Context("federation", actor=actor), "0192f0c2-0000-7000-8000-000000000001", 1, "")
    approved = AuditEntry("model.release", "E", approval={"id": "a", "requester": "person:li", "approvers": "person:wang"})
    for made in (body, make(approved, Context("federation"), "0192f0c2-0000-7000-8000-000000000002", 2, "x")):
        assert record._LAYOUT(made.decode()), made
        assert outline(made)[:2] == (json.loads(made)["n"], "federation")


@pytest.mark.parametrize(
    ("body", "header", "code"),
    [
        ({"n": 9}, {}, "ledger.body_contradicts"),
        ({"src": DOCUMENT["src"] | {"service": "registry"}}, {}, "ledger.body_contradicts"),
        ({}, {"hour": "2026-11-02T00"}, "ledger.body_contradicts"),
        ({"out": "0"}, {}, ""),
        (None, {}, "ledger.body_form"),
    ],
)
def test_a_log_that_logged_nonsense_is_told(tmp_path: Any, body: dict[str, Any] | None, header: dict[str, str], code: str) -> None:
    """Everything is hashed and signed as it should be; what was logged is not in order."""
    content = [entry(seq) for seq in range(8)]
    salt, written = content[7].salt, b"no record" if body is None else canonical(DOCUMENT | body)
    made = Leaf(header.get("hour", "2026-11-01T00"), "gateway", 2, "platform", commitment(salt, written))
    content[7] = type(content[7])(made.encode(), salt, written)
    report = Ledger(tmp_path, write(tmp_path, content)).verify()
    found = [(fault.check, fault.problem.code, fault.seq) for fault in report.faults if fault.check == "body"]
    assert found == ([("body", code, 7)] if code else [])


def test_what_is_no_leaf_is_told(tmp_path: Any) -> None:
    content = [entry(seq) for seq in range(8)]
    content[3] = type(content[3])(content[3].leaf.replace(b'"v":2', b'"v":3'), content[3].salt, content[3].body)
    report = Ledger(tmp_path, write(tmp_path, content)).verify()
    assert ("leaf", "ledger.foreign_leaf", 3) in [(fault.check, fault.problem.code, fault.seq) for fault in report.faults]
    escaped = Leaf("2026-11-01T00", 'a"b', 1, "省医院", "0" * 64)
    assert leaf.decode(escaped.encode()) == escaped
