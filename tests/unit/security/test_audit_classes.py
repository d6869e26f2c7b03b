"""Every action has a class, and what each class means when the log is away."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from medmesh.errors import Problem
from medmesh.security.audit_classes import CLASSES, audit_class
from medmesh.security.roles import TABLE
from medmesh.service.emission import Emission
from medmesh.telemetry import metrics

NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)


def test_every_action_has_a_class_and_no_class_is_of_nothing() -> None:
    assert set(CLASSES) == set(TABLE)
    assert set(CLASSES.values()) == {"privileged", "clinical", "reading", "emergency"}
    assert {action for action in TABLE if CLASSES[action] == "emergency"} == {"emergency.open", "emergency.end"}
    for action in ("user.create", "approval.decide", "annotation.export", "federation.create", "model.release"):
        assert CLASSES[action] == "privileged", action
    assert CLASSES["inference.infer"] == "clinical"
    assert {CLASSES[action] for action in TABLE if action.endswith((".read", ".list"))} == {"reading"}
    assert audit_class("something.new") == "privileged"


def refused(emission: Emission, action: str | None) -> str:
    try:
        emission.check(action, NOW)
    except Problem as problem:
        return problem.code if problem.status == 503 else "not 503"
    return ""


@pytest.mark.parametrize(
    ("waited", "size", "privileged", "clinical"),
    [
        (None, 0, "", ""),
        (59, 0, "", ""),
        (60, 0, "audit.behind", ""),
        (6 * 86_400, 0, "audit.behind", ""),
        (7 * 86_400, 0, "audit.behind", "audit.full"),
        (1, 2 * 2**30, "audit.full", "audit.full"),
    ],
)
def test_who_is_refused_when(waited: int | None, size: int, privileged: str, clinical: str) -> None:
    emission = Emission("test", oldest=None if waited is None else NOW - timedelta(seconds=waited), waiting_bytes=size)
    assert refused(emission, "model.release") == privileged
    assert refused(emission, "something.new") == privileged
    assert refused(emission, "inference.infer") == clinical
    assert refused(emission, None) == clinical, "whoever signs in is no administrator yet"
    assert refused(emission, "model.read") == ""


def test_the_quota_is_told_of_before_it_is_reached() -> None:
    emission = Emission("test", quota_bytes=100)
    emission.measured(datetime.now(UTC), 80)
    assert metrics.AUDIT_QUOTA.labels("test")._value.get() == pytest.approx(0.8)
    assert emission._warned
    emission.measured(None, 0)
    assert not emission._warned
    assert metrics.AUDIT_OLDEST.labels("test")._value.get() == 0
