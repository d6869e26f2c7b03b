"""Approvals (申请审批): asked for, decided, revoked."""

from __future__ import annotations

from datetime import datetime
from typing import ClassVar

from pydantic import Field

from medmesh.contracts.message import Command, Event, Names, Query, Record, Sha256


class ApprovalView(Record):
    approval: str
    action: str
    target: str
    digest: Sha256
    requester: str
    summary: dict[str, str]
    state: str
    why: str = ""
    """The code of what kept it from being done, where the state is `failed`."""
    needed: int
    approvers: tuple[str, ...]
    expires: datetime
    asking: str = ""
    """What who asked signed (`medmesh.security.statements.Asking`), where they did."""


class Approvals(Record):
    approvals: tuple[ApprovalView, ...]


class ListApprovals(Query):
    TYPE: ClassVar[str] = "governance.list-approvals.v1"
    ACTION: ClassVar[str | None] = "approval.list"
    Reply: ClassVar[type[Record]] = Approvals

    state: str | None = None


class RequestApproval(Command):
    """Ask for the approval of one exact request: `digest` binds it. `asking` is the same signed with one's own key
    (`medmesh.security.statements.Asking`), which the roster wants for some actions. Result: `{"approval": id}`."""

    TYPE: ClassVar[str] = "governance.request-approval.v1"
    ACTION: ClassVar[str] = "approval.request"

    action: str
    target: str
    digest: Sha256
    summary: dict[str, str] = Field(default_factory=dict)
    asking: str = Field(default="", max_length=4096)


class DecideApproval(Command):
    """Approve or refuse; the maker is never the checker. `statement` is the decision signed with the approver's own key, which stands in
    the roster (`medmesh.security.statements.Decision`)."""

    TYPE: ClassVar[str] = "governance.decide-approval.v1"
    ACTION: ClassVar[str] = "approval.decide"
    OBJECTS: ClassVar[tuple[Names, ...]] = (Names("approval", "{approval}"),)

    approval: str
    approve: bool
    comment: str = ""
    statement: str = Field(default="", max_length=4096)


class RevokeApproval(Command):
    """Take an own request back, also when it was granted and not executed yet. The security administrator may revoke any."""

    TYPE: ClassVar[str] = "governance.revoke-approval.v1"
    ACTION: ClassVar[str] = "approval.request"
    OBJECTS: ClassVar[tuple[Names, ...]] = (Names("approval", "{approval}"),)

    approval: str
    reason: str = Field(default="", max_length=500)


class ApprovalRequested(Event):
    TYPE: ClassVar[str] = "governance.approval.requested.v1"

    approval: str
    action: str
    target: str
    digest: Sha256
    requester: str


class ApprovalGranted(Event):
    """`token` is signed by governance and carries what the approvers signed; the executing service verifies both and spends its id in its
    own transaction."""

    TYPE: ClassVar[str] = "governance.approval.granted.v1"

    approval: str
    action: str
    target: str
    digest: Sha256
    token: str


class ApprovalRevoked(Event):
    """The request was taken back: whoever would execute it does not, and spends its id."""

    TYPE: ClassVar[str] = "governance.approval.revoked.v1"

    approval: str
    action: str
    target: str
    digest: Sha256


class ApprovalExpired(Event):
    """Its time is over, and it was not executed."""

    TYPE: ClassVar[str] = "governance.approval.expired.v1"

    approval: str
    action: str
    target: str
    digest: Sha256


class ApprovalRefused(Event):
    TYPE: ClassVar[str] = "governance.approval.refused.v1"

    approval: str
    action: str
    target: str
    digest: Sha256
