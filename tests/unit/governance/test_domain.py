"""The states of an approval, every pair of them, and what is due of a person."""

from __future__ import annotations

import itertools
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from medmesh.contracts.governance import FINDINGS
from medmesh.errors import Problem
from medmesh_governance.domain import AccountFacts, AccountRules, ApprovalState, Vote, decide, due, findings, idle, move, stands

NOW = datetime(2026, 11, 26, 12, 0, tzinfo=UTC)
# Written out again, so that a change of the machine is a change in two places.
MAY = {
    ("open", "granted"), ("open", "refused"), ("open", "expired"), ("open", "revoked"),
    ("granted", "executed"), ("granted", "failed"), ("granted", "expired"), ("granted", "revoked"),
}  # fmt: skip


@pytest.mark.parametrize(("present", "wanted"), list(itertools.product(ApprovalState, ApprovalState)))
def test_every_pair_of_states(present: ApprovalState, wanted: ApprovalState) -> None:
    if (present.value, wanted.value) in MAY:
        assert move("a", present, wanted) is wanted
    else:
        with pytest.raises(Problem) as caught:
            move("a", present, wanted)
        assert caught.value.code == "governance.approval_closed"


def test_what_is_not_over_expires_and_what_is_over_does_not() -> None:
    late, early = NOW - timedelta(seconds=1), NOW + timedelta(seconds=1)
    for state in ApprovalState:
        assert stands(state, early, NOW) is state
        expired = state in (ApprovalState.OPEN, ApprovalState.GRANTED)
        assert stands(state, late, NOW) is (ApprovalState.EXPIRED if expired else state)


def test_n_of_m_different_people_grant_and_one_refuses() -> None:
    yes = [Vote(name, True) for name in ("a", "b", "c")]
    assert decide(3, yes[:1], yes[1]) is ApprovalState.OPEN
    assert decide(3, yes[:2], yes[2]) is ApprovalState.GRANTED
    assert decide(3, yes[:2], Vote("c", False)) is ApprovalState.REFUSED
    with pytest.raises(Problem):
        decide(3, yes[:1], yes[0])


def test_what_is_due_of_a_person() -> None:
    needs = ("approver",)
    young, old = NOW - timedelta(days=90), NOW - timedelta(days=90, seconds=1)
    assert due(["researcher"], False, young, needs, 90, NOW) == ()
    assert due(["researcher", "approver"], True, young, needs, 90, NOW) == ()
    assert due(["researcher", "approver"], False, young, needs, 90, NOW) == ("second_factor",)
    assert due(["approver"], False, old, needs, 90, NOW) == ("password", "second_factor")
    assert due([], True, None, needs, 90, NOW) == ("password",)
    assert idle(old, 90, NOW)
    assert not idle(young, 90, NOW)


RULES = AccountRules(idle_days=90, password_days=90, factor_roles=("approver",), sessions=4)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, ()),
        ({"disabled": True, "used": NOW - timedelta(days=400)}, ("disabled",)),
        ({"used": NOW - timedelta(days=60)}, ()),
        ({"used": NOW - timedelta(days=61)}, ("idle_soon",)),
        ({"used": NOW - timedelta(days=90)}, ("idle_soon",)),
        ({"used": NOW - timedelta(days=91)}, ("idle",)),
        ({"ends": NOW + timedelta(days=15)}, ()),
        ({"ends": NOW + timedelta(days=14)}, ("ends_soon",)),
        ({"ends": NOW}, ("ended",)),
        ({"activated": False, "password_at": None, "code_ends": NOW + timedelta(hours=1)}, ()),
        ({"activated": False, "password_at": None, "code_ends": NOW}, ("never_used",)),
        ({"name": "ward3"}, ("shared",)),
        ({"name": "zhang-test"}, ("shared",)),
        ({"name": "warden"}, ()),
        ({"sessions": 3}, ()),
        ({"sessions": 4}, ("shared",)),
        ({"locked_until": NOW + timedelta(minutes=1)}, ("locked",)),
        ({"locked_until": NOW - timedelta(minutes=1)}, ()),
        ({"password_at": NOW - timedelta(days=91)}, ("password_due",)),
        ({"roles": ("approver",)}, ("no_second_factor",)),
        ({"roles": ("approver",), "has_factor": True}, ()),
        ({"roles": ()}, ("no_roles",)),
        ({"person": False, "name": "his-test", "password_at": None, "sessions": 40}, ()),
    ],
)
def test_what_is_amiss_with_an_account(changed: dict[str, Any], expected: tuple[str, ...]) -> None:
    fine = AccountFacts(
        name="wu",
        roles=("researcher",),
        person=True,
        used=NOW - timedelta(days=1),
        activated=True,
        code_ends=None,
        password_at=NOW - timedelta(days=1),
        has_factor=False,
        disabled=False,
        ends=None,
        locked_until=None,
        sessions=1,
    )
    found = findings(replace(fine, **changed), RULES, NOW)
    assert found == expected
    assert set(found) <= set(FINDINGS)
