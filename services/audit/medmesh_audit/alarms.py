"""What must not happen to a log, told in four places: the service's own log, a metric, its readiness where it stops, and the log itself."""

from __future__ import annotations

from typing import Any

from medmesh.service.runtime import Runtime
from medmesh.store.unit import AuditEntry
from medmesh.telemetry import log, metrics

KINDS = ("inconsistent", "rewritten", "ddl", "weakened", "sealed_twice", "seal_altered", "seal_refused", "second")
for _kind in KINDS:
    metrics.AUDIT_ALARMS.labels(_kind)


async def alarm(runtime: Runtime, kind: str, **what: Any) -> None:
    """Raise an alarm of a kind; `what` are small facts without identifiers of patients."""
    log("audit.alarm", level=50, kind=kind, **what)
    metrics.AUDIT_ALARMS.labels(kind).inc()
    detail = {name: value if isinstance(value, int) else str(value) for name, value in what.items()}
    async with runtime.unit() as uow:
        uow.audit(AuditEntry(f"audit.alarm.{kind}", "E", outcome=8, why=f"audit.{kind}", detail=detail))
