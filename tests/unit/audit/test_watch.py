"""The watcher's rules: each finds its anomaly once, and leaves what is usual alone."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from tests.unit.auditing.records import made

from medmesh.security.roles import Decision
from medmesh.store.unit import AuditEntry, Entity
from medmesh_audit import rules as watch
from medmesh_audit.rules import Seen

START = datetime(2026, 11, 24, 3, 0, tzinfo=UTC)


def seen(seq: int, entry: AuditEntry, seconds: float = 0.0, *, late: float = 0.0, decision: Decision | None = None, **changed: Any) -> Seen:
    recorded = START + timedelta(seconds=seconds)
    record = made(entry, decision=decision) | {"tr": recorded.strftime("%Y-%m-%dT%H:%M:%S.%fZ")} | changed
    return Seen(seq, recorded + timedelta(seconds=late), record)


def failed(seq: int, seconds: float, user: str = "li") -> Seen:
    return seen(seq, AuditEntry("session.open", "E", 4, "governance.sign_in_refused", (Entity("user", user),)), seconds)


def test_five_failures_of_one_account_in_five_minutes() -> None:
    (found,) = watch.failures().look([failed(n, 60 * n) for n in range(5)])
    assert (found.rule, found.about, found.seq) == ("auth_failures", "user:li", 4)
    assert watch.failures().look([failed(n, 76 * n) for n in range(5)]) == []
    assert watch.failures().look([failed(n, 1, f"user{n}") for n in range(9)]) == []
    opened = [seen(n, AuditEntry("session.open", "E", entities=(Entity("user", "li"),)), n) for n in range(9)]
    assert watch.failures().look(opened) == []


def test_ten_refusals_of_the_role_table() -> None:
    denied = AuditEntry("access.denied", "E", 8)
    tail = [seen(n, denied, n, decision=Decision(False, "default")) for n in range(10)]
    assert [found.rule for found in watch.denials().look(tail)] == ["access_denied"]
    assert watch.denials().look(tail[:9]) == []


def test_a_record_from_the_future_and_not_one_from_a_spool() -> None:
    entry = AuditEntry("training.finish", "C")
    assert [found.about for found in watch.skew([seen(1, entry, late=-2.5)])] == ["federation"]
    assert watch.skew([seen(1, entry, late=-1.5), seen(2, entry, late=86_400)]) == []


def test_another_role_table() -> None:
    entry = AuditEntry("training.finish", "C")
    other = {"policy": {"decision": "internal", "rules": [], "bundle": "ff" * 32}}
    known: dict[str, str] = {}
    assert watch.policy([seen(1, entry)], known) == []
    (found,) = watch.policy([seen(2, entry), seen(3, entry, **other), seen(4, entry, **other)], known)
    assert (found.rule, found.about, found.seq) == ("policy_changed", "federation", 3)
    assert watch.policy([seen(5, entry, **other)], known) == []


def test_more_exports_than_three_times_the_usual() -> None:
    copies = [seen(n, AuditEntry("audit.copy", "R"), n) for n in range(40)]
    assert watch.volume(copies[:20], []) == []
    (found,) = watch.volume(copies, [])
    assert (found.rule, found.about, found.seq) == ("export_volume", "person:li", 20)
    assert watch.volume(copies, [15]) == []


def test_a_witness_that_refuses() -> None:
    refused = AuditEntry(
        "audit.witness_refused", "E", 12, "ledger.quorum", (Entity("witness", "renji.example/w"), Entity("checkpoint", "9"))
    )
    (found,) = watch.split([seen(3, refused), seen(4, AuditEntry("audit.copy", "R"))])
    assert (found.rule, found.about, found.seq) == ("split_view", "witness:renji.example/w", 3)


def test_an_alarm_of_the_service_itself() -> None:
    alarm = AuditEntry("audit.alarm.ddl", "E", 8, "audit.ddl")
    assert [found.about for found in watch.alarms([seen(3, alarm), seen(4, AuditEntry("audit.copy", "R"))])] == ["audit.alarm.ddl"]


def test_an_emergency_access_that_was_opened_or_forgotten() -> None:
    about = (Entity("emergency", "e-1"), Entity("user", "chen"))
    opened, late = AuditEntry("emergency.open", "E", entities=about), AuditEntry("emergency.overdue", "E", 8, "x", about)
    wrong = AuditEntry("emergency.open", "E", 4, "governance.code_wrong")
    found = watch.emergencies([seen(1, opened), seen(2, wrong), seen(3, AuditEntry("emergency.end", "E", entities=about)), seen(4, late)])
    assert [(anomaly.rule, anomaly.about, anomaly.seq) for anomaly in found] == [
        ("emergency", "emergency:e-1", 1),
        ("emergency_overdue", "emergency:e-1", 4),
    ]


def test_programs_that_nobody_signed_for() -> None:
    changed, fits = AuditEntry("program.verify", "E", 8, "program.changed"), AuditEntry("program.verify", "E")
    assert [(found.rule, found.seq) for found in watch.programs([seen(1, fits), seen(2, changed)])] == [("program_changed", 2)]


def test_a_hospital_that_was_shown_another_log() -> None:
    refused, first = AuditEntry("log.refused", "R", 12, "edge.log_forked"), AuditEntry("log.seen", "R")
    (found,) = watch.refused([seen(1, first), seen(2, refused)])
    assert (found.rule, found.seq, watch.SEVERITY[found.rule]) == ("log_refused", 2, "critical")


def test_an_update_that_looks_wrong_names_its_hospital() -> None:
    about = (Entity("federation", "f-1"), Entity("hospital", "renji"))
    flagged, usual = AuditEntry("federation.flag", "E", 4, "copied", entities=about), AuditEntry("federation.round", "E", entities=about)
    (found,) = watch.flagged([seen(1, usual), seen(2, flagged)])
    assert (found.rule, found.about, found.seq) == ("update_flagged", "hospital:renji", 2)


def test_every_rule_has_a_severity() -> None:
    rules = {"auth_failures", "access_denied", "clock_skew", "policy_changed", "export_volume", "emitter_gap", "heartbeat", "root_mismatch"}
    rules |= {"log_alarm", "record_altered", "split_view", "emergency", "emergency_overdue", "checkpoint_old", "log_heartbeat"}
    rules |= {
        "outside_hours",
        "outside_purpose",
        "admin_elsewhere",
        "program_changed",
        "log_refused",
        "update_flagged",
        "hospital_quarantined",
    }
    assert set(watch.SEVERITY) == rules
