"""Federations, their participants and rounds."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import ClassVar, Literal

from pydantic import Field

from medmesh.contracts.labels import SecurityLabel
from medmesh.contracts.message import Command, Event, HospitalEvent, Identifier, Names, ObjectRef, Query, Record, Sha256, Signal
from medmesh.contracts.plan import Plan


class RoundKind(StrEnum):
    """What the hospitals do in a round: train the global model, train alone for comparison, or evaluate models."""

    TRAIN = "train"
    BASELINE = "baseline"
    EVALUATE = "evaluate"


class SecurePhase(StrEnum):
    """What is collected from the hospitals of a round under secure aggregation, in this order."""

    KEYS = "keys"
    SHARES = "shares"
    VECTORS = "vectors"
    SURVIVORS = "survivors"
    REVEAL = "reveal"


class Confusion(Record):
    """How one model did on one hospital's held-out samples: `counts[true class][predicted class]`."""

    model: Sha256
    counts: tuple[tuple[int, ...], ...]


class CandidateModel(Record):
    """A model to evaluate: the global one, or one hospital's baseline."""

    name: str
    weights: ObjectRef


# --- commands of people ---------------------------------------------------------------------------------------------


class CreateFederation(Command):
    """Create a federation and invite its participants. Result: `{"federation": id, "plan_hash": sha256}`.

    It is `internal`, as is the global model, and seen by the initiator's organisation and the hospitals of its plan; `label` may raise it.
    """

    TYPE: ClassVar[str] = "federation.create.v1"
    ACTION: ClassVar[str] = "federation.create"
    MAKES: ClassVar[str] = "federation"

    plan: Plan
    package: ObjectRef
    initial: ObjectRef
    label: SecurityLabel | None = None


class CancelFederation(Command):
    TYPE: ClassVar[str] = "federation.cancel.v1"
    ACTION: ClassVar[str] = "federation.cancel"
    OBJECTS: ClassVar[tuple[Names, ...]] = (Names("federation", "{federation}"),)

    federation: str
    reason: str


class PauseFederation(Command):
    """No further round opens; hospitals finish the one they work on, and its clock stands still until `ResumeFederation`."""

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


class ExtendRound(Command):
    """Give the open round more time. The plan is not touched: its deadline holds for every other round. Result: `{"deadline": …}`."""

    TYPE: ClassVar[str] = "federation.extend.v1"
    ACTION: ClassVar[str] = "federation.pause"
    OBJECTS: ClassVar[tuple[Names, ...]] = (Names("federation", "{federation}"),)

    federation: str
    seconds: int = Field(ge=1, le=30 * 86_400)


# --- commands of hospitals ------------------------------------------------------------------------------------------


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


class SubmitEvaluation(Command):
    """Counts only; no sample leaves the hospital."""

    TYPE: ClassVar[str] = "federation.submit-evaluation.v1"
    ACTION: ClassVar[str] = "federation.submit"
    OBJECTS: ClassVar[tuple[Names, ...]] = (Names("federation", "{federation}"),)

    federation: str
    round: int
    attempt: int
    results: tuple[Confusion, ...]
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


class ReportFailure(Command):
    """A hospital cannot do its part in a round: `code` is the problem's code. It leaves the round and may rejoin at the next."""

    TYPE: ClassVar[str] = "federation.report-failure.v1"
    ACTION: ClassVar[str] = "federation.submit"
    OBJECTS: ClassVar[tuple[Names, ...]] = (Names("federation", "{federation}"),)

    federation: str
    round: int
    attempt: int
    code: str


# --- facts ----------------------------------------------------------------------------------------------------------


class FederationInvited(HospitalEvent):
    TYPE: ClassVar[str] = "federation.federation.invited.v1"

    federation: str
    plan: Plan
    plan_hash: Sha256
    package: ObjectRef


class InvitationAnswered(Event):
    TYPE: ClassVar[str] = "federation.invitation.answered.v1"

    federation: str
    hospital: Identifier
    accepted: bool


class FederationReady(Event):
    """Enough hospitals accepted; it waits for the approval of `plan_hash` under the action `federation.start`."""

    TYPE: ClassVar[str] = "federation.federation.ready.v1"

    federation: str
    plan_hash: Sha256


class FederationStarted(HospitalEvent):
    """`approval` is the token that was spent, `acceptances` what each of `hospitals` signed: every node checks both against the roster
    it pinned before it trains."""

    TYPE: ClassVar[str] = "federation.federation.started.v1"

    federation: str
    plan_hash: Sha256
    approval: str = ""
    acceptances: tuple[str, ...] = ()


class RoundOpened(HospitalEvent):
    """Every hospital named works on `base` (train, baseline) or on `models` (evaluate) and answers before `deadline`."""

    TYPE: ClassVar[str] = "federation.round.opened.v1"

    federation: str
    round: int
    attempt: int
    kind: RoundKind
    plan_hash: Sha256
    base: ObjectRef
    models: tuple[CandidateModel, ...] = ()
    steps: int
    seed: int
    deadline: datetime
    state: ObjectRef | None = None
    """What the algorithm shows every hospital beside the model (SCAFFOLD's c)."""
    personal: ObjectRef | None = None
    """The model that was made for the one hospital told, where the algorithm makes such (FedAMP): then each is told by itself."""
    assigned: tuple[Identifier, ...] = ()
    """Everybody in the round, where each hospital is told by itself."""
    continues: dict[str, str] = Field(default_factory=dict)
    """Hospital to "round.attempt" of the last round in which its update counted, where the algorithm has hospitals keep something: that
    is what each goes on from, whatever it trained in vain since."""

    @property
    def everybody(self) -> tuple[str, ...]:
        """Who works on this round."""
        return self.assigned or self.hospitals


class SecureAdvanced(HospitalEvent):
    """A secure sum goes on: `messages` is what `phase` needs of the others (shares: signed keys; vectors: the shares sealed for the one
    hospital that is told; survivors: the names of those whose vectors arrived; reveal: their signed lists)."""

    TYPE: ClassVar[str] = "federation.round.secure-advanced.v1"

    federation: str
    round: int
    attempt: int
    plan_hash: Sha256
    phase: SecurePhase
    messages: dict[str, str]


class RoundCommitted(Event):
    TYPE: ClassVar[str] = "federation.round.committed.v1"

    federation: str
    round: int
    attempt: int
    kind: RoundKind
    model: ObjectRef
    participants: tuple[Identifier, ...]
    chain: Sha256
    """SHA-256 over the previous round's chain (the plan hash at first), this round's number, kind, model and state."""
    state: Sha256 | None = None
    """What the algorithm remembers on the platform after this round."""


class RoundStored(HospitalEvent):
    """The round's model is in the kept store: the hospitals may release their updates."""

    TYPE: ClassVar[str] = "federation.round.stored.v1"

    federation: str
    round: int
    attempt: int
    model: ObjectRef


class RoundVoided(HospitalEvent):
    """Too few answered before the deadline; the round is tried again under a new attempt."""

    TYPE: ClassVar[str] = "federation.round.voided.v1"

    federation: str
    round: int
    attempt: int


class RoundExtended(HospitalEvent):
    """The open round has until `deadline` now."""

    TYPE: ClassVar[str] = "federation.round.extended.v1"

    federation: str
    round: int
    attempt: int
    deadline: datetime


class FederationPaused(HospitalEvent):
    TYPE: ClassVar[str] = "federation.federation.paused.v1"

    federation: str


class FederationResumed(HospitalEvent):
    TYPE: ClassVar[str] = "federation.federation.resumed.v1"

    federation: str


class ParticipantWithdrew(HospitalEvent):
    """A hospital left for good; `rounds` committed models have its part."""

    TYPE: ClassVar[str] = "federation.participant.withdrew.v1"

    federation: str
    hospital: Identifier
    rounds: int


class ParticipantDropped(HospitalEvent):
    TYPE: ClassVar[str] = "federation.participant.dropped.v1"

    federation: str
    hospital: Identifier
    round: int
    reason: str


class ParticipantRejoined(Event):
    TYPE: ClassVar[str] = "federation.participant.rejoined.v1"

    federation: str
    hospital: Identifier
    round: int


class FederationCompleted(HospitalEvent):
    """The final model and, where the plan asked for it, every model's counts at every hospital."""

    TYPE: ClassVar[str] = "federation.federation.completed.v1"

    federation: str
    name: str
    plan_hash: Sha256
    chain: Sha256
    package: ObjectRef
    model: ObjectRef
    rounds: int
    participants: tuple[Identifier, ...]
    organisation: str = "platform"
    """The initiator's."""
    label: SecurityLabel | None = None


class FederationFailed(HospitalEvent):
    TYPE: ClassVar[str] = "federation.federation.failed.v1"

    federation: str
    code: str


# --- signals --------------------------------------------------------------------------------------------------------


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
    phase: Literal["train", "fetch", "send"] = "train"
    """`done` and `total` count steps while it trains, bytes while weights come or go."""


# --- queries --------------------------------------------------------------------------------------------------------


class ProgressView(Record):
    """The newest that a hospital said of itself; nothing in it is proven."""

    round: int
    phase: str
    done: int
    total: int


class ParticipantView(Record):
    hospital: str
    state: str
    online: bool
    drops: int
    reason: str = ""
    progress: ProgressView | None = None


class AnswerView(Record):
    hospital: str
    samples: int
    late: bool
    bytes: int
    metrics: dict[str, float]


class RoundView(Record):
    round: int
    attempt: int
    kind: str
    state: str
    opened: datetime
    deadline: datetime
    closed: datetime | None
    base: ObjectRef
    model: ObjectRef | None
    chain: str | None
    answers: tuple[AnswerView, ...]


class EvaluationView(Record):
    """`counts[true][predicted]` of the model `name` at `hospital`."""

    hospital: str
    name: str
    counts: tuple[tuple[int, ...], ...]


class FederationView(Record):
    federation: str
    state: str
    plan: Plan
    plan_hash: str
    chain: str
    participants: tuple[ParticipantView, ...]
    rounds: tuple[RoundView, ...]
    evaluation: tuple[EvaluationView, ...]
    model: ObjectRef | None
    failure: str | None
    label: SecurityLabel | None = None


class GetFederation(Query):
    TYPE: ClassVar[str] = "federation.get.v1"
    ACTION: ClassVar[str | None] = "federation.read"
    Reply: ClassVar[type[Record]] = FederationView
    OBJECTS: ClassVar[tuple[Names, ...]] = (Names("federation", "{federation}"),)

    federation: str


class FederationSummary(Record):
    federation: str
    name: str
    state: str
    round: int
    rounds: int
    participants: tuple[str, ...]
    label: SecurityLabel | None = None


class FederationList(Record):
    federations: tuple[FederationSummary, ...]


class ListFederations(Query):
    TYPE: ClassVar[str] = "federation.list.v1"
    ACTION: ClassVar[str | None] = "federation.read"
    Reply: ClassVar[type[Record]] = FederationList
    LISTS: ClassVar[str] = "federation"
