"""Whether this service's audit records reach the log, and which actions it refuses when they do not."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime

from medmesh.errors import Problem
from medmesh.security.audit_classes import audit_class
from medmesh.telemetry import log, metrics

_ALARM = 0.8


@dataclass
class Emission:
    """`privileged_seconds` is how long a record may wait for its receipt before privileged actions are refused; `quota_bytes` and
    `quota_seconds` are how much may wait, and how long, before clinical ones are too."""

    service: str = ""
    privileged_seconds: float = 60.0
    quota_bytes: int = 2 * 2**30
    quota_seconds: float = 7 * 86_400.0
    oldest: datetime | None = None
    """When the oldest record without a receipt was written; kept by the relay."""
    waiting_bytes: int = 0
    _warned: bool = False

    def lag(self, now: datetime | None = None) -> float:
        """How long the oldest record has waited, in seconds."""
        return max(0.0, ((now or datetime.now(UTC)) - self.oldest).total_seconds()) if self.oldest else 0.0

    def used(self, now: datetime | None = None) -> float:
        """Share of the quota."""
        return max(self.waiting_bytes / self.quota_bytes, self.lag(now) / self.quota_seconds)

    def check(self, action: str | None, now: datetime | None = None, *, emergency: bool = False) -> None:
        """Before an action is done. Raises `Problem`: `audit.behind` for a privileged one, `audit.full` for any at the quota, but for
        emergency access and what is clinical under one (`emergency`)."""
        if self.oldest is None:
            return
        kind, lag = audit_class(action), self.lag(now)
        if kind == "privileged" and lag >= self.privileged_seconds:
            raise Problem("audit.behind", action=action or "", seconds=math.floor(lag), retry=30)
        spared = kind in ("reading", "emergency") or (kind == "clinical" and emergency)
        if not spared and self.used(now) >= 1:
            raise Problem("audit.full", action=action or "", retry=60)

    def measured(self, oldest: datetime | None, waiting_bytes: int) -> None:
        """What waits now; told from time to time."""
        self.oldest, self.waiting_bytes = oldest, waiting_bytes
        used = self.used()
        metrics.AUDIT_OLDEST.labels(self.service).set(self.lag())
        metrics.AUDIT_QUOTA.labels(self.service).set(used)
        if used >= _ALARM and not self._warned:
            log("audit.quota", level=50, used_percent=round(used * 100), waiting_bytes=waiting_bytes)
        self._warned = used >= _ALARM
