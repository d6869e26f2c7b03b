"""What hospitals say to federations, and their signs of life."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from medmesh.contracts.federation.common import Confusion, SecurePhase, Work
from medmesh.contracts.message import Command, Names, ObjectRef, Sha256, Signal


class RespondInvitation(Command):
    """Accept or decline. `signature` is the acceptance signed with the hospital's own key, which stands in the roster
    (`medmesh.security.statements.Acceptance`); required to accept."""

    TYPE: ClassVar[str] = "federation.respond.v1"
    ACTION: ClassVar[str] = "federation.respond"
    OBJECTS: ClassVar[tuple[Names, ...]] = (Names("federation", "{federation}"),)

    federation: str
    plan_hash: Sha256
    accept: bool
    signature: str = ""
    reason: str = ""
    small_cell: int = Field(default=0, ge=0, le=1_000_000)
    """To which multiple this hospital's own policy has counts of evaluations rounded; the plan's number holds where that is larger."""


class OpenLink(Command):
    """The hospital's node opens the link it was given, once. It answers nothing: consent is the signature of `RespondInvitation`. Result:
    `{"plan_hash"}`."""

    TYPE: ClassVar[str] = "federation.open-link.v1"
    ACTION: ClassVar[str] = "federation.respond"
    OBJECTS: ClassVar[tuple[Names, ...]] = (Names("federation", "{federation}"),)

    federation: str
    secret: str = Field(min_length=1, max_length=100)


class WithdrawFromFederation(Command):
    """A hospital leaves for good, also after the end. Its answer to the open round is dropped and deleted, and it is never asked again;
    what was averaged into a committed model cannot be taken out. Result: `{"state": "withdrawn", "rounds": committed with its part}`."""

    TYPE: ClassVar[str] = "federation.withdraw.v1"
    ACTION: ClassVar[str] = "federation.respond"
    OBJECTS: ClassVar[tuple[Names, ...]] = (Names("federation", "{federation}"),)

    federation: str
    reason: str = Field(default="", max_length=200)


class SubmitUpdate(Command):
    """A trained model is uploaded. Keyed (federation, round, attempt, hospital): a duplicate is no-op, a late one is recorded."""

    TYPE: ClassVar[str] = "federation.submit-update.v1"
    ACTION: ClassVar[str] = "federation.submit"
    OBJECTS: ClassVar[tuple[Names, ...]] = (Names("federation", "{federation}"),)

    federation: str
    round: int
    attempt: int
    update: ObjectRef
    samples: int = Field(gt=0)
    metrics: dict[str, float] = Field(default_factory=dict)
    counts: tuple[tuple[int, ...], ...] | None = None
    """How the model that the round began with did on this hospital's held-out samples (`counts[true][predicted]`), where the plan has such
    rounds evaluate."""
    milliseconds: dict[Work, int] = Field(default_factory=dict)
    """What this hospital's time went into."""
    base: Sha256 | None = None
    """SHA-256 of the model that the round began with here; any other than the round's is refused. A node of before says nothing."""
    whole: str = Field(default="", max_length=2000)
    """Of a masked vector: the list of everybody whose masks are in it, and this hospital's keys for the next round, signed."""


class SubmitEvaluation(Command):
    """Counts only; no sample leaves the hospital."""

    TYPE: ClassVar[str] = "federation.submit-evaluation.v1"
    ACTION: ClassVar[str] = "federation.submit"
    OBJECTS: ClassVar[tuple[Names, ...]] = (Names("federation", "{federation}"),)

    federation: str
    round: int
    attempt: int
    results: tuple[Confusion, ...]
    milliseconds: dict[Work, int] = Field(default_factory=dict)
    personal: tuple[tuple[int, ...], ...] | None = None
    """The counts of the hospital's own model, which stays there, where its algorithm makes one."""


class SubmitSecure(Command):
    """A hospital's part in one phase of a secure sum (`medmesh.federated.secure`): its signed keys, sealed shares by recipient, its signed
    survivor list, or shares that are revealed by whose they are. One for a phase; a duplicate is no-op."""

    TYPE: ClassVar[str] = "federation.submit-secure.v1"
    ACTION: ClassVar[str] = "federation.submit"
    OBJECTS: ClassVar[tuple[Names, ...]] = (Names("federation", "{federation}"),)

    federation: str
    round: int
    attempt: int
    phase: SecurePhase
    messages: dict[str, str] = Field(max_length=64)
    ahead: dict[str, str] = Field(default_factory=dict, max_length=64)
    """With the last phase: what is sealed for the others in the next round."""


class ReportFailure(Command):
    """A hospital cannot do its part in a round: `code` is the problem's code. It leaves the round and may rejoin at the next."""

    TYPE: ClassVar[str] = "federation.report-failure.v1"
    ACTION: ClassVar[str] = "federation.submit"
    OBJECTS: ClassVar[tuple[Names, ...]] = (Names("federation", "{federation}"),)

    federation: str
    round: int
    attempt: int
    code: str


class HospitalAlive(Signal):
    """The hospital's node holds its connection to the gateway; renews its lease."""

    TYPE: ClassVar[str] = "alive.v1"


class RoundProgressed(Signal):
    """How far a hospital is in a round; shown to people, decides nothing."""

    TYPE: ClassVar[str] = "round-progressed.v1"

    federation: str
    round: int
    done: int
    total: int
    phase: Literal["train", "fetch", "send", "prepare"] = "train"
    """`done` and `total` count steps while it trains, bytes while weights come or go, tenths while the pipeline is applied."""
