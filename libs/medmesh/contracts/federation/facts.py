"""What happened to federations, their participants and rounds."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import ClassVar, Literal

from pydantic import Field

from medmesh.contracts.federation.common import CandidateModel, Commitment, GoneReason, Reviews, RoundKind, SecurePhase, Undoing
from medmesh.contracts.labels import SecurityLabel
from medmesh.contracts.message import Event, HospitalEvent, Identifier, ObjectRef, Sha256
from medmesh.contracts.plan import Plan
from medmesh.contracts.screening import Flag


class FederationInvited(HospitalEvent):
    TYPE: ClassVar[str] = "federation.federation.invited.v1"

    federation: str
    plan: Plan
    plan_hash: Sha256
    package: ObjectRef
    reviews: Reviews = ()


class InvitationAnswered(Event):
    TYPE: ClassVar[str] = "federation.invitation.answered.v1"

    federation: str
    hospital: Identifier
    accepted: bool


class InvitationExpired(HospitalEvent):
    """These hospitals had not answered when the invitation ended: they take no part."""

    TYPE: ClassVar[str] = "federation.invitation.expired.v1"

    federation: str


class FederationReady(Event):
    """Enough hospitals accepted; it waits for the approval of `plan_hash` under the action `federation.start`. One that was `unapproved`
    had an approval and waited for its turn with it: it was revoked, or has expired, and another is needed."""

    TYPE: ClassVar[str] = "federation.federation.ready.v1"

    federation: str
    plan_hash: Sha256
    unapproved: Literal["", "revoked", "expired"] = ""


class FederationQueued(Event):
    """It is approved, and waits for its time, for enough hospitals and for its turn."""

    TYPE: ClassVar[str] = "federation.federation.queued.v1"

    federation: str


class FederationStarted(HospitalEvent):
    """`proof` is a `medmesh.federated.proof.StartProof`: the approval that was spent and what each of `hospitals` signed. Every node
    checks both against the roster it pinned before it trains."""

    TYPE: ClassVar[str] = "federation.federation.started.v1"

    federation: str
    plan_hash: Sha256
    proof: ObjectRef | None = None


class RoundOpened(HospitalEvent):
    """Every hospital named works on `base` (train, baseline) or on `models` (evaluate) and answers before `deadline`."""

    TYPE: ClassVar[str] = "federation.round.opened.v1"
    APART: ClassVar[Mapping[str, str]] = {"sealed": "shares"}

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
    """Hospital to "round.attempt" of its last update that is in a model, where hospitals keep something of it, for the algorithm or
    because a codec left it out: that is what each goes on from, whatever it trained in vain since."""
    clip: str = ""
    """The clipping norm of this round, a decimal string, where the plan's privacy lets it follow the updates."""
    changed: dict[str, str] = Field(default_factory=dict)
    """What of the plan is otherwise in this round, within its ranges."""
    previous: Sha256 | None = None
    """The chain's value after the round that was opened before this one; the plan's hash before the first."""
    chain: Sha256 | None = None
    """Its value with this round (`medmesh.federated.chain`). A hospital works on no round that does not continue what it saw."""
    undoing: Undoing | None = None
    """Why `base` is the model of an earlier round, where the federation was rolled back."""
    committed: Sha256 | None = None
    """The chain of what rounds left, as it stands: `base` is the model that its last link names."""
    links: tuple[Commitment, ...] = ()
    """Its links since the round that was opened before this one."""
    sealed: dict[Identifier, dict[Identifier, str]] = Field(default_factory=dict)
    """Where a secure sum was prepared in the round before: hospital to what each sealed for it."""
    shares: dict[Identifier, str] = Field(default_factory=dict)
    """What of that is for the hospital that is told, in its inbox."""

    @property
    def everybody(self) -> tuple[str, ...]:
        """Who works on this round."""
        return self.assigned or self.hospitals


class SecureAdvanced(HospitalEvent):
    """A secure sum goes on: `messages` is what `phase` needs of the others (shares: signed keys; vectors: the shares sealed for the one
    hospital that is told; survivors: the names of those whose vectors arrived, where others' are missing; reveal: the signed lists)."""

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
    """Whose update is in the model: not those that its algorithm set aside."""
    chain: Sha256
    """SHA-256 over the previous round's chain (the plan hash at first), this round's number, kind, model and state."""
    state: Sha256 | None = None
    """What the algorithm remembers on the platform after this round."""


class UpdateFlagged(HospitalEvent):
    """An update looks wrong, for these reasons. It counts all the same unless it is `excluded` from its round's model."""

    TYPE: ClassVar[str] = "federation.update.flagged.v1"

    federation: str
    round: int
    attempt: int
    hospital: Identifier
    flags: tuple[Flag, ...]
    excluded: bool


class UpdateLost(HospitalEvent):
    """What these hospitals handed in is gone at the platform: they send the very same bytes again."""

    TYPE: ClassVar[str] = "federation.update.lost.v1"

    federation: str
    round: int
    attempt: int


class ModelGone(HospitalEvent):
    """The model of a committed round is in no store and never made again as it was: it waits until people went back before it."""

    TYPE: ClassVar[str] = "federation.model.gone.v1"

    federation: str
    round: int
    why: GoneReason


class RoundStored(HospitalEvent):
    """The round's model is in the kept store: the hospitals may release their updates, those in `stale` that of an earlier round, which
    counted in this one."""

    TYPE: ClassVar[str] = "federation.round.stored.v1"

    federation: str
    round: int
    attempt: int
    model: ObjectRef
    stale: dict[Identifier, int] = Field(default_factory=dict)


class RoundVoided(HospitalEvent):
    """Too few answered before the deadline, or of what they gave no model could be made; the round is tried again under a new attempt. A
    round that is `skipped` is not: its secure sum stayed closed, and no hospital opens a second one of it."""

    TYPE: ClassVar[str] = "federation.round.voided.v1"

    federation: str
    round: int
    attempt: int
    skipped: bool = False
    why: str = ""
    """The code of the problem that no model could be made for; empty where too few answered."""


class RoundExtended(HospitalEvent):
    """The open round has until `deadline` now."""

    TYPE: ClassVar[str] = "federation.round.extended.v1"

    federation: str
    round: int
    attempt: int
    deadline: datetime


class FederationWaiting(HospitalEvent):
    """It runs, and too few hospitals are there for a round, since `since`. It goes on by itself when enough are back, and fails at `until`
    unless they are; where people decide about a hospital in quarantine it waits for them. `missing` are those that are not there."""

    TYPE: ClassVar[str] = "federation.federation.waiting.v1"

    federation: str
    since: datetime
    until: datetime | None = None
    missing: tuple[Identifier, ...] = ()


class FederationPaused(HospitalEvent):
    TYPE: ClassVar[str] = "federation.federation.paused.v1"

    federation: str
    reason: str = ""
    """What who paused it said."""


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
    """It may return at the next round, unless it is `excluded`: that was once too often for the plan."""

    TYPE: ClassVar[str] = "federation.participant.dropped.v1"

    federation: str
    hospital: Identifier
    round: int
    reason: str
    excluded: bool = False


class ParticipantRejoined(Event):
    TYPE: ClassVar[str] = "federation.participant.rejoined.v1"

    federation: str
    hospital: Identifier
    round: int


class ParticipantQuarantined(HospitalEvent):
    """A hospital takes no part until its release is approved: its update was flagged, or a person decided so."""

    TYPE: ClassVar[str] = "federation.participant.quarantined.v1"

    federation: str
    hospital: Identifier
    reason: str


class ParticipantReleased(HospitalEvent):
    """People approved that it takes part again, from the next round on."""

    TYPE: ClassVar[str] = "federation.participant.released.v1"

    federation: str
    hospital: Identifier


class FederationRolledBack(HospitalEvent):
    """It goes on from the model of committed round `round` (0: the first weights); rounds `undone` are not in what follows. Numbers of
    rounds go on rising."""

    TYPE: ClassVar[str] = "federation.federation.rolled-back.v1"

    federation: str
    round: int
    undone: tuple[int, ...]
    model: ObjectRef


class ApprovalFailed(Event):
    """What was approved of a federation cannot be done any more: `code` says why. Nothing was changed, and the approval is spent."""

    TYPE: ClassVar[str] = "federation.approval.failed.v1"

    federation: str
    action: str
    target: str
    code: str


class FederationCompleted(HospitalEvent):
    """The final model: that of training round `rounds`, with the part of each of `contributors` in it; `participants` are those who
    belong to the federation at its end."""

    TYPE: ClassVar[str] = "federation.federation.completed.v1"

    federation: str
    name: str
    plan_hash: Sha256
    chain: Sha256
    package: ObjectRef
    model: ObjectRef
    rounds: int
    participants: tuple[Identifier, ...]
    contributors: tuple[Identifier, ...] = ()
    organisation: str = "platform"
    """The initiator's."""
    undone: tuple[int, ...] = ()
    """Committed rounds that were rolled back: nothing of them is in the model."""
    label: SecurityLabel | None = None
    pipeline: Sha256 | None = None
    """The hash of the one that every hospital's data went through."""


class FederationFailed(HospitalEvent):
    TYPE: ClassVar[str] = "federation.federation.failed.v1"

    federation: str
    code: str
    reason: str = ""
    """What who cancelled it said."""
