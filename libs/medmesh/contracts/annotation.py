"""Annotation projects."""

from __future__ import annotations

from typing import ClassVar

from medmesh.contracts.labels import SecurityLabel
from medmesh.contracts.message import Command, Event, Identifier, Names, ObjectRef, Query, Record, Sha256


class CreateProject(Command):
    """A classification project over a data set version; `classes` is its label schema, fixed for good. Result: `{"project","items"}`."""

    TYPE: ClassVar[str] = "annotation.create-project.v1"
    ACTION: ClassVar[str] = "annotation.create"
    OBJECTS: ClassVar[tuple[Names, ...]] = (
        Names("project", "{project}", new=True),
        Names("dataset", "{dataset}", "dataset.read"),
        Names("content", "{content.sha256}", "dataset.read"),
    )
    MAKES: ClassVar[str] = "project"

    project: Identifier
    dataset: Identifier
    version: int
    content: ObjectRef
    purpose: str
    classes: tuple[str, ...]


class SubmitLabel(Command):
    TYPE: ClassVar[str] = "annotation.submit-label.v1"
    ACTION: ClassVar[str] = "annotation.label"
    OBJECTS: ClassVar[tuple[Names, ...]] = (Names("project", "{project}"),)

    project: Identifier
    item: str
    label: str


class ReviewLabel(Command):
    """Accept or send back; the reviewer is never the reader of the item."""

    TYPE: ClassVar[str] = "annotation.review-label.v1"
    ACTION: ClassVar[str] = "annotation.review"
    OBJECTS: ClassVar[tuple[Names, ...]] = (Names("project", "{project}"), Names("item", "{project}/{item}"))

    project: Identifier
    item: str
    accept: bool
    comment: str = ""


class ExportLabels(Command):
    """Freeze the accepted labels as a version, and ask for leave to take it out. Result: `{"target", "digest", "version", "accepted",
    "state"}`; once a second person approved `annotation.export` on this target and digest, `GetLabelExport` tells where the labels are."""

    TYPE: ClassVar[str] = "annotation.export-labels.v1"
    ACTION: ClassVar[str] = "annotation.export"
    OBJECTS: ClassVar[tuple[Names, ...]] = (Names("project", "{project}"),)

    project: Identifier


class LabelExport(Record):
    """`labels` is there once the export was approved."""

    project: str
    version: int
    accepted: int
    digest: Sha256
    state: str
    labels: ObjectRef | None = None


class GetLabelExport(Query):
    """How an export stands, for who asked for it."""

    TYPE: ClassVar[str] = "annotation.get-label-export.v1"
    ACTION: ClassVar[str | None] = "annotation.label"
    Reply: ClassVar[type[Record]] = LabelExport
    OBJECTS: ClassVar[tuple[Names, ...]] = (Names("project", "{project}"),)

    project: Identifier
    version: int


class ProjectCreated(Event):
    TYPE: ClassVar[str] = "annotation.project.created.v1"

    project: Identifier
    dataset: Identifier
    version: int
    items: int


class LabelsExported(Event):
    """A second person let these labels out."""

    TYPE: ClassVar[str] = "annotation.labels.exported.v1"

    project: Identifier
    version: int
    labels: ObjectRef
    accepted: int


class Item(Record):
    """`item` is None when nothing is left to label."""

    item: str | None
    state: str | None = None
    object: ObjectRef | None = None
    """What to open."""
    comment: str = ""
    """Why a reviewer sent it back."""


class NextItem(Query):
    """The next item for the person who asks; it stays theirs until it is labelled or their claim expires."""

    TYPE: ClassVar[str] = "annotation.next-item.v1"
    ACTION: ClassVar[str | None] = "annotation.label"
    Reply: ClassVar[type[Record]] = Item
    OBJECTS: ClassVar[tuple[Names, ...]] = (Names("project", "{project}"),)

    project: Identifier


class ProjectView(Record):
    project: str
    dataset: str
    version: int
    classes: tuple[str, ...]
    states: dict[str, int]
    label: SecurityLabel | None = None


class GetProject(Query):
    TYPE: ClassVar[str] = "annotation.get-project.v1"
    ACTION: ClassVar[str | None] = "annotation.label"
    Reply: ClassVar[type[Record]] = ProjectView
    OBJECTS: ClassVar[tuple[Names, ...]] = (Names("project", "{project}"),)

    project: Identifier
