"""Data sets that were taken in centrally, and descriptors of data that stays in the hospitals."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from medmesh.contracts.message import Command, Event, Identifier, ObjectRef, Query, Record, Sha256

SMALL_CELL = 5
"""A count below this is published as None: few enough people that a count could point at one of them."""


class Descriptor(Record):
    """What a hospital tells of a data set: counts, never samples. A count under `SMALL_CELL` is None."""

    dataset: Identifier
    version: int
    modality: str
    samples: int | None = None
    patients: int | None = None
    labels: dict[str, int | None]
    image_size: tuple[int, int] | None = None
    deidentification: str = "PS3.15 Basic Profile"


class IngestArchive(Command):
    """Take an uploaded archive (zip or tar of DICOM or images, labels.csv) into a new version. Result: `{"dataset","version"}`."""

    TYPE: ClassVar[str] = "ingestion.ingest-archive.v1"
    ACTION: ClassVar[str] = "dataset.create"

    dataset: Identifier
    archive: ObjectRef


class PublishDescriptor(Command):
    """A hospital publishes what it holds."""

    TYPE: ClassVar[str] = "ingestion.publish-descriptor.v1"
    ACTION: ClassVar[str] = "catalogue.publish"

    descriptor: Descriptor


class DatasetVersionCreated(Event):
    TYPE: ClassVar[str] = "ingestion.dataset.version-created.v1"

    dataset: Identifier
    version: int
    content: ObjectRef
    samples: int
    rejected: int
    labels: dict[str, int]


class DatasetReleased(Event):
    """A version may be used by others than its maker from now on."""

    TYPE: ClassVar[str] = "ingestion.dataset.released.v1"

    dataset: Identifier
    version: int
    content: ObjectRef
    approval: str


class DescriptorPublished(Event):
    TYPE: ClassVar[str] = "ingestion.descriptor.published.v1"

    hospital: Identifier
    descriptor: Descriptor


class DescriptorEntry(Record):
    hospital: str
    descriptor: Descriptor


class Catalogue(Record):
    descriptors: tuple[DescriptorEntry, ...]


class ListDescriptors(Query):
    TYPE: ClassVar[str] = "ingestion.list-descriptors.v1"
    ACTION: ClassVar[str | None] = "catalogue.read"
    Reply: ClassVar[type[Record]] = Catalogue


class DatasetView(Record):
    dataset: str
    version: int
    content: ObjectRef
    samples: int
    labels: dict[str, int]
    rejected: dict[str, int] = Field(default_factory=dict)
    maker: str = ""
    released: bool = False
    release_digest: Sha256 | None = None
    """What an approval of `dataset.release` on `dataset/version` is bound to."""


class GetDataset(Query):
    """One version, or the newest when `version` is 0; one that was not released is its maker's alone."""

    TYPE: ClassVar[str] = "ingestion.get-dataset.v1"
    ACTION: ClassVar[str | None] = "dataset.read"
    Reply: ClassVar[type[Record]] = DatasetView

    dataset: Identifier
    version: int = 0
