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
    """`session` is the bearer of the gateway: random, shown once, kept only as a hash.

    What `must` names comes first (`password`: change it; `second_factor`: enrol one): until then the session does nothing else.
    """

    session: str = Field(repr=False)
    expires: datetime
    roles: tuple[str, ...]
    must: tuple[str, ...] = ()


class OpenSession(Exchange):
    """Sign in; `code` is the second factor's, for who has one."""

    TYPE: ClassVar[str] = "governance.open-session.v1"
    ACTION: ClassVar[str | None] = None
    Reply: ClassVar[type[Record]] = SessionOpened

    name: Identifier
    password: str = Field(repr=False)
    code: str | None = Field(default=None, repr=False)


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


class SecondFactorSecret(Record):
    """What an authenticator needs, shown once: the secret as base32, and the same as an `otpauth://` address."""

    secret: str = Field(repr=False)
    uri: str = Field(repr=False)


class EnrolSecondFactor(Exchange):
    """Make a new second factor for oneself; it counts once a code of it was confirmed. `code` is one of the former, where there is one."""

    TYPE: ClassVar[str] = "governance.enrol-second-factor.v1"
    ACTION: ClassVar[str | None] = None
    Reply: ClassVar[type[Record]] = SecondFactorSecret

    session: str = Field(repr=False)
    code: str | None = Field(default=None, repr=False)


class ConfirmSecondFactor(Exchange):
    """Show that the authenticator works; from here on signing in needs it."""

    TYPE: ClassVar[str] = "governance.confirm-second-factor.v1"
    ACTION: ClassVar[str | None] = None
    Reply: ClassVar[type[Record]] = Done

    session: str = Field(repr=False)
    code: str = Field(repr=False)


class StepUp(Exchange):
    """Show the second factor again: what approves, exports or changes rights needs one at most five minutes old."""

    TYPE: ClassVar[str] = "governance.step-up.v1"
    ACTION: ClassVar[str | None] = None
    Reply: ClassVar[type[Record]] = Done

    session: str = Field(repr=False)
    code: str = Field(repr=False)


class ChangePassword(Exchange):
    """Change one's own password; every other session of this person ends."""

    TYPE: ClassVar[str] = "governance.change-password.v1"
    ACTION: ClassVar[str | None] = None
    Reply: ClassVar[type[Record]] = Done

    session: str = Field(repr=False)
    old: str = Field(repr=False)
    new: str = Field(repr=False)


class SessionView(Record):
    """`id` names it and opens nothing; `strong` is when the second factor was last shown in it."""

    id: str
    opened: datetime
    used: datetime
    expires: datetime
    strong: datetime | None = None
    this: bool


class Sessions(Record):
    sessions: tuple[SessionView, ...]


class ListSessions(Query):
    """One's own sessions."""

    TYPE: ClassVar[str] = "governance.list-sessions.v1"
    ACTION: ClassVar[str | None] = None
    Reply: ClassVar[type[Record]] = Sessions

    session: str = Field(repr=False)


class EndSession(Exchange):
    """End one of one's own sessions, by its id."""

    TYPE: ClassVar[str] = "governance.end-session.v1"
    ACTION: ClassVar[str | None] = None
    Reply: ClassVar[type[Record]] = Done

    session: str = Field(repr=False)
    id: str


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


class OpenSystemSession(Exchange):
    """A hospital's system signs in with a JWT of its own key (RFC 7523, `medmesh.security.assertions`)."""

    TYPE: ClassVar[str] = "governance.open-system-session.v1"
    ACTION: ClassVar[str | None] = None
    Reply: ClassVar[type[Record]] = SessionOpened

    assertion: str = Field(repr=False, max_length=4096)


class RecoverUser(Exchange):
    """Issue a new activation code for somebody who lost the password, and with `second_factor` the authenticator too."""

    TYPE: ClassVar[str] = "governance.recover-user.v1"
    ACTION: ClassVar[str | None] = "user.manage"
    Reply: ClassVar[type[Record]] = OneTimeCode

    name: Identifier
    second_factor: bool = False


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


class RenewCertificate(Exchange):
    """A node asks for its next certificate; `proof` is a signature with the key of the present one (`medmesh.security.renewal`)."""

    TYPE: ClassVar[str] = "governance.renew-certificate.v1"
    ACTION: ClassVar[str | None] = None
    Reply: ClassVar[type[Record]] = EnrolmentState

    certificate_pem: str
    csr_pem: str
    proof: str = Field(repr=False)


# --- queries --------------------------------------------------------------------------------------------------------


class UserView(Record):
    name: str
    display_name: str
    organisation: str
    roles: tuple[str, ...]
    active: bool
    kind: str = "person"
    second_factor: bool = False
    disabled: bool = False
    locked_until: datetime | None = None
    signed_in: datetime | None = None


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


class Revocations(Record):
    """Serial numbers (hexadecimal) of node certificates that were revoked and have not expired anyway."""

    serials: tuple[str, ...]


class ListRevocations(Query):
    """What every service asks again and again, so that a revoked node is believed nowhere."""

    TYPE: ClassVar[str] = "governance.list-revocations.v1"
    ACTION: ClassVar[str | None] = "revocation.list"
    Reply: ClassVar[type[Record]] = Revocations


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


class RegisterSystem(Command):
    """Register a system of a hospital, which signs in with the private half of this key. Result: `{"system": name}`."""

    TYPE: ClassVar[str] = "governance.register-system.v1"
    ACTION: ClassVar[str] = "system.register"

    hospital: Identifier
    name: Identifier
    public_key_pem: str = Field(max_length=2000)
    display_name: str = ""


class ChangeRoles(Command):
    """Give somebody exactly these roles. Nobody changes their own; the sessions of the person end."""

    TYPE: ClassVar[str] = "governance.change-roles.v1"
    ACTION: ClassVar[str] = "user.manage"

    name: Identifier
    roles: tuple[str, ...]


class DisableUser(Command):
    """Close an account: its sessions end, and nobody signs in until it is enabled again."""

    TYPE: ClassVar[str] = "governance.disable-user.v1"
    ACTION: ClassVar[str] = "user.manage"

    name: Identifier
    reason: str = Field(default="", max_length=500)


class EnableUser(Command):
    """Open a closed account again."""

    TYPE: ClassVar[str] = "governance.enable-user.v1"
    ACTION: ClassVar[str] = "user.manage"

    name: Identifier


class UnlockUser(Command):
    """Lift the lock that follows wrong passwords, before its time."""

    TYPE: ClassVar[str] = "governance.unlock-user.v1"
    ACTION: ClassVar[str] = "user.manage"

    name: Identifier


class RevokeNode(Command):
    """Believe a node no longer, or all of a hospital's: within seconds everywhere. Result: `{"revoked": serial numbers}`."""

    TYPE: ClassVar[str] = "governance.revoke-node.v1"
    ACTION: ClassVar[str] = "hospital.revoke"

    hospital: Identifier
    node: Identifier | None = None
    reason: str = Field(default="", max_length=500)


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


class RevokeApproval(Command):
    """Take an own request back, also when it was granted and not executed yet. The security administrator may revoke any."""

    TYPE: ClassVar[str] = "governance.revoke-approval.v1"
    ACTION: ClassVar[str] = "approval.request"

    approval: str
    reason: str = Field(default="", max_length=500)


# --- facts ----------------------------------------------------------------------------------------------------------


class UserCreated(Event):
    TYPE: ClassVar[str] = "governance.user.created.v1"

    name: Identifier
    organisation: Identifier
    roles: tuple[str, ...]


class UserChanged(Event):
    """Roles were changed, or the account was disabled or enabled."""

    TYPE: ClassVar[str] = "governance.user.changed.v1"

    name: Identifier
    roles: tuple[str, ...]
    disabled: bool


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


class NodeRevoked(Event):
    """Certificates of a hospital's nodes count no longer."""

    TYPE: ClassVar[str] = "governance.node.revoked.v1"

    hospital: Identifier
    serials: tuple[str, ...]
    reason: str


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
