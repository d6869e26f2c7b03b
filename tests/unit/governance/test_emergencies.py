"""Emergency access as values: every pair of states, the edges of the clock, what it opens, what a note may say."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta

import pytest

from medmesh.errors import Problem
from medmesh.security.audit_classes import audit_class
from medmesh.security.emergency import ACTIONS, Emergency, covers, permits
from medmesh.security.redaction import identifying
from medmesh.security.roles import STEP_UP, TABLE, allow
from medmesh.security.tokens import Actor
from medmesh.service.emission import Emission
from medmesh_governance.domain import EmergencyState, emergency_stands, judge, may_open_emergency, move_emergency

NOW = datetime(2026, 11, 26, 12, 0, tzinfo=UTC)
TICK = timedelta(microseconds=1)
EXPIRES, DUE = NOW + timedelta(minutes=60), NOW + timedelta(hours=24)
# Written out again, so that a change of the machine is a change in two places.
MAY = {
    ("open", "ended"), ("open", "unjustified"),
    ("ended", "overdue"), ("ended", "justified"), ("ended", "unjustified"),
    ("overdue", "justified"), ("overdue", "unjustified"),
}  # fmt: skip


def code(call: object, *values: object) -> str:
    try:
        call(*values)  # type: ignore[operator]
    except Problem as problem:
        return problem.code
    return ""


@pytest.mark.parametrize(("present", "wanted"), list(itertools.product(EmergencyState, EmergencyState)))
def test_every_pair_of_states(present: EmergencyState, wanted: EmergencyState) -> None:
    expected = "" if (present.value, wanted.value) in MAY else "governance.emergency_state"
    assert code(move_emergency, "e", present, wanted) == expected


@pytest.mark.parametrize(("present", "justified"), list(itertools.product(EmergencyState, (True, False))))
def test_a_review_is_somebody_elses_once_and_an_open_one_is_never_found_good(present: EmergencyState, justified: bool) -> None:
    wanted = "justified" if justified else "unjustified"
    assert code(judge, "e", "chen", present, "chen", justified) == "governance.emergency_maker"
    expected = "" if (present.value, wanted) in MAY else "governance.emergency_state"
    assert code(judge, "e", "chen", present, "wu", justified) == expected
    if not expected:
        assert judge("e", "chen", present, "wu", justified) == wanted


@pytest.mark.parametrize(
    ("at", "open_", "ended"),
    [
        (NOW, "open", "ended"),
        (EXPIRES - TICK, "open", "ended"),
        (EXPIRES, "ended", "ended"),
        (DUE - TICK, "ended", "ended"),
        (DUE, "overdue", "overdue"),
        (DUE + timedelta(days=400), "overdue", "overdue"),
    ],
)
def test_the_edges_of_the_clock(at: datetime, open_: str, ended: str) -> None:
    assert emergency_stands("open", EXPIRES, DUE, at) == open_
    assert emergency_stands("ended", EXPIRES, DUE, at) == ended
    for end in ("overdue", "justified", "unjustified"):
        assert emergency_stands(end, EXPIRES, DUE, at) == end


def test_what_forbids_a_new_one() -> None:
    good = [EmergencyState.ENDED, EmergencyState.JUSTIFIED, EmergencyState.UNJUSTIFIED]
    assert code(may_open_emergency, "chen", False, []) == ""
    assert code(may_open_emergency, "chen", False, good) == "", "one that waits for its review in time forbids nothing"
    assert code(may_open_emergency, "chen", True, good) == "governance.emergency_withdrawn"
    assert code(may_open_emergency, "chen", False, [*good, EmergencyState.OVERDUE]) == "governance.emergency_overdue"
    assert code(may_open_emergency, "chen", False, [*good, EmergencyState.OPEN]) == "governance.emergency_open"


def test_it_opens_clinical_actions_until_its_end_and_nothing_else_ever() -> None:
    emergency = Emergency("e", "renji", EXPIRES)
    actor = Actor("person", "chen", "renji", frozenset(), "pwd+otp", NOW, emergency)
    for action in [*TABLE, "something.new"]:
        assert allow(actor, action, EXPIRES - TICK).allowed == (action in ACTIONS), action
        assert not allow(actor, action, EXPIRES).allowed, action
    assert allow(actor, "dataset.read", NOW).rule == "emergency"
    assert not permits(None, "dataset.read", NOW)
    assert covers(emergency, "dataset.read", NOW, "renji")
    assert not covers(emergency, "dataset.read", NOW, "ruijin")
    assert not covers(emergency, "dataset.read", EXPIRES, "renji")
    assert set(TABLE) > ACTIONS
    assert not ACTIONS & STEP_UP
    assert {audit_class(action) for action in ACTIONS} == {"clinical", "reading"}, "nothing privileged"


def test_it_goes_on_where_the_quota_of_waiting_records_stops_everything_else() -> None:
    emission = Emission("test", oldest=NOW - timedelta(days=8))
    for action in ("inference.infer", "user.create"):
        assert code(emission.check, action, NOW) in ("audit.full", "audit.behind")
    assert code(emission.check, "emergency.open", NOW) == ""
    assert code(emission.check, "emergency.end", NOW) == ""
    assert code(lambda: emission.check("inference.infer", NOW, emergency=True)) == ""
    assert code(lambda: emission.check("user.create", NOW, emergency=True)) == "audit.behind"
    assert code(lambda: emission.check("emergency.review", NOW)) == "audit.full"


@pytest.mark.parametrize(
    "text",
    [
        "patient 11010519491231002X",
        "call 138 0013 8000",
        "born 1949-12-31",
        "born 3/12/1949 12",
        "12月31日入院",
        "床号 12",
        "王小明先生",
        "Mr. Wang",
        "wang@renji.example",
        "MRN see above",
        "住院号见腕带",
    ],
)
def test_a_note_that_names_somebody_is_refused(text: str) -> None:
    assert identifying(text)


@pytest.mark.parametrize("text", ["nobody of radiology answers", "抢救中，值班影像医师无法联系", "2nd failed reading at 3 T", "GCS 7"])
def test_a_note_about_the_situation_is_kept(text: str) -> None:
    assert identifying(text) == ""
