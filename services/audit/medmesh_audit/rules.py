"""What looks wrong in a log: rules as functions of its entries. What they find is raised once (`medmesh_audit.anomalies`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, tzinfo
from datetime import time as Hour
from typing import Any, Literal

PERIOD = timedelta(minutes=5)
FAILURES = 5
DENIALS = 10
SKEW = timedelta(seconds=2)
EXPORTS = frozenset({"annotation.export", "audit.copy", "audit.download", "audit.export"})
FEWEST_EXPORTS = 20
VERBS = (
    "access.elsewhere",
    "audit.alarm.",
    "audit.witness_refused",
    "emergency.",
    "federation.flag",
    "federation.quarantine",
    "log.refused",
    "program.verify",
)
"""What records are remarkable for themselves begin with."""
SEVERITY: dict[str, Literal["warning", "critical"]] = {
    "auth_failures": "warning",
    "access_denied": "warning",
    "admin_elsewhere": "critical",
    "checkpoint_old": "critical",
    "clock_skew": "warning",
    "emergency": "warning",
    "emergency_overdue": "critical",
    "emitter_gap": "critical",
    "export_volume": "warning",
    "heartbeat": "warning",
    "hospital_quarantined": "warning",
    "log_alarm": "critical",
    "log_heartbeat": "critical",
    "log_refused": "critical",
    "outside_hours": "warning",
    "outside_purpose": "warning",
    "policy_changed": "critical",
    "program_changed": "critical",
    "record_altered": "critical",
    "root_mismatch": "critical",
    "split_view": "critical",
    "update_flagged": "warning",
}


@dataclass(frozen=True, slots=True)
class Anomaly:
    """What a rule found. `about` and `window` (a number) make it one of a kind: it is raised once."""

    rule: str
    about: str
    window: int
    seq: int | None = None
    trace: str = ""


@dataclass(frozen=True, slots=True)
class Seen:
    """One entry of the tail."""

    seq: int
    at: datetime
    record: Mapping[str, Any]

    @property
    def recorded(self) -> datetime:
        """When its emitter recorded it."""
        return datetime.fromisoformat(self.record["tr"])

    @property
    def account(self) -> str:
        """Whose account it is about: the user it names, else who did it."""
        return next((f"user:{e['id']}" for e in self.record["entities"] if e["type"] == "user"), str(self.record["agents"][0]["who"]))


@dataclass
class Bursts:
    """`most` of one account within five minutes; told again only in a later window. It remembers what it saw, not what it told."""

    rule: str
    most: int
    counts: Callable[[Mapping[str, Any]], bool]
    _recent: dict[str, list[Seen]] = field(default_factory=dict)

    def look(self, tail: Iterable[Seen]) -> list[Anomaly]:
        """At entries in their order; those seen before are passed over."""
        found: list[Anomaly] = []
        for seen in (s for s in tail if self.counts(s.record)):
            before = self._recent.get(seen.account, [])
            if before and before[-1].seq >= seen.seq:
                continue
            recent = [other for other in before if seen.recorded - other.recorded < PERIOD] + [seen]
            if len(recent) >= self.most:
                found.append(_anomaly(self.rule, seen.account, seen))
                recent = []
            self._recent[seen.account] = recent
        return found

    def forget(self, before: datetime) -> None:
        """Accounts that were quiet since then."""
        self._recent = {account: seen for account, seen in self._recent.items() if seen and seen[-1].recorded > before}


def failures() -> Bursts:
    """Sign-ins that failed, five in five minutes."""
    return Bursts("auth_failures", FAILURES, lambda record: record["sub"] == "session.open" and bool(record["out"]))


def denials() -> Bursts:
    """Refusals of the role table, ten in five minutes."""
    return Bursts("access_denied", DENIALS, lambda record: record["policy"]["decision"] == "deny")


def skew(tail: Iterable[Seen]) -> list[Anomaly]:
    """A record from the future: late ones were in a spool, but no clock that is right says later than ours."""
    return [_anomaly("clock_skew", seen.record["src"]["service"], seen) for seen in tail if seen.recorded - seen.at > SKEW]


def policy(tail: Iterable[Seen], known: dict[str, str]) -> list[Anomaly]:
    """An emitter whose role table became another one; `known` is updated."""
    found = []
    for seen in tail:
        emitter, bundle = seen.record["src"]["service"], seen.record["policy"]["bundle"]
        if known.setdefault(emitter, bundle) != bundle:
            found.append(_anomaly("policy_changed", emitter, seen))
            known[emitter] = bundle
    return found


def split(tail: Iterable[Seen]) -> list[Anomaly]:
    """A witness that knows another history of this log."""
    return [
        _anomaly("split_view", f"{e['type']}:{e['id']}", seen)
        for seen in tail
        if seen.record["sub"] == "audit.witness_refused"
        for e in seen.record["entities"][:1]
    ]


def alarms(tail: Iterable[Seen]) -> list[Anomaly]:
    """What the service itself alarmed about: its tables changed, its stored log contradicts its checkpoint."""
    return [_anomaly("log_alarm", seen.record["sub"], seen) for seen in tail if seen.record["sub"].startswith("audit.alarm.")]


def programs(tail: Iterable[Seen]) -> list[Anomaly]:
    """A service runs what nobody signed for."""
    return [
        _anomaly("program_changed", seen.record["src"]["service"], seen)
        for seen in tail
        if seen.record["sub"] == "program.verify" and seen.record["out"]
    ]


def refused(tail: Iterable[Seen]) -> list[Anomaly]:
    """A hospital's node was shown a log that does not continue the one it saw."""
    return [_anomaly("log_refused", str(seen.record["src"]["service"]), seen) for seen in tail if seen.record["sub"] == "log.refused"]


def flagged(tail: Iterable[Seen]) -> list[Anomaly]:
    """A hospital's update of a federation looks wrong (poisoned, copied, replayed or not trained), or the hospital is in quarantine."""
    rules = {"federation.flag": "update_flagged", "federation.quarantine": "hospital_quarantined"}
    return [
        _anomaly(rules[seen.record["sub"]], f"{e['type']}:{e['id']}", seen)
        for seen in tail
        if seen.record["sub"] in rules and seen.record["src"]["service"] == "federation"
        for e in seen.record["entities"][1:2]
    ]


def emergencies(tail: Iterable[Seen]) -> list[Anomaly]:
    """Somebody broke the glass, or nobody looked into it in time."""
    rules = {"emergency.open": "emergency", "emergency.overdue": "emergency_overdue"}
    return [
        _anomaly(rules[seen.record["sub"]], f"emergency:{e['id']}", seen)
        for seen in tail
        # One that was refused opened nothing.
        if seen.record["sub"] in rules and seen.record["out"] != 4
        for e in seen.record["entities"][:1]
    ]


def elsewhere(tail: Iterable[Seen]) -> list[Anomaly]:
    """An administrator from an address that is not one of theirs."""
    return [_anomaly("admin_elsewhere", seen.account, seen) for seen in tail if seen.record["sub"] == "access.elsewhere"]


def hours(tail: Iterable[Seen], working: Mapping[str, tuple[Hour, Hour]], zone: tzinfo) -> list[Anomaly]:
    """What people did while none of their roles works. Who has a role without hours may work at any."""
    found = []
    for seen in tail:
        if (roles := _roles(seen)) and all(role in working for role in roles):
            at = datetime.fromisoformat(seen.record["t"]).astimezone(zone).time()
            if not any(_within(at, *working[role]) for role in roles):
                found.append(_anomaly("outside_hours", seen.account, seen))
    return found


def _within(at: Hour, begin: Hour, end: Hour) -> bool:
    return begin <= at < end if begin <= end else at >= begin or at < end


def purposes(tail: Iterable[Seen], working: Mapping[str, tuple[str, ...]]) -> list[Anomaly]:
    """What people did for a purpose that none of their roles works for."""
    found = []
    for seen in tail:
        roles = _roles(seen)
        if roles and all(role in working for role in roles) and seen.record["pou"] not in {p for role in roles for p in working[role]}:
            found.append(_anomaly("outside_purpose", seen.account, seen))
    return found


def _roles(seen: Seen) -> list[str]:
    """Of the person who did it; empty for services, hospitals, and for what was refused."""
    agent = seen.record["agents"][0]
    return agent["role"].split(",") if agent["who"].startswith("person:") and agent["role"] and not seen.record["out"] else []


def volume(tail: Sequence[Seen], hourly: Sequence[int]) -> list[Anomaly]:
    """More exports of one actor in an hour than three times what is usual (the 99th percentile of earlier hours)."""
    usual = sorted(hourly)[min(len(hourly) - 1, int(len(hourly) * 0.99))] if hourly else 0
    most, counts = max(FEWEST_EXPORTS, 3 * usual), Counter[str]()
    found = []
    for seen in (s for s in tail if s.record["sub"] in EXPORTS):
        who = seen.record["agents"][0]["who"]
        counts[who] += 1
        if counts[who] == most + 1:
            found.append(_anomaly("export_volume", who, seen))
    return found


def _anomaly(rule: str, about: str, seen: Seen) -> Anomaly:
    return Anomaly(
        rule, about, int(seen.recorded.timestamp() // PERIOD.total_seconds()), seen.seq, str(seen.record["ctx"].get("trace", ""))
    )
