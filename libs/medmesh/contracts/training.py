"""Training jobs on data that was taken in centrally."""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar, Literal

from pydantic import Field

from medmesh.contracts.labels import SecurityLabel
from medmesh.contracts.message import Command, Event, Identifier, Names, ObjectRef, Query, Record, Sha256
from medmesh.contracts.privacy import Privacy


class SubmitJob(Command):
    """Train a package on a data set version. Result: `{"job": id}` once it is queued."""

    TYPE: ClassVar[str] = "training.submit-job.v1"
    ACTION: ClassVar[str] = "training.submit"
    OBJECTS: ClassVar[tuple[Names, ...]] = (
        Names("dataset", "{dataset}", "dataset.read"),
        Names("content", "{content.sha256}", "dataset.read"),
    )
    MAKES: ClassVar[str] = "job"

    package: ObjectRef
    dataset: Identifier
    version: int
    content: ObjectRef
    steps: int = Field(gt=0)
    seed: int = 0


class CancelJob(Command):
    TYPE: ClassVar[str] = "training.cancel-job.v1"
    ACTION: ClassVar[str] = "training.submit"
    OBJECTS: ClassVar[tuple[Names, ...]] = (Names("job", "{job}"),)

    job: str


class JobStarted(Event):
    TYPE: ClassVar[str] = "training.job.started.v1"

    job: str
    attempt: int
    resumed_at: int


class JobProgressed(Event):
    """At every checkpoint."""

    TYPE: ClassVar[str] = "training.job.progressed.v1"

    job: str
    step: int
    steps: int
    loss: float


class JobFinished(Event):
    TYPE: ClassVar[str] = "training.job.finished.v1"

    job: str
    weights: ObjectRef
    package: ObjectRef
    metrics: dict[str, float]


class JobFailed(Event):
    TYPE: ClassVar[str] = "training.job.failed.v1"

    job: str
    code: str


class JobView(Record):
    job: str
    state: str
    attempt: int
    step: int
    steps: int
    weights: ObjectRef | None
    metrics: dict[str, float]
    failure: str | None
    pipeline: Sha256 | None = None
    """The hash of the pipeline that the items go through, as it was when the job was submitted."""
    submitted: datetime
    label: SecurityLabel | None = None


class GetJob(Query):
    TYPE: ClassVar[str] = "training.get-job.v1"
    ACTION: ClassVar[str | None] = "training.read"
    Reply: ClassVar[type[Record]] = JobView
    OBJECTS: ClassVar[tuple[Names, ...]] = (Names("job", "{job}"),)

    job: str


StageName = Literal["read", "open", "initial", "train", "aggregate", "next", "evaluate", "personal"]
"""What a rehearsal does, in this order: read the code for what it can do, open the package in its sandbox, make first weights, train at two
pretended hospitals, combine their updates, train again from that, evaluate, and make a hospital's own model where the algorithm does."""


class Rehearsing(Record):
    """How a package is rehearsed: the parts of a plan that its code can fail at."""

    algorithm: Identifier = "fedavg"
    parameters: dict[str, str] = Field(default_factory=dict, max_length=20)
    local: tuple[str, ...] = Field(default=(), max_length=1000)
    privacy: Privacy | None = None
    codec: Literal["none", "fp16", "bf16", "int8", "topk"] = "none"
    codec_share: str = "0.01"
    secure_bits: int | None = Field(default=None, ge=8, le=40)
    """Of a secure sum's fixed point; its threshold is that of the plan and nothing a package can fail at."""
    batch_size: int = Field(default=32, ge=1, le=65_536)
    learning_rate: str = "0.05"
    steps: int = Field(default=3, ge=1, le=100)
    """Of each pretended hospital in each of two rounds."""
    seed: int = Field(default=1, ge=0, lt=2**53)


class Stage(Record):
    """One part of a rehearsal. `problem` is the document of what went wrong there (`medmesh.errors.Problem`); nothing comes after it."""

    name: StageName
    milliseconds: int
    problem: dict[str, Any] | None = None


class RehearsalReport(Record):
    """What came of running a package on invented data: the bytes of its canonical JSON are an object, and bound to the package's hash."""

    package: Sha256
    framework: str
    how: Rehearsing
    samples: int
    """Invented ones of each pretended hospital."""
    stages: tuple[Stage, ...]
    memory_mib: int
    """Most that the worker's processes had in memory, together."""
    step_microseconds: int
    """Of one training step in the second round; 0 where it did not come to that."""
    update_bytes: int
    """Of one trained model as it lies."""
    made: datetime

    @property
    def passed(self) -> bool:
        """Whether nothing went wrong."""
        return all(stage.problem is None for stage in self.stages)


class RehearsePackage(Command):
    """Run a package on invented data of its data schema, in the sandbox, as two hospitals would: before any is asked. Result:
    `{"report": the object, "passed", "memory_mib", "step_microseconds"}`; that the package failed is a result, too."""

    TYPE: ClassVar[str] = "training.rehearse-package.v1"
    ACTION: ClassVar[str] = "training.rehearse"

    package: ObjectRef
    how: Rehearsing = Rehearsing()


class RehearsalView(Record):
    """`state` is `none`, `running` (then `stage` says where it is), `passed` or `failed`."""

    state: str
    stage: str = ""
    report: ObjectRef | None = None
    found: RehearsalReport | None = None


class GetRehearsal(Query):
    """The newest rehearsal of a package, or the one with this report."""

    TYPE: ClassVar[str] = "training.get-rehearsal.v1"
    ACTION: ClassVar[str | None] = "rehearsal.read"
    Reply: ClassVar[type[Record]] = RehearsalView

    package: Sha256
    report: Sha256 | None = None
