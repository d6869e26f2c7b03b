"""No clause is green by itself: every one that is met turns when what it stands on is broken."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from medmesh_audit import evidence
from medmesh_audit.clauses import CLAUSES
from medmesh_audit.evidence import STATES, Backup, Facts

GOOD = Facts(
    verbs={"audit.search": 3, "user.create": 2, "password.change": 1},
    refused={"governance.locked": 1, "governance.sign_in_refused": 5, "governance.disabled": 1, "security.address": 1},
    last={"user.create": 4, "governance.locked": 9},
    size=20,
    stored=20,
    signature=True,
    rooted=True,
    sample=20,
    bodies=True,
    fields=True,
    purposes=True,
    identifiers=0,
    bundles=frozenset(("aa",)),
    bundle="aa",
    adopted=frozenset(("aa",)),
    mandatory=True,
    labelled=7,
    hidden=2,
    lowered=1,
    clearances=1,
    gaps=(),
    emitting=frozenset(("gateway", "governance", "edge:renji")),
    expected=frozenset(("gateway", "governance")),
    writable=(),
    foreign=(),
    superuser=False,
    plain=(),
    exclusive=True,
    weak_refused=True,
    strict=True,
    networks=("10.0.0.0/8",),
    elsewhere_refused=True,
    administrators=0,
    accounts=3,
    doubled=0,
    bootstraps=1,
    nameless=0,
    factors={"password+otp": 4},
    unapproved=0,
    approved=2,
    backups={"backup.create": Backup(1, 0, 15), "backup.verify": Backup(30, 0, 15), "backup.restore": Backup(30, 0, 15)},
    retention=180,
    watched=True,
    sealed=True,
    undumpable=True,
    verified=frozenset(("gateway", "governance", "edge:renji")),
    wiped=True,
    silent_actions={"system_administrator": (), "security_administrator": (), "audit_administrator": ()},
)


def states(found: Facts) -> dict[str, str]:
    return {one["clause"]: one["state"] for one in evidence.report(found)["clauses"]}


BREAKS: list[tuple[dict[str, Any], set[str]]] = [
    ({"doubled": 1}, {"8.1.4.1 a)"}),
    ({"weak_refused": False}, {"8.1.4.1 a)"}),
    ({"accounts": 0}, {"8.1.4.1 a)", "8.1.4.2 a)"}),
    ({"refused": {**GOOD.refused, "governance.locked": 0}}, {"8.1.4.1 b)"}),
    ({"refused": {**GOOD.refused, "governance.disabled": 0}}, {"8.1.4.2 c)"}),
    ({"refused": {**GOOD.refused, "governance.sign_in_refused": 0}}, {"8.1.4.1 b)"}),
    ({"plain": ("nats",)}, {"8.1.4.1 c)", "8.1.4.7 a)", "8.1.4.8 a)", "8.1.5.4 b)", "8.1.2.2 a)", "8.1.2.2 b)"}),
    ({"factors": {"password+otp": 4, "password": 1}}, {"8.1.4.1 d)"}),
    ({"factors": {}}, {"8.1.4.1 d)"}),
    ({"bootstraps": 2}, {"8.1.4.2 b)"}),
    ({"nameless": 1}, {"8.1.4.2 b)"}),
    ({"exclusive": False}, {"8.1.4.2 d)"}),
    ({"administrators": 1}, {"8.1.4.2 d)"}),
    ({"bundles": frozenset(("aa", "bb"))}, {"8.1.4.2 e)", "8.1.5.3 b)"}),
    ({"mandatory": False}, {"8.1.4.2 g)", "8.1.5.3 b)"}),
    ({"labelled": 0}, {"8.1.4.2 g)"}),
    ({"hidden": 0}, {"8.1.4.2 g)"}),
    ({"laundered": 1}, {"8.1.4.2 g)"}),
    ({"clearances": 0}, {"8.1.5.3 b)"}),
    ({"ungranted": 1}, {"8.1.5.3 b)"}),
    ({"bundle": "bb"}, {"8.1.4.2 e)"}),
    ({"foreign": ("registry",)}, {"8.1.4.2 f)"}),
    ({"superuser": True}, {"8.1.4.2 f)"}),
    ({"emitting": frozenset(("gateway", "edge:renji"))}, {"8.1.4.3 a)", "8.1.3.5 a)"}),
    (
        {"gaps": ("gateway",)},
        {"8.1.4.3 a)", "8.1.4.3 c)", "8.1.4.7 b)", "8.1.10.6 变更性运维", "8.1.3.5 a)", "8.1.3.5 c)", "8.1.10.10", "8.1.3.5 d)"},
    ),
    ({"fields": False}, {"8.1.4.3 b)", "8.1.3.5 b)"}),
    ({"writable": ("UPDATE",)}, {"8.1.4.3 c)", "8.1.3.5 c)"}),
    ({"signature": False}, {"8.1.4.3 c)", "8.1.4.7 b)", "8.1.10.6 变更性运维", "8.1.3.5 c)", "8.1.10.10"}),
    ({"rooted": False}, {"8.1.4.3 c)", "8.1.4.7 b)", "8.1.10.6 变更性运维", "8.1.3.5 c)", "8.1.10.10"}),
    ({"bodies": False}, {"8.1.4.3 c)", "8.1.4.7 b)", "8.1.10.6 变更性运维", "8.1.3.5 c)", "8.1.10.10"}),
    ({"stored": 19}, {"8.1.4.3 c)", "8.1.4.7 b)", "8.1.5.2 b)", "8.1.5.4 d)", "8.1.10.6 变更性运维", "8.1.3.5 c)", "8.1.10.10"}),
    ({"strict": False}, {"8.1.4.4 d)"}),
    ({"watched": False}, {"8.1.4.4 f)", "8.1.5.4 f)", "8.1.3.5 d)"}),
    ({"identifiers": 1}, {"8.1.4.11 a)"}),
    ({"purposes": False}, {"8.1.4.11 b)"}),
    ({"silent_actions": {**GOOD.silent_actions, "system_administrator": ("dead.replay",)}}, {"8.1.5.1 a)"}),
    ({"silent_actions": {**GOOD.silent_actions, "security_administrator": ("user.create",)}}, {"8.1.5.3 a)"}),
    ({"silent_actions": {**GOOD.silent_actions, "audit_administrator": ("audit.export",)}}, {"8.1.5.2 a)"}),
    ({"verbs": {**GOOD.verbs, "audit.search": 0}}, {"8.1.5.2 a)"}),
    ({"verbs": {**GOOD.verbs, "password.change": 0}}, {"8.1.4.1 a)"}),
    ({"retention": 179}, {"8.1.5.2 b)", "8.1.5.4 d)"}),
    ({"emitting": frozenset(("gateway", "governance"))}, {"8.1.5.4 d)", "8.1.3.5 d)"}),
    ({"unapproved": 1}, {"8.1.10.6 变更性运维", "8.1.10.10"}),
    ({"approved": 0}, {"8.1.10.6 变更性运维", "8.1.10.10"}),
    ({"backups": {**GOOD.backups, "backup.create": Backup(8, 0, 15)}}, {"8.1.4.9 a)", "8.1.4.3 c)", "8.1.3.5 c)"}),
    ({"backups": {**GOOD.backups, "backup.create": Backup(1, 8, 0)}}, {"8.1.4.9 a)", "8.1.4.3 c)", "8.1.3.5 c)"}),
    ({"backups": {**GOOD.backups, "backup.verify": Backup(1, 8, 0)}}, {"8.1.4.9 a)"}),
    ({"backups": {**GOOD.backups, "backup.restore": Backup(93, 0, 15)}}, {"8.1.4.9 a)"}),
    ({"verified": frozenset()}, {"8.1.4.6", "8.1.5.3 b)"}),
    ({"unverified": frozenset(("gateway",))}, {"8.1.4.6", "8.1.5.3 b)"}),
    ({"sealed": False}, {"8.1.4.8 b)"}),
    ({"undumpable": False}, {"8.1.4.10 a)"}),
    ({"wiped": False}, {"8.1.4.10 b)"}),
    ({"networks": ()}, {"8.1.4.4 c)"}),
    ({"elsewhere_refused": False}, {"8.1.4.4 c)"}),
    ({"refused": {**GOOD.refused, "security.address": 0}}, {"8.1.4.4 c)"}),
]


@pytest.mark.parametrize(("change", "clauses"), BREAKS, ids=lambda value: "+".join(value) if isinstance(value, dict) else "")
def test_breaking_a_fact_turns_exactly_the_clauses_that_stand_on_it(change: dict[str, Any], clauses: set[str]) -> None:
    before, after = states(GOOD), states(replace(GOOD, **change))
    assert {clause for clause in before if before[clause] != after[clause]} == clauses
    assert all(after[clause] in ("part", "not_met") for clause in clauses)


def test_every_clause_that_is_met_or_partly_met_is_broken_above() -> None:
    broken = {clause for _, clauses in BREAKS for clause in clauses}
    assert {clause for clause, state in states(GOOD).items() if state in ("met", "part")} == broken


def test_nothing_is_met_where_nothing_was_seen() -> None:
    assert set(states(Facts()).values()) == {"procedural", "not_met"}


def test_the_checklist_is_whole_and_in_both_languages() -> None:
    numbers = [clause.number for clause in CLAUSES]
    assert len(numbers) == len(set(numbers))
    items = {"1": "abcd", "2": "abcdefg", "3": "abcd", "4": "abcdef", "7": "ab", "8": "ab", "9": "abc", "10": "ab", "11": "ab"}
    wanted = {f"8.1.4.{n} {letter})" for n, letters in items.items() for letter in letters} | {"8.1.4.5", "8.1.4.6"}
    centre = {"1": "ab", "2": "ab", "3": "ab", "4": "abcdef"}
    wanted |= {f"8.1.5.{n} {letter})" for n, letters in centre.items() for letter in letters}
    wanted |= {f"8.1.10.6 {kind}" for kind in ("变更性运维", "运维工具", "远程运维")}
    wanted |= {"8.1.2.2 a)", "8.1.2.2 b)", "8.1.10.9", "8.1.10.10"} | {f"8.1.3.5 {letter})" for letter in "abcd"}
    assert set(numbers) == wanted
    report = evidence.report(GOOD)
    for one in report["clauses"]:
        assert one["item"]["zh"]
        assert one["item"]["en"]
        assert one["proof"]["zh"]
        assert one["proof"]["en"]
        assert bool(one["repeat"]) == (one["state"] != "procedural"), "whatever a program shows can be seen again"
        assert (one["state"] == "procedural") == one["proof"]["zh"].startswith("制度")
    assert sum(report["counts"].values()) == len(CLAUSES)


@pytest.mark.parametrize("tongue", ["zh", "en"])
def test_the_page_can_be_printed_and_shows_every_clause(tongue: str) -> None:
    page = evidence.page(evidence.report(GOOD), tongue)
    assert "@page" in page
    assert page.count("<tr class=") == len(CLAUSES)
    for state in states(GOOD).values():
        assert STATES[state][tongue == "zh"] in page
    assert "<script" not in page


def test_identity_and_telephone_numbers_are_recognised_and_digests_are_not() -> None:
    for personal in ("11010519491231002X", "13800138000"):
        assert evidence._IDENTIFIERS.search(f'"note":"{personal}"')
    for harmless in ("ab13800138000cd" * 4, "0190c1d2-3e4f-7a8b-9c0d-13800138000a", "2026-11-24T03:04:05.678901Z"):
        assert not evidence._IDENTIFIERS.search(harmless)
