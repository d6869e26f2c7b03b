"""What people ask of federations."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from medmesh.contracts.federation.common import Reviews
from medmesh.contracts.labels import SecurityLabel
from medmesh.contracts.message import Command, Identifier, Names, ObjectRef, Sha256
from medmesh.contracts.plan import Plan, RangeName


class CreateFederation(Command):
    """Create a federation and invite its participants. Result: `{"federation": id, "plan_hash": sha256}`.

    It is `internal`, as is the global model, and seen by the initiator's organisation and the hospitals of its plan; `label` may raise it.
    """

    TYPE: ClassVar[str] = "federation.create.v1"
    ACTION: ClassVar[str] = "federation.create"
    MAKES: ClassVar[str] = "federation"

    OBJECTS: ClassVar[tuple[Names, ...]] = (Names("file", "{initial.sha256}", "object.read"),)

    plan: Plan
    package: ObjectRef
    initial: ObjectRef
    label: SecurityLabel | None = None
    reviews: Reviews = ()
    """Signed notes of those who read the package's code (`medmesh.security.statements.CodeReview`); passed on to its hospitals."""


class CancelFederation(Command):
    """End it for good. Its hospitals are told the `reason`, 1 to 200 characters, and it is recorded."""

    TYPE: ClassVar[str] = "federation.cancel.v1"
    ACTION: ClassVar[str] = "federation.cancel"
    OBJECTS: ClassVar[tuple[Names, ...]] = (Names("federation", "{federation}"),)

    federation: str
    reason: str


class PauseFederation(Command):
    """No further round opens; hospitals finish the one they work on, and its clock stands still until `ResumeFederation`.
    They are told the `reason`, and it is recorded."""

    TYPE: ClassVar[str] = "federation.pause.v1"
    ACTION: ClassVar[str] = "federation.pause"
    OBJECTS: ClassVar[tuple[Names, ...]] = (Names("federation", "{federation}"),)

    federation: str
    reason: str = Field(default="", max_length=200)


class ResumeFederation(Command):
    """Go on: the open round gets back the time it was paused."""

    TYPE: ClassVar[str] = "federation.resume.v1"
    ACTION: ClassVar[str] = "federation.pause"
    OBJECTS: ClassVar[tuple[Names, ...]] = (Names("federation", "{federation}"),)

    federation: str


class LinkInvitation(Command):
    """A one-time link for the hospital that is invited; one made before counts no more. Whoever asks keeps the link and gives the platform
    its digest only (`medmesh.federated.invitation`), so that nobody here could open it. Result: `{"hospital", "expires"}`."""

    TYPE: ClassVar[str] = "federation.link.v1"
    ACTION: ClassVar[str] = "federation.invite"
    OBJECTS: ClassVar[tuple[Names, ...]] = (Names("federation", "{federation}"),)

    federation: str
    hospital: Identifier
    digest: Sha256
    seconds: int = Field(default=604_800, ge=60, le=2_592_000)


class RevokeLink(Command):
    """The link of this hospital opens nothing any more. Result: `{"hospital"}`."""

    TYPE: ClassVar[str] = "federation.revoke-link.v1"
    ACTION: ClassVar[str] = "federation.invite"
    OBJECTS: ClassVar[tuple[Names, ...]] = (Names("federation", "{federation}"),)

    federation: str
    hospital: Identifier


class QuarantineHospital(Command):
    """A hospital takes no part until people approved its release (`federation.release`): what it gave to the open round does not count.
    It works at once. Result: `{"state": "quarantined"}`."""

    TYPE: ClassVar[str] = "federation.quarantine.v1"
    ACTION: ClassVar[str] = "federation.quarantine"
    OBJECTS: ClassVar[tuple[Names, ...]] = (Names("federation", "{federation}"),)

    federation: str
    hospital: Identifier
    reason: str = Field(min_length=1, max_length=200)


class ExtendRound(Command):
    """Give the open round more time. The plan is not touched: its deadline holds for every other round. Result: `{"deadline": …}`."""

    TYPE: ClassVar[str] = "federation.extend.v1"
    ACTION: ClassVar[str] = "federation.pause"
    OBJECTS: ClassVar[tuple[Names, ...]] = (Names("federation", "{federation}"),)

    federation: str
    seconds: int = Field(ge=1, le=30 * 86_400)


class AdjustFederation(Command):
    """Change how training rounds go on from the next one opened, within the ranges of the plan (decimal strings); a value that is not named
    goes back to the plan's. Only who made the federation may. Result: `{"changed"}`."""

    TYPE: ClassVar[str] = "federation.adjust.v1"
    ACTION: ClassVar[str] = "federation.adjust"
    OBJECTS: ClassVar[tuple[Names, ...]] = (Names("federation", "{federation}"),)

    federation: str
    changed: dict[RangeName, str]
