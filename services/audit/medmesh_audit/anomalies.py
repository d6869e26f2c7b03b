"""The anomaly watcher: it reads the log's tail every few seconds and raises what does not look right, each once.

Rules are functions of values; what they find becomes a row, a fact `audit.alert.raised.v1`, an audit record and a metric.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, tzinfo
from datetime import time as Hour
from typing import Any, Literal, cast
from zoneinfo import ZoneInfo

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert

from medmesh.contracts.audit import AlertRaised
from medmesh.contracts.message import new_id
from medmesh.service.runtime import Runtime
from medmesh.store.unit import AuditEntry, Entity, UnitOfWork
from medmesh.telemetry import current_traceparent, log, metrics, span
from medmesh_audit.domain import whole
from medmesh_audit.queries import root_of
from medmesh_audit.retention import minimum_index
from medmesh_audit.settings import Settings
from medmesh_audit.tables import alerts, checkpoints, entries, facts

PERIOD = timedelta(minutes=5)
FAILURES = 5
DENIALS = 10
SKEW = timedelta(seconds=2)
SILENT_SECONDS = 60.0
EXPORTS = frozenset({"annotation.export", "audit.copy", "audit.download", "audit.export"})
FEWEST_EXPORTS = 20
TAIL = 5_000
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
    "log_alarm": "critical",
    "log_heartbeat": "critical",
    "outside_hours": "warning",
    "outside_purpose": "warning",
    "policy_changed": "critical",
    "record_altered": "critical",
    "root_mismatch": "critical",
    "split_view": "critical",
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


def bursts(rule: str, tail: Iterable[Seen], most: int) -> list[Anomaly]:
    """`most` of one account within five minutes; told again only in a later window."""
    times: dict[str, list[Seen]] = defaultdict(list)
    found: list[Anomaly] = []
    for seen in tail:
        recent = [other for other in times[seen.account] if seen.recorded - other.recorded < PERIOD] + [seen]
        times[seen.account] = recent
        if len(recent) >= most:
            found.append(_anomaly(rule, seen.account, seen))
            times[seen.account] = []
    return found


def failures(tail: Iterable[Seen]) -> list[Anomaly]:
    """Sign-ins that failed, five in five minutes."""
    return bursts("auth_failures", (s for s in tail if s.record["sub"] == "session.open" and s.record["out"]), FAILURES)


def denials(tail: Iterable[Seen]) -> list[Anomaly]:
    """Refusals of the role table, ten in five minutes."""
    return bursts("access_denied", (s for s in tail if s.record["policy"]["decision"] == "deny"), DENIALS)


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


@dataclass
class Anomalies:
    """Reads the tail; `report` is for what never reaches the log, `alive` for hospitals' signs of life."""

    runtime: Runtime
    further: list[Callable[[UnitOfWork[Any]], Awaitable[list[Anomaly]]]] = field(default_factory=list)
    """What else is looked at, each time."""
    last_run: float = 0.0
    """Of the monotonic clock; 0 before the first."""
    _pending: list[Anomaly] = field(default_factory=list)
    _alive: dict[str, float] = field(default_factory=dict)
    _policies: dict[str, str] = field(default_factory=dict)
    _cursor: int | None = None

    def report(self, rule: str, about: str) -> None:
        """Somebody else saw it: the intake a gap."""
        self._pending.append(Anomaly(rule, about, int(time.time() // PERIOD.total_seconds())))

    def alive(self, hospital: str) -> None:
        """A hospital's node said that it lives."""
        self._alive[hospital] = time.monotonic()

    def silent(self, now: float) -> list[Anomaly]:
        """Hospitals that said so before and no longer do; told once, and again after they came back."""
        gone = [hospital for hospital, last in self._alive.items() if now - last > SILENT_SECONDS]
        for hospital in gone:
            del self._alive[hospital]
        return [Anomaly("heartbeat", f"hospital:{hospital}", int(time.time())) for hospital in gone]

    async def run(self) -> None:
        """One look at everything that is new, and at what the last minutes add up to."""
        pending, self._pending = self._pending, []
        found = [*pending, *self.silent(time.monotonic())]
        try:
            async with self.runtime.unit() as uow:
                found += await self._look(uow)
                for look in self.further:
                    found += await look(uow)
            for anomaly in found:
                await self._raise(anomaly)
        except BaseException:
            self._pending = [*pending, *self._pending]  # what nobody else will tell again
            raise
        self.last_run = time.monotonic()

    async def _look(self, uow: UnitOfWork[Any]) -> list[Anomaly]:
        newest = await uow.first(select(func.max(entries.c.seq).label("seq")))
        top = -1 if newest is None or newest.seq is None else int(newest.seq)
        first = max(0, top - TAIL) if self._cursor is None else self._cursor
        window = await uow.first(select(func.min(facts.c.seq).label("seq")).where(facts.c.recorded > uow.now - PERIOD))
        begin = min(first, window.seq) if window is not None and window.seq is not None else first
        begin = max(begin, await minimum_index(uow))  # what was pruned is not altered
        rows = await uow.all(select(entries).where(entries.c.seq >= begin).order_by(entries.c.seq))
        tail = [Seen(row.seq, row.at, json.loads(row.body)) for row in rows if whole(row)]
        fresh = [seen for seen in tail if seen.seq >= first]
        self._cursor = (rows[-1].seq if rows else top) + 1
        altered = [Anomaly("record_altered", f"record:{row.seq}", 0, row.seq) for row in rows if not whole(row)]
        found = [*altered, *failures(tail), *denials(tail), *skew(fresh), *policy(fresh, self._policies), *split(fresh), *alarms(fresh)]
        settings = cast(Settings, self.runtime.settings)
        found += elsewhere(fresh) + hours(fresh, settings.working_hours, ZoneInfo(settings.time_zone))
        found += purposes(fresh, settings.working_purposes)
        found += emergencies(fresh)
        found += volume(await self._exports(uow), await self._hours(uow))
        return [*found, *await self._root(uow)]

    @staticmethod
    async def _exports(uow: UnitOfWork[Any]) -> list[Seen]:
        recent = facts.c.verb.in_(EXPORTS) & (facts.c.recorded > uow.now - timedelta(hours=1))
        wanted = select(entries).join(facts, facts.c.seq == entries.c.seq).where(recent)
        return [Seen(row.seq, row.at, json.loads(row.body)) for row in await uow.all(wanted.order_by(entries.c.seq)) if whole(row)]

    @staticmethod
    async def _hours(uow: UnitOfWork[Any]) -> list[int]:
        hour = func.date_trunc("hour", facts.c.recorded)
        before = (facts.c.recorded > uow.now - timedelta(days=30)) & (facts.c.recorded < uow.now - timedelta(hours=1))
        wanted = select(func.count().label("n")).where(facts.c.verb.in_(EXPORTS), before).group_by(facts.c.who, hour)
        return [row.n for row in await uow.all(wanted)]

    @staticmethod
    async def _root(uow: UnitOfWork[Any]) -> list[Anomaly]:
        """The newest checkpoint must be what the stored tiles and hashes make."""
        newest = await uow.first(select(checkpoints).order_by(checkpoints.c.size.desc()).limit(1))
        if newest is None:
            return []
        try:
            fits = await root_of(uow, newest.size) == newest.root
        except Exception:  # a tile that is gone or cut is no better than one that differs
            fits = False
        return [] if fits else [Anomaly("root_mismatch", "log", int(time.time() // PERIOD.total_seconds()), int(newest.size) - 1)]

    async def _raise(self, found: Anomaly) -> None:
        severity = SEVERITY[found.rule]
        with span("audit.alert"):
            # Where no tracer runs an id of its own still joins the alert's event, record and log line.
            trace = found.trace or (current_traceparent() or f"-{os.urandom(16).hex()}-").split("-")[1]
            async with self.runtime.unit() as uow:
                alert = new_id()
                values = {"alert": alert, "rule": found.rule, "subject": found.about, "window": found.window, "seq": found.seq}
                made = await uow.execute(insert(alerts).values(**values, trace=trace, at=uow.now).on_conflict_do_nothing())
                if made.rowcount == 0:
                    return
                uow.emit(AlertRaised(alert=alert, rule=found.rule, severity=severity, about=found.about, seq=found.seq, trace=trace))
                about = (Entity("record", str(found.seq)),) if found.seq is not None else ()
                outcome = 8 if severity == "critical" else 4
                detail: dict[str, str | int | bool] = {"alert": alert, "about": found.about, "trace": trace}
                uow.audit(AuditEntry("audit.alert", "E", outcome, f"alert.{found.rule}", about, detail=detail))
                uow.on_commit(lambda: _tell(found, trace))


def _tell(found: Anomaly, trace: str) -> None:
    metrics.AUDIT_ALERTS.labels(found.rule).inc()
    log("audit.alert", level=40, rule=found.rule, about=found.about, seq=found.seq, alert_trace=trace)
