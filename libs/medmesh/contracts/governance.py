"""People, hospitals, enrolment and approvals."""

from __future__ import annotations

from datetime import datetime
from typing import ClassVar

from pydantic import Field

from medmesh.contracts.message import Command, Event, Exchange, Identifier, Query, Record, Sha256

# --- exchanges of credentials: request and reply, never kept -------------------------------------------------------


class Done(Record):
    """It was done."""


class Bootstrap(Exchange):
    """Create the first security administrator with the one-time token printed at installation."""

    TYPE: ClassVar[str] = "governance.bootstrap.v1"
    ACTION: ClassVar[str | None] = None
    Reply: ClassVar[type[Record]] = Done

    token: str = Field(repr=False)
    name: Identifier
    display_name: str
    password: str = Field(repr=False)


class SessionOpened(Record):
    """`session` is the bearer of the gateway: random, shown once, kept only as a hash."""

    session: str = Field(repr=False)
    expires: datetime
    roles: tuple[str, ...]


class OpenSession(Exchange):
    """Sign in."""

    TYPE: ClassVar[str] = "governance.open-session.v1"
    ACTION: ClassVar[str | None] = None
    Reply: ClassVar[type[Record]] = SessionOpened

    name: Identifier
    password: str = Field(repr=False)


class ActorToken(Record):
    """A short-lived signed token that stands in envelopes, or opens one HTTP service other than the gateway."""

    token: str = Field(repr=False)
    expires: datetime


class ResolveSession(Query):
    """Exchange a session for an actor token. The gateway asks for audience `medmesh`; people may ask for `inference` or `audit`."""

    TYPE: ClassVar[str] = "governance.resolve-session.v1"
    ACTION: ClassVar[str | None] = None
    Reply: ClassVar[type[Record]] = ActorToken

    session: str = Field(repr=False)
    audience: str = "medmesh"


class CloseSession(Exchange):
    """Sign out."""

    TYPE: ClassVar[str] = "governance.close-session.v1"
    ACTION: ClassVar[str | None] = None
    Reply: ClassVar[type[Record]] = Done

    session: str = Field(repr=False)


class OneTimeCode(Record):
    """Shown once to the person who asked; kept only as a hash."""

    code: str = Field(repr=False)
    expires: datetime


class CreateUser(Exchange):
    """Create an account without a password; its owner sets one with the one-time activation code."""

    TYPE: ClassVar[str] = "governance.create-user.v1"
    ACTION: ClassVar[str | None] = "user.create"
    Reply: ClassVar[type[Record]] = OneTimeCode

    name: Identifier
    display_name: str
    organisation: Identifier
    roles: tuple[str, ...]


class ActivateUser(Exchange):
    """Set the first password."""

    TYPE: ClassVar[str] = "governance.activate-user.v1"
    ACTION: ClassVar[str | None] = None
    Reply: ClassVar[type[Record]] = Done

    name: Identifier
    code: str = Field(repr=False)
    password: str = Field(repr=False)


class RegisterHospital(Exchange):
    """Register an organisation and issue the one-time code with which its node enrols."""

    TYPE: ClassVar[str] = "governance.register-hospital.v1"
    ACTION: ClassVar[str | None] = "hospital.register"
    Reply: ClassVar[type[Record]] = OneTimeCode

    hospital: Identifier
    display_name: str


class EnrolmentState(Record):
    """`pending` until a second person approved; then the certificate and what the node must trust."""

    enrolment: str
    state: str
    approval: str | None = None
    certificate_pem: str | None = None
    trust: dict[str, object] | None = None


class Enrol(Exchange):
    """A node redeems its code with a certificate signing request. The same code with the same request answers the same."""

    TYPE: ClassVar[str] = "governance.enrol.v1"
    ACTION: ClassVar[str | None] = None
    Reply: ClassVar[type[Record]] = EnrolmentState

    hospital: Identifier
    node: Identifier
    code: str = Field(repr=False)
    csr_pem: str
    protocol: int = 1


class GetEnrolment(Query):
    """What became of an enrolment; asked by the node with its code."""

    TYPE: ClassVar[str] = "governance.get-enrolment.v1"
    ACTION: ClassVar[str | None] = None
    Reply: ClassVar[type[Record]] = EnrolmentState

    hospital: Identifier
    enrolment: str
    code: str = Field(repr=False)


# --- queries --------------------------------------------------------------------------------------------------------


class UserView(Record):
    name: str
    display_name: str
    organisation: str
    roles: tuple[str, ...]
    active: bool


class Users(Record):
    users: tuple[UserView, ...]


class ListUsers(Query):
    TYPE: ClassVar[str] = "governance.list-users.v1"
    ACTION: ClassVar[str | None] = "user.list"
    Reply: ClassVar[type[Record]] = Users


class NodeView(Record):
    node: str
    fingerprint: str
    expires: datetime
    revoked: bool


class HospitalView(Record):
    hospital: str
    display_name: str
    state: str
    nodes: tuple[NodeView, ...]


class Hospitals(Record):
    hospitals: tuple[HospitalView, ...]


class ListHospitals(Query):
    TYPE: ClassVar[str] = "governance.list-hospitals.v1"
    ACTION: ClassVar[str | None] = "hospital.list"
    Reply: ClassVar[type[Record]] = Hospitals


class ApprovalView(Record):
    approval: str
    action: str
    target: str
    digest: Sha256
    requester: str
    summary: dict[str, str]
    state: str
    needed: int
    approvers: tuple[str, ...]
    expires: datetime


class Approvals(Record):
    approvals: tuple[ApprovalView, ...]


class ListApprovals(Query):
    TYPE: ClassVar[str] = "governance.list-approvals.v1"
    ACTION: ClassVar[str | None] = "approval.list"
    Reply: ClassVar[type[Record]] = Approvals

    state: str | None = None


# --- commands -------------------------------------------------------------------------------------------------------


class RequestApproval(Command):
    """Ask for the approval of one exact request: `digest` binds it. Result: `{"approval": id}`."""

    TYPE: ClassVar[str] = "governance.request-approval.v1"
    ACTION: ClassVar[str] = "approval.request"

    action: str
    target: str
    digest: Sha256
    summary: dict[str, str] = Field(default_factory=dict)


class DecideApproval(Command):
    """Approve or refuse; the maker is never the checker."""

    TYPE: ClassVar[str] = "governance.decide-approval.v1"
    ACTION: ClassVar[str] = "approval.decide"

    approval: str
    approve: bool
    comment: str = ""


# --- facts ----------------------------------------------------------------------------------------------------------


class UserCreated(Event):
    TYPE: ClassVar[str] = "governance.user.created.v1"

    name: Identifier
    organisation: Identifier
    roles: tuple[str, ...]


class HospitalRegistered(Event):
    TYPE: ClassVar[str] = "governance.hospital.registered.v1"

    hospital: Identifier
    display_name: str


class NodeEnrolled(Event):
    """A node of a hospital has its certificate."""

    TYPE: ClassVar[str] = "governance.node.enrolled.v1"

    hospital: Identifier
    node: Identifier
    fingerprint: Sha256
    expires: datetime


class ApprovalRequested(Event):
    TYPE: ClassVar[str] = "governance.approval.requested.v1"

    approval: str
    action: str
    target: str
    digest: Sha256
    requester: str


class ApprovalGranted(Event):
    """`token` is signed by governance; the executing service verifies it and spends its id in its own transaction."""

    TYPE: ClassVar[str] = "governance.approval.granted.v1"

    approval: str
    action: str
    target: str
    digest: Sha256
    token: str


class ApprovalRefused(Event):
    TYPE: ClassVar[str] = "governance.approval.refused.v1"

    approval: str
    action: str
    target: str
    digest: Sha256
