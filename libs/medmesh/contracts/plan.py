"""The plan of a federation: everything a hospital signs before anything runs.

Its canonical JSON (sorted keys, no floats) is hashed; the hash is what hospitals sign, approvers approve, rounds chain
from, and the audit log witnesses. Numbers that are not whole are decimal strings, so that every party hashes the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from decimal import Decimal, InvalidOperation
from typing import Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from medmesh.canonical import canonical as canonical_json
from medmesh.contracts.data import DataSchema
from medmesh.contracts.message import Identifier, Instant, Record, Sha256
from medmesh.contracts.privacy import Privacy
from medmesh.contracts.refusals import decimal, refusal
from medmesh.contracts.screening import Screening


class TensorSignature(Record):
    """One tensor that may leave a hospital: anything that is not on this list stays."""

    name: str
    shape: tuple[int, ...]
    dtype: Literal["F64", "F32", "F16", "BF16", "I64", "I32", "U8"]


class SecureAggregation(Record):
    """The platform learns sums over at least `threshold` of the plan's participants and no single update; numbers travel in fixed point
    with `bits` fractional bits. The contributors are the plan's participants, by their own keys in the roster."""

    threshold: int = Field(ge=3)
    bits: int = Field(default=24, ge=8, le=40)
    ring: Literal[32, 64] = 64
    """Numbers are added modulo 2^ring. With 32 a vector has half the bytes, and a hospital whose samples x value x 2^bits x participants
    reaches 2^31 anywhere is refused by its own node, as it is at 2^63 with 64: the sum is exact or there is none."""


class EarlyStopping(Record):
    """End training when the federation's model has not got better by more than `min_delta` for `patience` evaluations, and keep the best.

    `metric` is computed from the counts of all hospitals together. An evaluation travels with the round after it, which is therefore
    trained before it is known (Prechelt 1998, "Early stopping - but when?", the criterion UP).
    """

    metric: Literal["balanced_accuracy", "accuracy"] = "balanced_accuracy"
    patience: int = Field(default=3, ge=1, le=1000)
    min_delta: str = "0"

    @field_validator("min_delta")
    @classmethod
    def _delta(cls, value: str) -> str:
        return decimal("stop.min_delta", value, "0 <= x < 1")


class SemiAsynchrony(Record):
    """Rounds at the pace of the fast: one closes once `quorum` updates are there, and hospitals that still train go on with what they have.
    Their update counts in one of the `staleness` rounds after its own, with a weight of (1 + rounds late) ^ -`decay`.

    A buffer of updates as in Nguyen et al. 2022 (FedBuff, arXiv:2106.06639), weighted as in Xie et al. 2019 (FedAsync, arXiv:1903.03934).
    """

    quorum: int = Field(ge=1)
    staleness: int = Field(default=3, ge=1, le=100)
    decay: str = "0.5"

    @field_validator("decay")
    @classmethod
    def _decay(cls, value: str) -> str:
        return decimal("pace.decay", value, "0 <= x <= 10")


RangeName = Literal["learning_rate", "local_steps", "batch_size"]


class Range(Record):
    """From `low` to `high`, both allowed: decimal strings."""

    low: str
    high: str

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        for value in (self.low, self.high):
            decimal("ranges", value, "0 < x <= 1000000")
        if Decimal(self.low) > Decimal(self.high):
            raise refusal("plan.range", low=self.low, high=self.high)
        return self

    def holds(self, value: str) -> bool:
        """Whether a value, as a decimal string, lies in it; False for what is no number."""
        try:
            return Decimal(self.low) <= Decimal(value) <= Decimal(self.high)
        except InvalidOperation:
            return False


class Measured(Record):
    """What the rehearsal of a package found, told to the hospitals that are asked to run it: `report` is the report's SHA-256 (an object,
    `medmesh.contracts.training.RehearsalReport`); most memory in MiB (2^20 bytes) and time for a step, on the platform's machine."""

    report: Sha256
    memory_mib: int = Field(ge=0, lt=2**31)
    step_microseconds: int = Field(ge=0, lt=2**53)


LEAST_PARTICIPANTS = 3
"""How many answer a round, at least, where whoever makes a plan says nothing else, and what a hospital's policy begins with: of two, each
knows the other's part of a mean."""


class Plan(Record):
    """See the module. Times are UTC; durations are whole seconds."""

    name: Identifier
    purpose: str = Field(min_length=4, max_length=500)
    initiator: str
    package: Sha256
    """SHA-256 of the training package's canonical manifest: the code that hospitals approve."""
    initial: Sha256
    """SHA-256 of the weights the first round begins with."""
    framework: str
    data: DataSchema
    signature: tuple[TensorSignature, ...] = Field(min_length=1)
    algorithm: Identifier = "fedavg"
    parameters: dict[str, str] = Field(default_factory=dict, max_length=20)
    """The algorithm's parameters as decimal strings; what is not given has the algorithm's default."""
    local: tuple[str, ...] = ()
    """Tensors of `signature` that never leave a hospital: each has its own, and the global model keeps the first ones."""
    rounds: int = Field(ge=1, le=10_000)
    local_steps: int = Field(ge=1, le=1_000_000)
    batch_size: int = Field(ge=1, le=65_536)
    learning_rate: str
    seed: int = Field(ge=0, lt=2**53)
    participants: tuple[Identifier, ...] = Field(min_length=1)
    min_participants: int = Field(ge=1)
    accept_by: Instant
    start_at: Instant
    """Not before this, and not before every hospital has answered or `accept_by` has passed."""
    round_deadline_seconds: int = Field(ge=1, le=30 * 86_400)
    lease_seconds: int = Field(default=15, ge=1, le=86_400)
    max_drops: int = Field(default=0, ge=0, le=1000)
    """A hospital that lost its lease or failed so often is not asked again; 0: it always may return at the next round."""
    secure: SecureAggregation | None = None
    baseline: bool = False
    """Each hospital also trains alone for the same number of steps, and all models are evaluated at all hospitals."""
    codec: Literal["none", "fp16", "bf16", "int8", "topk"] = "none"
    """How updates travel: whole, or as their difference from the round's model in fewer bytes (`medmesh.federated.codecs`)."""
    codec_share: str = "0.01"
    """Of `topk`: the share of numbers that is sent."""
    evaluate_every: int = Field(default=0, ge=0, le=10_000)
    """Hospitals evaluate the model that a round begins with on samples that are never trained on, in round 1 and every so many rounds
    after it, and the final model at the end; 0: never while it trains."""
    stop: EarlyStopping | None = None
    pace: SemiAsynchrony | None = None
    """Whether rounds go on without the slow; by default every round waits for everybody in it."""
    small_cell: int = Field(default=0, ge=0, le=1000)
    """Counts of an evaluation are of patients and leave as multiples of this, none below it (`medmesh.federated.cells`); 0: of samples,
    exactly as they are."""
    privacy: Privacy | None = None
    """Differential privacy, with its budget. Then every hospital counts alike, and neither samples nor a loss are told."""
    screening: Screening | None = None
    """What is done about updates that look wrong; by default nobody looks."""
    rehearsal: Measured | None = None
    """The package was run on invented data before anybody was asked."""
    ranges: dict[RangeName, Range] = Field(default_factory=dict)
    """Within which the initiator may change these between rounds, without asking again: what hospitals sign includes how far."""

    @field_validator("learning_rate")
    @classmethod
    def _decimal(cls, value: str) -> str:
        return decimal("learning_rate", value, "0 < x < 1000")

    @field_validator("codec_share")
    @classmethod
    def _share(cls, value: str) -> str:
        return decimal("codec_share", value, "0 < x <= 1")

    @model_validator(mode="after")
    def _consistent(self) -> Plan:
        count, names = len(self.participants), [tensor.name for tensor in self.signature]
        for field, listed in (("participants", self.participants), ("signature", names), ("local", self.local)):
            if len(set(listed)) != len(listed):
                raise refusal("plan.twice", field=field, name=next(one for one in listed if listed.count(one) > 1))
        if self.min_participants > count:
            raise refusal("plan.min_participants", least=self.min_participants, count=count)
        for field in ("accept_by", "start_at"):
            if getattr(self, field).tzinfo is None:
                raise refusal("plan.time_zone", field=field)
        if self.secure is not None:
            _check_secure(self, self.secure)
        if self.pace is not None:
            _check_pace(self, self.pace)
        if self.stop is not None and not self.evaluate_every:
            raise refusal("plan.stop_unevaluated")
        if self.privacy is not None:
            _check_privacy(self, self.privacy)
        if self.ranges:
            _check_ranges(self)
        if self.screening is not None:
            _check_screening(self)
        if unknown := sorted(set(self.local) - set(names)):
            raise refusal("plan.local_unknown", tensor=unknown[0])
        if not set(names) - set(self.local):
            raise refusal("plan.local_all")
        return self


LATER = (
    *("codec", "codec_share", "parameters", "local", "privacy", "secure", "evaluate_every", "stop", "small_cell", "pace"),
    *("max_drops", "screening", "rehearsal", "ranges"),
)
"""Fields the first release did not have: left out of the hash while they say "as before", so that its nodes find the same one."""


def _check_ranges(plan: Plan) -> None:
    """Raise `refusal` for a range that leaves the plan's own value out, or that an account was not made for."""
    if plan.privacy is not None:
        raise refusal("plan.range_privacy")
    for name, wanted in plan.ranges.items():
        if not wanted.holds(given := str(getattr(plan, name))):
            raise refusal("plan.range_outside", field=name, given=given, low=wanted.low, high=wanted.high)


def _check_secure(plan: Plan, secure: SecureAggregation) -> None:
    """Raise `refusal` for what would show more than sums."""
    count = len(plan.participants)
    if not 3 <= count <= 64:
        raise refusal("plan.secure_count", count=count)
    if not 2 * count < 3 * secure.threshold <= 3 * count:
        raise refusal("plan.secure_threshold", threshold=secure.threshold, least=2 * count // 3 + 1, count=count)
    if plan.min_participants < secure.threshold:
        raise refusal("plan.secure_answers", least=plan.min_participants, threshold=secure.threshold)
    if plan.codec != "none":
        raise refusal("plan.secure_codec", codec=plan.codec)
    if plan.baseline:
        raise refusal("plan.secure_baseline")


def _check_pace(plan: Plan, pace: SemiAsynchrony) -> None:
    """Raise `refusal` for what cannot go on without the slow."""
    if not plan.min_participants <= pace.quorum <= len(plan.participants):
        raise refusal("plan.pace_quorum", quorum=pace.quorum, least=plan.min_participants, count=len(plan.participants))
    if plan.secure is not None:
        raise refusal("plan.pace_secure")
    if plan.local:
        raise refusal("plan.pace_local")
    if plan.stop is not None:
        raise refusal("plan.pace_stop")
    if plan.privacy is not None:
        raise refusal("plan.pace_privacy")


def _check_privacy(plan: Plan, privacy: Privacy) -> None:
    """Raise `refusal` for what would leave beside what is noised."""
    if plan.baseline:
        raise refusal("plan.privacy_baseline")
    if plan.evaluate_every:
        raise refusal("plan.privacy_evaluated")
    if privacy.unit == "hospital" and plan.codec != "none":
        raise refusal("plan.privacy_codec", codec=plan.codec)


def _check_screening(plan: Plan) -> None:
    """Raise `refusal` where nobody may look at a single update."""
    if plan.secure is not None:
        raise refusal("plan.screening_secure")
    if plan.privacy is not None and plan.privacy.unit == "hospital":
        raise refusal("plan.screening_privacy")


def changed(plan: Plan, values: dict[str, str]) -> Plan:
    """The plan as it is for a round that changes these fields. Raises `ValueError` with the name of one that it does not let be changed
    so far."""
    for name, value in values.items():
        wanted = next((wanted for allowed, wanted in plan.ranges.items() if allowed == name), None)
        if wanted is None or not wanted.holds(value) or (name != "learning_rate" and Decimal(value) % 1):
            raise ValueError(name)
    numbers = {name: value if name == "learning_rate" else int(Decimal(value)) for name, value in values.items()}
    try:
        return Plan.model_validate_json(json.dumps(plan.model_dump(mode="json") | numbers))
    except ValidationError as error:
        raise ValueError(str(error.errors()[0]["loc"][0])) from None


def canonical(plan: Plan) -> bytes:
    """The bytes that are hashed: JSON, keys sorted, no white space, no floats."""
    document = plan.model_dump(mode="json")
    for name in LATER:
        if getattr(plan, name) == Plan.model_fields[name].get_default(call_default_factory=True):
            del document[name]
    if plan.data.kind == "images":
        del document["data"]["kind"]  # the first release knew nothing else
    if plan.data.kind != "table" and plan.data.pipeline is None:
        del document["data"]["pipeline"]
    if plan.secure is not None and plan.secure.ring == 64:
        del document["secure"]["ring"]
    return canonical_json(document)


def plan_hash(plan: Plan) -> str:
    """SHA-256 of `canonical(plan)`, hexadecimal."""
    return hashlib.sha256(canonical(plan)).hexdigest()
