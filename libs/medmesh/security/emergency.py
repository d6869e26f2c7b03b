"""Emergency access (break-glass): what it opens, and for how long. Governance decides who has one; it travels in the actor token."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

ACTIONS = frozenset({"catalogue.read", "dataset.read", "inference.infer", "model.read", "object.read"})
"""All that an emergency access opens: asking a model, and reading models, data and labels. Never what administers, approves, exports,
trains or reads the audit log."""


@dataclass(frozen=True, slots=True)
class Emergency:
    """One that is open: its id, the organisation whose data it opens, and until when."""

    id: str
    organisation: str
    until: datetime


def permits(emergency: Emergency | None, action: str, at: datetime) -> bool:
    """Whether an emergency access opens an action at the time `at`; at its very end it does no longer."""
    return emergency is not None and action in ACTIONS and at < emergency.until


def covers(emergency: Emergency | None, action: str, at: datetime, organisation: str) -> bool:
    """Whether it opens that action on what belongs to an organisation."""
    return emergency is not None and emergency.organisation == organisation and permits(emergency, action, at)
