"""What people see of federations."""

from __future__ import annotations

from datetime import datetime
from typing import ClassVar, Literal

from pydantic import Field

from medmesh.contracts.federation.common import Commitment, FederationState, GoneReason, Work
from medmesh.contracts.labels import SecurityLabel
from medmesh.contracts.message import Names, ObjectRef, Query, Record, Sha256
from medmesh.contracts.plan import Plan
from medmesh.contracts.screening import Flag, Verdict


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
    release: Sha256 | None = None
    """Of one in quarantine: the digest under which its release is approved."""
    progress: ProgressView | None = None
    small_cell: int = 0
    """To which multiple its own policy had counts rounded when it accepted; shown to people and to itself."""
    link: Literal["", "waiting", "opened", "revoked", "expired"] = ""
    """Of its newest one-time link; shown to the initiator and to itself."""


class AnswerView(Record):
    hospital: str
    samples: int
    late: bool
    bytes: int
    metrics: dict[str, float]
    counts: tuple[tuple[int, ...], ...] | None = None
    """Of the model that the round began with, where it was evaluated."""
    milliseconds: dict[Work, int] = Field(default_factory=dict)
    counted: int | None = None
    """The later round that this update is part of, where rounds do not wait for the slow."""
    flags: tuple[Flag, ...] = ()
    """Why this update looks wrong, if it does."""
    excluded: bool = False
    """It does not count in the round."""
    ratio: float | None = None
    """Of one that was flagged: its length over the round's median; shown to people and to its own hospital."""
    cosine: float | None = None
    """Likewise, to the mean direction of the others."""
    verdict: Verdict | None = None
    """What the plan's algorithm made of it, where not all of it is in the round's model; its counts are all the same."""


class SumView(Record):
    """What is known of all hospitals together where the platform opens sums only: on `samples` (of an evaluation round: hospitals)."""

    samples: int
    loss: float | None = None
    counts: tuple[tuple[int, ...], ...] | None = None
    """Of the model that the round began with."""


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
    why: str = ""
    """Why it came to nothing, where it did: the code of a problem; empty where too few answered."""
    undone: bool = False
    """It was committed, and rolled back."""
    aggregate_milliseconds: int | None = None
    """From the last answer's being there to the model's being durable."""
    sum: SumView | None = None
    """Of a round under secure aggregation that evaluated."""


class EvaluationView(Record):
    """`counts[true][predicted]` of the model `name` at `hospital`; at all of them together where that is empty."""

    hospital: str
    name: str
    counts: tuple[tuple[int, ...], ...]


class PrivacyView(Record):
    """The federation's ledger: `epsilon` is spent at `delta` after `attempts` at training rounds, each counted when it began."""

    unit: str
    epsilon: float
    budget: str
    delta: str
    attempts: int


class GoneView(Record):
    """A committed round whose model is in no store and can never be made again as it was: nothing goes on until people went back."""

    round: int
    since: datetime
    why: GoneReason
    """The platform's noise is drawn once; a hospital that left is needed for it; one cannot hand its update in again; or what was made
    again has another hash."""
    back: int | None
    """The round to go back to by approval (0: the first weights); None where no round can be gone back to, and cancelling is left."""


class FederationView(Record):
    """A federation, its hospitals, and its rounds from the newest on, as many as fit into a message; `more` says where the next
    `FederationPage` begins, and is empty when this is all. Everything of a round is in the order of hospitals."""

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
    """Why it ended as it did; of one that is completed, why before its last round."""
    privacy: PrivacyView | None = None
    waiting: tuple[str, ...] = ()
    """Before it runs, what it waits for: `answer:HOSPITAL`, `approval` (where it had one, `approval:revoked` or `approval:expired`),
    `time`, `online`, and of quotas `initiator` or `busy:HOSPITAL`."""
    waiting_since: datetime | None = None
    """Since when it is paused, or too few hospitals are there for a round: then `waiting` has `quorum`, and `quorum:HOSPITAL` for each that
    is not there."""
    fails_at: datetime | None = None
    """When it fails unless enough hospitals are back; None also where people decide about one in quarantine."""
    reason: str = ""
    """What who paused or cancelled it said."""
    approved_until: datetime | None = None
    """Before it runs: when the approval of its start expires, and another is needed."""
    ahead: int = 0
    """Of one that is queued: how many were queued before it that need what it needs (its initiator's quota, or one of its hospitals)."""
    not_before: datetime | None = None
    """When it can begin at the earliest, as far as that can be said: from its time, and how long rounds of those in its way have taken so
    far. Those ahead of it come first."""
    changed: dict[str, str] = Field(default_factory=dict)
    """What of the plan the initiator changed, within its ranges, for the rounds that open from now on."""
    gone: GoneView | None = None
    """The first model that is lost for good, while the federation waits for people because of it."""
    label: SecurityLabel | None = None
    more: str = ""


class FederationPage(Record):
    """What comes after: further hospitals, then older rounds. A round that did not fit is in several pages, with other answers each."""

    participants: tuple[ParticipantView, ...]
    rounds: tuple[RoundView, ...]
    evaluation: tuple[EvaluationView, ...]
    more: str = ""


class GetFederationPage(Query):
    """The page that begins `after` what a view or a page before it ended with: its `more`."""

    TYPE: ClassVar[str] = "federation.page.v1"
    ACTION: ClassVar[str | None] = "federation.read"
    Reply: ClassVar[type[Record]] = FederationPage
    OBJECTS: ClassVar[tuple[Names, ...]] = (Names("federation", "{federation}"),)

    federation: str
    after: str = Field(max_length=120)


class GetFederation(Query):
    TYPE: ClassVar[str] = "federation.get.v1"
    ACTION: ClassVar[str | None] = "federation.read"
    Reply: ClassVar[type[Record]] = FederationView
    OBJECTS: ClassVar[tuple[Names, ...]] = (Names("federation", "{federation}"),)

    federation: str


class RoundChain(Record):
    """`digests` of rounds in the order in which they were opened (`medmesh.federated.chain.round_digest`), the last of which is attempt
    `attempt` at round `round`; `more` when there are later ones. `links` are those that each of them named."""

    digests: tuple[Sha256, ...]
    links: tuple[tuple[Commitment, ...], ...] = ()
    round: int
    attempt: int
    more: bool


class GetRoundChain(Query):
    """The rounds opened after attempt `attempt` at round `round`: what a hospital that missed some folds into what it knows."""

    TYPE: ClassVar[str] = "federation.round-chain.v1"
    ACTION: ClassVar[str | None] = "federation.read"
    Reply: ClassVar[type[Record]] = RoundChain
    OBJECTS: ClassVar[tuple[Names, ...]] = (Names("federation", "{federation}"),)

    federation: str
    round: int = Field(default=0, ge=0)
    attempt: int = Field(default=0, ge=0)


class FederationSummary(Record):
    federation: str
    initiator: str = ""
    created: datetime | None = None
    name: str
    state: str
    round: int
    rounds: int
    participants: tuple[str, ...]
    label: SecurityLabel | None = None


class FederationList(Record):
    """Federations from the newest on, as many as fit into a message; `more` says where the next list begins, empty when this is all."""

    federations: tuple[FederationSummary, ...]
    more: str = ""


class ListFederations(Query):
    """The federations that the asker may see, in `state`, those that the asker made (`mine`), those that `hospital` was invited to;
    from the one on that a list before ended with (`after`: its `more`)."""

    TYPE: ClassVar[str] = "federation.list.v1"
    ACTION: ClassVar[str | None] = "federation.read"
    Reply: ClassVar[type[Record]] = FederationList
    LISTS: ClassVar[str] = "federation"

    state: FederationState | None = None
    mine: bool = False
    hospital: str | None = Field(default=None, max_length=63)
    after: str = Field(default="", max_length=120)
