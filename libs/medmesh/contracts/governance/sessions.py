"""Signing in, second factors, sessions: exchanges of credentials, never kept."""

from __future__ import annotations

from datetime import datetime
from typing import ClassVar

from pydantic import Field

from medmesh.contracts.governance.common import Done, OfSession
from medmesh.contracts.message import Exchange, Identifier, Query, Record, Sha256


class SessionOpened(Record):
    """`session` is the bearer of the gateway: random, shown once, kept only as a hash.

    What `must` names comes first (`password`: change it; `second_factor`: enrol one): until then the session does nothing else.
    """

    session: str = Field(repr=False)
    expires: datetime
    roles: tuple[str, ...]
    must: tuple[str, ...] = ()


class OpenSession(Exchange):
    """Sign in; `code` is the second factor's, for who has one. Who has a client certificate shows it instead: `certificate` is its
    SHA-256, which the gateway fills in from the connection."""

    TYPE: ClassVar[str] = "governance.open-session.v1"
    ACTION: ClassVar[str | None] = None
    Reply: ClassVar[type[Record]] = SessionOpened

    name: Identifier
    password: str = Field(repr=False)
    code: str | None = Field(default=None, repr=False)
    certificate: Sha256 | None = None


class ActorToken(Record):
    """A short-lived signed token that stands in envelopes, or opens one HTTP service other than the gateway."""

    token: str = Field(repr=False)
    expires: datetime


class ResolveSession(Query, OfSession):
    """Exchange a session for an actor token. The gateway asks for audience `medmesh`; people may ask for `inference` or `audit`."""

    TYPE: ClassVar[str] = "governance.resolve-session.v1"
    ACTION: ClassVar[str | None] = None
    Reply: ClassVar[type[Record]] = ActorToken

    audience: str = "medmesh"
    key: str | None = None
    """Thumbprint of the key that was proven with the request (RFC 9449): the token is good only together with it."""


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


class EnrolSecondFactor(Exchange, OfSession):
    """Make a new second factor for oneself; it counts once a code of it was confirmed. `code` is one of the former, where there is one."""

    TYPE: ClassVar[str] = "governance.enrol-second-factor.v1"
    ACTION: ClassVar[str | None] = None
    Reply: ClassVar[type[Record]] = SecondFactorSecret

    code: str | None = Field(default=None, repr=False)


class ConfirmSecondFactor(Exchange, OfSession):
    """Show that the authenticator works; from here on signing in needs it."""

    TYPE: ClassVar[str] = "governance.confirm-second-factor.v1"
    ACTION: ClassVar[str | None] = None
    Reply: ClassVar[type[Record]] = Done

    code: str = Field(repr=False)


class StepUp(Exchange, OfSession):
    """Show the second factor again: what approves, exports or changes rights needs one at most five minutes old. In a session of a
    client certificate, which the connection shows, the password is what is shown again."""

    TYPE: ClassVar[str] = "governance.step-up.v1"
    ACTION: ClassVar[str | None] = None
    Reply: ClassVar[type[Record]] = Done

    code: str = Field(default="", repr=False)
    password: str = Field(default="", repr=False)


class ChangePassword(Exchange, OfSession):
    """Change one's own password; every other session of this person ends."""

    TYPE: ClassVar[str] = "governance.change-password.v1"
    ACTION: ClassVar[str | None] = None
    Reply: ClassVar[type[Record]] = Done

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


class ListSessions(Query, OfSession):
    """One's own sessions."""

    TYPE: ClassVar[str] = "governance.list-sessions.v1"
    ACTION: ClassVar[str | None] = None
    Reply: ClassVar[type[Record]] = Sessions


class EndSession(Exchange, OfSession):
    """End one of one's own sessions, by its id."""

    TYPE: ClassVar[str] = "governance.end-session.v1"
    ACTION: ClassVar[str | None] = None
    Reply: ClassVar[type[Record]] = Done

    id: str


class OpenSystemSession(Exchange):
    """A hospital's system signs in with a JWT of its own key (RFC 7523, `medmesh.security.assertions`)."""

    TYPE: ClassVar[str] = "governance.open-system-session.v1"
    ACTION: ClassVar[str | None] = None
    Reply: ClassVar[type[Record]] = SessionOpened

    assertion: str = Field(repr=False, max_length=4096)
