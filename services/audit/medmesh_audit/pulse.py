"""Whether the log itself lives: its heartbeat, how fresh its checkpoint is, and whose clock is right.

The leading instance records a heartbeat every minute, so that a log in which nothing happens can be told from one that was stopped. Every
instance looks, also one that stands by: a writer that hangs does not report itself.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import func, select

from medmesh.service.runtime import Runtime
from medmesh.store.unit import AuditEntry, UnitOfWork
from medmesh.telemetry import metrics
from medmesh_audit.rules import PERIOD, SKEW, Anomaly
from medmesh_audit.tables import facts, state

HEARTBEAT = "audit.heartbeat"
OLD = timedelta(seconds=10)


def missed(now: datetime, last: datetime, every: timedelta) -> bool:
    """Whether a heartbeat was missed; a quarter of a minute, or half of a shorter time, is given to come late."""
    return now - last > every + min(every / 2, timedelta(seconds=15))


@dataclass
class Pulse:
    """`every` is the time between two heartbeats."""

    runtime: Runtime
    every: timedelta
    _began: datetime = field(default_factory=lambda: datetime.now(UTC))

    async def beat(self) -> None:
        """A sign of life in the log, unless the service has only just begun."""
        if datetime.now(UTC) - self._began < self.every / 2:
            return
        async with self.runtime.unit() as uow:
            uow.audit(AuditEntry(HEARTBEAT, "E"))

    async def look(self, uow: UnitOfWork[Any]) -> list[Anomaly]:
        """What is not as it should be."""
        row = (await uow.execute(select(state.c.beat, func.clock_timestamp().label("now")))).one()
        last = select(facts.c.recorded).where(facts.c.verb == HEARTBEAT).order_by(facts.c.seq.desc()).limit(1)
        heard = (await uow.execute(last)).scalar_one_or_none()
        here, window = datetime.now(UTC), int(time.time() // PERIOD.total_seconds())
        # The writer confirms every second, by the database's clock, that all it wrote is under a signed checkpoint.
        age = row.now - row.beat
        metrics.AUDIT_CHECKPOINT_AGE.set(max(0.0, age.total_seconds()))
        found = []
        if age > OLD and here - self._began > OLD:
            found.append(Anomaly("checkpoint_old", "log", window))
        if missed(here, max(heard or self._began, self._began), self.every):
            found.append(Anomaly("log_heartbeat", "log", window))
        if abs(row.now - here) > SKEW:
            found.append(Anomaly("clock_skew", "database", window))
        return found
