"""Hospitals and their nodes: enrolment, renewal, revocation."""

from __future__ import annotations

from datetime import datetime
from typing import ClassVar

from pydantic import Field

from medmesh.contracts.governance.common import OneTimeCode
from medmesh.contracts.message import Command, Event, Exchange, Identifier, Query, Record, Sha256


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
    """A node redeems its code with a certificate signing request. The same code with the same request answers the same.

    `organisation_key` is the hospital's own verifier key, made at the node and apart from its certificate: what gets approved is both.
    """

    TYPE: ClassVar[str] = "governance.enrol.v1"
    ACTION: ClassVar[str | None] = None
    Reply: ClassVar[type[Record]] = EnrolmentState

    hospital: Identifier
    node: Identifier
    code: str = Field(repr=False)
    csr_pem: str
    protocol: int = 1
    organisation_key: str = Field(default="", max_length=400)


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
    """Serial numbers (hexadecimal) of certificates, of nodes and people, that were revoked and have not expired anyway."""

    serials: tuple[str, ...]


class ListRevocations(Query):
    """What every service asks again and again, so that a revoked node is believed nowhere."""

    TYPE: ClassVar[str] = "governance.list-revocations.v1"
    ACTION: ClassVar[str | None] = "revocation.list"
    Reply: ClassVar[type[Record]] = Revocations


class RevokeNode(Command):
    """Believe a node no longer, or all of a hospital's: within seconds everywhere. Result: `{"revoked": serial numbers}`."""

    TYPE: ClassVar[str] = "governance.revoke-node.v1"
    ACTION: ClassVar[str] = "hospital.revoke"

    hospital: Identifier
    node: Identifier | None = None
    reason: str = Field(default="", max_length=500)


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
