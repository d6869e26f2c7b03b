"""Rules of governance, as functions of values."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from medmesh.errors import Problem

APPROVABLE = frozenset({"federation.start", "model.release", "hospital.enrol", "audit.export", "label.change", "policy.change"})
"""What needs a second person. Further actions come here first."""


class ApprovalState(StrEnum):
    """Where an approval stands: submitted and open, granted by enough others, and at one of four ends."""

    OPEN = "open"
    GRANTED = "granted"
    REFUSED = "refused"
    EXECUTED = "executed"
    EXPIRED = "expired"
    REVOKED = "revoked"


NEXT: dict[ApprovalState, frozenset[ApprovalState]] = {
    ApprovalState.OPEN: frozenset({ApprovalState.GRANTED, ApprovalState.REFUSED, ApprovalState.EXPIRED, ApprovalState.REVOKED}),
    ApprovalState.GRANTED: frozenset({ApprovalState.EXECUTED, ApprovalState.EXPIRED, ApprovalState.REVOKED}),
    **{end: frozenset() for end in (ApprovalState.REFUSED, ApprovalState.EXECUTED, ApprovalState.EXPIRED, ApprovalState.REVOKED)},
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
