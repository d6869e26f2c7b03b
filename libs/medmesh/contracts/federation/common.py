"""What the messages of federations share."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from medmesh.contracts.message import ObjectRef, Record, Sha256


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


FederationState = Literal["inviting", "ready", "queued", "running", "paused", "completed", "failed", "cancelled"]

Work = Literal["fetch", "evaluate", "train", "store", "send"]
"""What a hospital does in a round, in this order: get the model, evaluate it, train, make the result durable, and send it."""


GoneReason = Literal["noise", "left", "unable", "changed"]
"""Why a lost model can never be made again as it was."""

Reviews = Annotated[tuple[Annotated[str, StringConstraints(max_length=2000)], ...], Field(max_length=8)]


class Confusion(Record):
    """How one model did on one hospital's held-out samples: `counts[true class][predicted class]`."""

    model: Sha256
    counts: tuple[tuple[int, ...], ...]


class Undoing(Record):
    """That a federation goes on from the model of an earlier training round `round`, or of none (0: the first weights). `approval` is
    the token over what approvers signed, which every node verifies."""

    round: int
    approval: str


class Commitment(Record):
    """A link of the chain of what rounds left (`medmesh.federated.chain.after`): round `round` left this model and, where the algorithm
    has one, this state; or, without a `kind`, the federation goes on from the model that round `round` left (0: from the first weights),
    by the approval of this id."""

    round: int
    kind: RoundKind | None = None
    model: Sha256
    state: Sha256 | None = None
    approval: str = ""


class CandidateModel(Record):
    """A model to evaluate: the global one, or one hospital's baseline."""

    name: str
    weights: ObjectRef
