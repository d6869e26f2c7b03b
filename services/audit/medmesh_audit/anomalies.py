"""The anomaly watcher: it reads what is new in the log every few seconds and raises what does not look right, each once.

What the rules (`medmesh_audit.rules`) find becomes a row, a fact `audit.alert.raised.v1`, an audit record and a metric. It works
in pieces, each entry is read once, and what is stored is checked in the database: the log's writer, in the same process, is not kept
waiting however much is logged.
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, cast
from zoneinfo import ZoneInfo

from pydantic_core import from_json
from sqlalchemy import ColumnElement, func, select
from sqlalchemy.dialects.postgresql import insert

from medmesh.contracts.audit import AlertRaised
from medmesh.contracts.message import new_id
from medmesh.service.runtime import Runtime
from medmesh.store.unit import AuditEntry, Entity, UnitOfWork
from medmesh.telemetry import current_traceparent, log, metrics, span
from medmesh_audit.queries import root_of
from medmesh_audit.remarkable import remarkable
from medmesh_audit.retention import minimum_index
from medmesh_audit.rules import (
    EXPORTS,
    PERIOD,
    SEVERITY,
    Anomaly,
    Bursts,
    Seen,
    alarms,
    denials,
    elsewhere,
    emergencies,
    failures,
    flagged,
    hours,
    policy,
    programs,
    purposes,
    refused,
    skew,
    split,
    volume,
)
from medmesh_audit.scrub import Scrub, sound
from medmesh_audit.settings import Settings
from medmesh_audit.tables import alerts, checkpoints, entries, facts

SILENT_SECONDS = 60.0
TAIL = 5_000
"""How many entries before the newest a watcher that starts looks at."""
PIECE = 1_000


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
    _bursts: tuple[Bursts, ...] = field(default_factory=lambda: (failures(), denials()))
    scrub: Scrub = field(default_factory=Scrub)

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
        try:
            found = [*pending, *self.silent(time.monotonic())]
            async with self.runtime.unit() as uow:
                found += await self._state(uow)
                for look in self.further:
                    found += await look(uow)
            await self._tell(found)
            while await self._next():
                pass
        except BaseException:
            self._pending = [*pending, *self._pending]  # what nobody else will tell again
            raise
        self.last_run = time.monotonic()

    async def _next(self) -> bool:
        """The next entries since the last look; False when there are no more. The place moves when what was found is told."""
        settings = cast(Settings, self.runtime.settings)
        async with self.runtime.unit() as uow:
            if self._cursor is None:
                self._cursor = await self._begin(uow)
            newest = await uow.first(select(entries.c.seq).order_by(entries.c.seq.desc()).limit(1))
            end = min(self._cursor + PIECE, newest.seq + 1) if newest is not None else 0
            piece = (entries.c.seq >= self._cursor) & (entries.c.seq < end)
            chosen = remarkable(frozenset(self._policies.items()), frozenset({*settings.working_hours, *settings.working_purposes}))
            fresh = await self._seen(uow, piece & chosen)
        await self._tell(self._found(fresh))
        self._cursor = max(self._cursor, end)
        return newest is not None and end <= newest.seq

    async def _begin(self, uow: UnitOfWork[Any]) -> int:
        """Where a watcher that starts begins: it knows then what failed in the last minutes before."""
        newest = await uow.first(select(func.max(entries.c.seq).label("seq")))
        top = -1 if newest is None or newest.seq is None else int(newest.seq)
        begin = max(0, top - TAIL, await minimum_index(uow))  # what was pruned is not altered
        failed = (facts.c.seq == entries.c.seq) & (facts.c.recorded > uow.now - PERIOD) & (facts.c.outcome > 0) & (facts.c.seq < begin)
        before = await self._seen(uow, failed)
        for burst in self._bursts:
            burst.look(before)
        return begin

    def _found(self, fresh: Sequence[Seen]) -> list[Anomaly]:
        settings = cast(Settings, self.runtime.settings)
        found = [anomaly for burst in self._bursts for anomaly in burst.look(fresh)]
        found += [*skew(fresh), *policy(fresh, self._policies), *split(fresh), *alarms(fresh), *programs(fresh), *refused(fresh)]
        found += elsewhere(fresh) + hours(fresh, settings.working_hours, ZoneInfo(settings.time_zone))
        return found + purposes(fresh, settings.working_purposes) + emergencies(fresh) + flagged(fresh)

    async def _state(self, uow: UnitOfWork[Any]) -> list[Anomaly]:
        """What the log as it lies in the database adds up to."""
        for burst in self._bursts:
            burst.forget(uow.now - PERIOD)
        found = [Anomaly("record_altered", f"record:{seq}", 0, seq) for seq in await self.scrub.look(uow)]
        return [*found, *volume(await self._exports(uow), await self._hours(uow)), *await self._root(uow)]

    async def _tell(self, found: Sequence[Anomaly]) -> None:
        for anomaly in found:
            await self._raise(anomaly)

    @staticmethod
    async def _seen(uow: UnitOfWork[Any], which: ColumnElement[bool]) -> list[Seen]:
        """Chosen entries, those that are what was logged."""
        wanted = select(entries.c.seq, entries.c.at, entries.c.body).where(which, sound())
        return [Seen(row.seq, row.at, from_json(row.body)) for row in await uow.all(wanted.order_by(entries.c.seq))]

    async def _exports(self, uow: UnitOfWork[Any]) -> list[Seen]:
        recent = (facts.c.seq == entries.c.seq) & facts.c.verb.in_(EXPORTS) & (facts.c.recorded > uow.now - timedelta(hours=1))
        return await self._seen(uow, recent)

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
