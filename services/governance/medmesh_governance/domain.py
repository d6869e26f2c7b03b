"""Rules of governance, as functions of values."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from medmesh.errors import Problem

APPROVABLE = frozenset(
    {
        "annotation.export",
        "audit.export",
        "dataset.release",
        "federation.release",
        "federation.rollback",
        "federation.start",
        "hospital.enrol",
        "label.change",
        "log.prune",
        "model.release",
        "policy.change",
        "retention.change",
    }
)
"""What needs a second person. Further actions come here first."""


class ApprovalState(StrEnum):
    """Where an approval stands: submitted and open, granted by enough others, and at one of five ends: `failed` is what
    was granted and could not be done any more."""

    OPEN = "open"
    GRANTED = "granted"
    REFUSED = "refused"
    EXECUTED = "executed"
    EXPIRED = "expired"
    REVOKED = "revoked"
    FAILED = "failed"


NEXT: dict[ApprovalState, frozenset[ApprovalState]] = {
    ApprovalState.OPEN: frozenset({ApprovalState.GRANTED, ApprovalState.REFUSED, ApprovalState.EXPIRED, ApprovalState.REVOKED}),
    ApprovalState.GRANTED: frozenset({ApprovalState.EXECUTED, ApprovalState.FAILED, ApprovalState.EXPIRED, ApprovalState.REVOKED}),
    **{end: frozenset() for end in ApprovalState if end not in (ApprovalState.OPEN, ApprovalState.GRANTED)},
}
"""From a state to those it may become; an end is an end."""


def stands(state: str, expires: datetime, now: datetime) -> ApprovalState:
    """The state at a moment: what was not executed by its time has expired, also before anybody wrote that down."""
    found = ApprovalState(state)
    return ApprovalState.EXPIRED if ApprovalState.EXPIRED in NEXT[found] and expires < now else found


def move(approval: str, present: ApprovalState, wanted: ApprovalState) -> ApprovalState:
    """`wanted`, when it may follow. Raises `Problem` (`governance.approval_closed`)."""
    if wanted not in NEXT[present]:
        raise Problem("governance.approval_closed", approval=approval, state=present.value)
    return wanted


@dataclass(frozen=True, slots=True)
class Vote:
    """One approver's decision."""

    approver: str
    approve: bool


def decide(needed: int, votes: Iterable[Vote], new: Vote) -> ApprovalState:
    """The state after `new`: one refusal refuses, `needed` different approvers grant. That the maker is no checker is an object rule
    (`object.maker-is-not-checker`), and a CHECK of the database. Raises `Problem`."""
    votes = list(votes)
    if any(vote.approver == new.approver for vote in votes):
        raise Problem("governance.already_decided", approver=new.approver)
    if not new.approve:
        return ApprovalState.REFUSED
    granted = {vote.approver for vote in [*votes, new] if vote.approve}
    return ApprovalState.GRANTED if len(granted) >= needed else ApprovalState.OPEN


def locked_until(failures: int, limit: int, minutes: int, now: datetime) -> datetime | None:
    """Until when an account is locked after this many failures in a row (GB/T 22239-2019 8.1.4.1 b)."""
    return now + timedelta(minutes=minutes) if failures >= limit else None


def idle(used: datetime, days: int, now: datetime) -> bool:
    """Whether an account was not used for so long that it is closed (8.1.4.2 c)."""
    return now - used > timedelta(days=days)


def due(
    roles: Iterable[str], has_factor: bool, password_at: datetime | None, factor_roles: Iterable[str], days: int, now: datetime
) -> tuple[str, ...]:
    """What a person has to do before anything else: `password` when it is too old (8.1.4.1 a), `second_factor` when a role needs one
    (8.1.4.1 d)."""
    found = []
    if password_at is None or now - password_at > timedelta(days=days):
        found.append("password")
    if not has_factor and set(roles) & set(factor_roles):
        found.append("second_factor")
    return tuple(found)


class EmergencyState(StrEnum):
    """Where an emergency access stands: open, ended and waiting for its review, too long without one, or judged."""

    OPEN = "open"
    ENDED = "ended"
    OVERDUE = "overdue"
    JUSTIFIED = "justified"
    UNJUSTIFIED = "unjustified"


EMERGENCY_NEXT: dict[EmergencyState, frozenset[EmergencyState]] = {
    # Open, it may be stopped by a review, but not be found good: what is still to come was not seen by the reviewer.
    EmergencyState.OPEN: frozenset({EmergencyState.ENDED, EmergencyState.UNJUSTIFIED}),
    EmergencyState.ENDED: frozenset({EmergencyState.OVERDUE, EmergencyState.JUSTIFIED, EmergencyState.UNJUSTIFIED}),
    EmergencyState.OVERDUE: frozenset({EmergencyState.JUSTIFIED, EmergencyState.UNJUSTIFIED}),
    EmergencyState.JUSTIFIED: frozenset(),
    EmergencyState.UNJUSTIFIED: frozenset(),
}
"""From a state to those it may become; a judgement stands."""


def emergency_stands(state: str, expires: datetime, due: datetime, now: datetime) -> EmergencyState:
    """The state at a moment, also before anybody wrote it down: at `expires` it is over, at `due` its review is overdue."""
    found = EmergencyState(state)
    if found is EmergencyState.OPEN and now >= expires:
        found = EmergencyState.ENDED
    if found is EmergencyState.ENDED and now >= due:
        found = EmergencyState.OVERDUE
    return found


def move_emergency(emergency: str, present: EmergencyState, wanted: EmergencyState) -> EmergencyState:
    """`wanted`, when it may follow. Raises `Problem` (`governance.emergency_state`)."""
    if wanted not in EMERGENCY_NEXT[present]:
        raise Problem("governance.emergency_state", emergency=emergency, state=present.value)
    return wanted


def judge(emergency: str, person: str, present: EmergencyState, reviewer: str, justified: bool) -> EmergencyState:
    """The state after a review. Nobody reviews their own. Raises `Problem`."""
    if reviewer == person:
        raise Problem("governance.emergency_maker", person=person)
    return move_emergency(emergency, present, EmergencyState.JUSTIFIED if justified else EmergencyState.UNJUSTIFIED)


def may_open_emergency(person: str, withdrawn: bool, standing: Iterable[EmergencyState]) -> None:
    """Raise a `Problem` when somebody's earlier ones forbid a new one: one not justified, one whose review is overdue, one open."""
    states = set(standing)
    if withdrawn:
        raise Problem("governance.emergency_withdrawn", person=person)
    if EmergencyState.OVERDUE in states:
        raise Problem("governance.emergency_overdue", person=person)
    if EmergencyState.OPEN in states:
        raise Problem("governance.emergency_open", person=person)


_ANYBODY = re.compile(r"(?:^|[-_])(?:admin|administrator|root|test|guest|demo|temp|user|public|shared|ward|nurse|doctor|duty|office)\d*$")
SOON = timedelta(days=14)


@dataclass(frozen=True, slots=True)
class AccountFacts:
    """What is known of an account, for its report."""

    name: str
    roles: tuple[str, ...]
    person: bool
    used: datetime
    activated: bool
    code_ends: datetime | None
    password_at: datetime | None
    has_factor: bool
    disabled: bool
    ends: datetime | None
    locked_until: datetime | None
    sessions: int


@dataclass(frozen=True, slots=True)
class AccountRules:
    """The settings that decide."""

    idle_days: int
    password_days: int
    factor_roles: tuple[str, ...]
    sessions: int


def findings(account: AccountFacts, rules: AccountRules, now: datetime) -> tuple[str, ...]:
    """What is amiss with an account (GB/T 22239-2019 8.1.4.1 a, d and 8.1.4.2 a to c): superfluous, over, shared, weak."""
    found = []
    if account.disabled:
        found.append("disabled")
    if account.ends is not None and account.ends <= now + SOON:
        found.append("ended" if account.ends <= now else "ends_soon")
    if not account.disabled and account.activated and idle(account.used, rules.idle_days, now):
        found.append("idle")
    elif not account.disabled and account.activated and now - account.used > timedelta(days=rules.idle_days) * 2 / 3:
        found.append("idle_soon")
    if not account.activated and (account.code_ends is None or account.code_ends <= now):
        found.append("never_used")
    if account.person and (_ANYBODY.search(account.name) or account.sessions >= rules.sessions):
        found.append("shared")
    if account.locked_until is not None and account.locked_until > now:
        found.append("locked")
    if account.person and account.activated:
        password = account.password_at
        owed = due(account.roles, account.has_factor, password, rules.factor_roles, rules.password_days, now)
        found += [code for code, what in (("password_due", "password"), ("no_second_factor", "second_factor")) if what in owed]
    if not account.roles:
        found.append("no_roles")
    return tuple(found)
