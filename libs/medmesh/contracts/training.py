"""Training jobs on data that was taken in centrally."""

from __future__ import annotations

from datetime import datetime
from typing import ClassVar

from pydantic import Field

from medmesh.contracts.labels import SecurityLabel
from medmesh.contracts.message import Command, Event, Identifier, Names, ObjectRef, Query, Record


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
    submitted: datetime
    label: SecurityLabel | None = None


class GetJob(Query):
    TYPE: ClassVar[str] = "training.get-job.v1"
    ACTION: ClassVar[str | None] = "training.read"
    Reply: ClassVar[type[Record]] = JobView
    OBJECTS: ClassVar[tuple[Names, ...]] = (Names("job", "{job}"),)

    job: str
