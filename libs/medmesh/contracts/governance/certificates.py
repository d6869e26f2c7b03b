"""Client certificates of people: a second factor whose key stays with its owner."""

from __future__ import annotations

from datetime import datetime
from typing import ClassVar

from pydantic import Field

from medmesh.contracts.governance.common import OfSession
from medmesh.contracts.message import Command, Event, Exchange, Identifier, Names, Record, Sha256


class PersonCertificate(Record):
    name: Identifier
    certificate_pem: str
    fingerprint: Sha256
    expires: datetime


class RequestCertificate(Exchange, OfSession):
    """A client certificate for oneself, for a signing request: with the second factor shown now, or, where there is none yet, just after
    signing in. The same request answers the same certificate. From here on signing in needs one; other sessions end."""

    TYPE: ClassVar[str] = "governance.request-certificate.v1"
    ACTION: ClassVar[str | None] = None
    Reply: ClassVar[type[Record]] = PersonCertificate

    csr_pem: str = Field(max_length=4000)
    code: str = Field(default="", repr=False)
    password: str = Field(default="", repr=False)


class IssueCertificate(Exchange):
    """A client certificate for somebody else, who handed the signing request over."""

    TYPE: ClassVar[str] = "governance.issue-certificate.v1"
    ACTION: ClassVar[str | None] = "user.manage"
    Reply: ClassVar[type[Record]] = PersonCertificate
    OBJECTS: ClassVar[tuple[Names, ...]] = (Names("user", "{name}"),)

    name: Identifier
    csr_pem: str = Field(max_length=4000)


class RevokeCertificate(Command):
    """Believe a person's certificates no longer, or one of them; their sessions end. Result: `{"revoked": serial numbers}`."""

    TYPE: ClassVar[str] = "governance.revoke-certificate.v1"
    ACTION: ClassVar[str] = "user.manage"
    OBJECTS: ClassVar[tuple[Names, ...]] = (Names("user", "{name}"),)

    name: Identifier
    fingerprint: Sha256 | None = None
    reason: str = Field(default="", max_length=500)


class CertificateRevoked(Event):
    """Client certificates of a person count no longer."""

    TYPE: ClassVar[str] = "governance.certificate.revoked.v1"

    name: Identifier
    serials: tuple[str, ...]
