"""Every verb the code records is in the table, and the table holds nothing that no code records."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.architecture.sources import ROOT
from tests.unit.auditing.records import ALL, WHO, made

from medmesh.auditing.vocabulary import CODES, PURPOSES, RETENTION_DAYS, SUBCODES, VERBS
from medmesh.cli.schemas_flows import messages
from medmesh.contracts.message import Command, Exchange
from medmesh.ledger.record import FIELDS, read_record, record_bytes
from medmesh.security import access, roles
from medmesh.security.roles import Decision
from medmesh.security.tokens import Actor
from medmesh.store.unit import AuditEntry, Entity
from medmesh_audit.alarms import KINDS

CALLERS = {
    "looked": 1,
    "change_account": 2,
    "transferred": 1,
    "not_done": 4,
    "about_patients": 1,
    "_escrowed": 1,
    "on_record": 1,
    "_to_record": 2,
    "record_body": 0,
}
"""Functions that pass a verb on, and the place of the verb among their arguments."""


def verbs_in(path: Path) -> Iterator[str]:
    """The verbs of every `AuditEntry` in a file; one that cannot be told is the empty string."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    constants = {
        node.targets[0].id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute)):
            continue
        name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
        place = 0 if name == "AuditEntry" else CALLERS.get(name)
        if place is None:
            continue
        given = [keyword.value for keyword in node.keywords if keyword.arg == "verb"] or node.args[place : place + 1]
        yield from spelled(given[0], constants)


def spelled(node: ast.expr, constants: dict[str, object]) -> Iterator[str]:
    if isinstance(node, ast.Constant):
        yield str(node.value)
    elif isinstance(node, ast.IfExp):
        yield from spelled(node.body, constants)
        yield from spelled(node.orelse, constants)
    elif isinstance(node, ast.Name) and node.id in constants:
        yield str(constants[node.id])
    elif isinstance(node, ast.JoinedStr):  # f"model.{'install' if report else 'remove'}"
        head, inserted = node.values
        assert isinstance(head, ast.Constant)
        assert isinstance(inserted, ast.FormattedValue)
        kinds = KINDS if ast.unparse(inserted.value) == "kind" else tuple(spelled(inserted.value, constants))
        yield from (f"{head.value}{rest}" for rest in kinds)
    elif ast.unparse(node) not in ("message.data.ACTION", "verb", "asked"):
        yield ""


def recorded() -> set[str]:
    """What the code records: the entries' own verbs, and what commands and exchanges ask for, which is recorded when it is refused."""
    sources = [path for folder in ("libs", "services") for path in (ROOT / folder).rglob("*.py")]
    found = {verb for path in sources for verb in verbs_in(path)}
    declared = [m for m in messages() if "TYPE" in vars(m)]
    found |= {m.ACTION or m.TYPE.rpartition(".")[0] for m in declared if issubclass(m, Exchange)}
    return found | {m.ACTION for m in declared if issubclass(m, Command)}


def test_the_table_holds_exactly_the_verbs_the_code_records() -> None:
    assert recorded() == set(VERBS)


def test_every_code_is_declared_and_every_declared_code_is_used() -> None:
    assert {verb.code for verb in VERBS.values()} <= set(CODES)
    assert {verb.sub for verb in VERBS.values()} == set(SUBCODES)
    assert {verb.purpose for verb in VERBS.values()} == set(PURPOSES)
    assert {verb.retention for verb in VERBS.values()} == set(RETENTION_DAYS)
    assert min(RETENTION_DAYS.values()) >= 180
    assert len({verb.zh for verb in VERBS.values()}) >= len(VERBS) - 1  # two kinds of alarm share a name


@pytest.mark.parametrize("verb", VERBS)
def test_a_record_of_every_verb_is_canonical_and_whole(verb: str) -> None:
    record = ALL[verb]
    assert set(record) == FIELDS
    assert read_record(record_bytes(record)) == record
    assert (record["type"]["code"], record["type"]["subcode"]) == (VERBS[verb].code, VERBS[verb].sub)
    assert record["pou"] == VERBS[verb].purpose


def test_a_verb_or_a_purpose_nobody_declared_is_not_recorded() -> None:
    with pytest.raises(ValueError, match=r"model\.steal"):
        made(AuditEntry("model.steal", "E"))
    with pytest.raises(ValueError, match="curiosity"):
        made(AuditEntry("inference.infer", "E", purpose="curiosity"))
    assert made(AuditEntry("inference.infer", "E", purpose="HRESCH"))["pou"] == "HRESCH"


def test_the_decision_and_the_digest_of_the_table_stand_in_the_record(monkeypatch: pytest.MonkeyPatch) -> None:
    record = made(AuditEntry("model.register", "C"), decision=Decision(True, "role:researcher"))
    assert record["policy"] == {"decision": "permit", "rules": ["role:researcher"], "bundle": access.policy_digest()}
    assert made(AuditEntry("access.denied", "E"), decision=Decision(False, "default"))["policy"]["decision"] == "deny"
    assert made(AuditEntry("federation.move", "U"), actor=None)["policy"]["decision"] == "internal"
    before = roles.policy_digest()
    monkeypatch.setitem(roles.TABLE, "model.register", ("researcher", "clinician"))
    roles.policy_digest.cache_clear()
    assert roles.policy_digest() != before
    monkeypatch.undo()
    roles.policy_digest.cache_clear()


def test_a_record_belongs_to_the_hospitals_it_is_about() -> None:
    hospital = Actor("hospital", "renji", "renji", frozenset(("hospital",)))
    assert made(AuditEntry("federation.update", "C"), actor=hospital)["orgs"] == ["renji"]
    assert made(AuditEntry("federation.round", "E", hospitals=("ruijin", "renji")), actor=None)["orgs"] == ["renji", "ruijin"]
    assert made(AuditEntry("node.enrolled", "C", entities=(Entity("hospital", "renji"),)), actor=WHO)["orgs"] == ["renji"]
    assert made(AuditEntry("training.submit", "C"), actor=WHO)["orgs"] == ["platform"]
    # A node speaks of its own hospital alone, whoever is named.
    assert made(AuditEntry("federation.train", "E", entities=(Entity("hospital", "ruijin"),)), actor=hospital, node="renji")["orgs"] == [
        "renji"
    ]
