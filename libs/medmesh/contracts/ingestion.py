"""Data sets that were taken in centrally, and descriptors of data that stays in the hospitals."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from medmesh.contracts.labels import SecurityLabel
from medmesh.contracts.message import Command, Event, Identifier, Names, ObjectRef, Query, Record, Sha256

SMALL_CELL = 5
"""A count below this is published as None: few enough people that a count could point at one of them."""


Share = Annotated[int, Field(ge=0, le=100)]


class Descriptor(Record):
    """What a hospital tells of a data set: counts, never samples. They are rounded; one of fewer than `SMALL_CELL` patients is None."""

    dataset: Identifier
    version: int
    modality: str
    samples: int | None = None
    patients: int | None = None
    labels: dict[str, int | None]
    diseases: dict[str, int] = Field(default_factory=dict, max_length=2000)
    """Patients by category of diagnosis, `ICD10//J18`, rounded: those of at least `SMALL_CELL` alone, since a category by itself says that
    somebody is there."""
    image_size: tuple[int, int] | None = None
    deidentification: str = "PS3.15 Basic Profile"


class IngestArchive(Command):
    """Take an uploaded archive (zip or tar of DICOM, images, tables, or a published set) into a new version. Result:
    `{"dataset","version"}`.

    The data set gets at least the label of whoever makes it; `label` may raise it. With `volumes` the DICOM objects of a series are one
    item, a volume, as is an object of several frames: the same archive without is another version.
    """

    TYPE: ClassVar[str] = "ingestion.ingest-archive.v1"
    ACTION: ClassVar[str] = "dataset.create"
    OBJECTS: ClassVar[tuple[Names, ...]] = (Names("dataset", "{dataset}", new=True),)
    MAKES: ClassVar[str] = "dataset"

    dataset: Identifier
    archive: ObjectRef
    label: SecurityLabel | None = None
    volumes: bool = False


class SplitVersion(Command):
    """A version of the same items and rows with splits in which no patient, group or picture stands on two sides. Result:
    `{"dataset","version"}`.

    `ratios` are shares of train, val and test. Published splits are kept, unless `anew`. The same split of the same version again is the
    version it became.
    """

    TYPE: ClassVar[str] = "ingestion.split-version.v1"
    ACTION: ClassVar[str] = "dataset.create"
    OBJECTS: ClassVar[tuple[Names, ...]] = (Names("dataset", "{dataset}"),)

    dataset: Identifier
    version: int = Field(ge=1, lt=2**31)
    ratios: tuple[Share, Share, Share] = (8, 1, 1)
    seed: int = Field(default=0, ge=0, lt=2**31)
    anew: bool = False


class ImportTimeline(Command):
    """Take an uploaded archive of FHIR R4, HL7 v2, OMOP, MIMIC-III or DICOM into the timelines of a data set: events under pseudonyms, in
    order of time, its maker's alone. Told again they are known; a correction is a further revision. Result: counts, without places.

    `reader` names the format, found by content otherwise; in `vouched.txt` of the archive stand words that name nobody.
    """

    TYPE: ClassVar[str] = "ingestion.import-timeline.v1"
    ACTION: ClassVar[str] = "timeline.import"
    OBJECTS: ClassVar[tuple[Names, ...]] = (Names("dataset", "{dataset}", new=True),)
    MAKES: ClassVar[str] = "dataset"

    dataset: Identifier
    archive: ObjectRef
    reader: str | None = Field(default=None, max_length=40)
    label: SecurityLabel | None = None


class DefineCohort(Command):
    """Save a cohort of a data set's timelines: JSON as in docs/tutorial/timeline.md. A definition that changed is a new version; versions
    never change. Result: `{"cohort","version","digest"}`."""

    TYPE: ClassVar[str] = "ingestion.define-cohort.v1"
    ACTION: ClassVar[str] = "timeline.define"
    OBJECTS: ClassVar[tuple[Names, ...]] = (Names("dataset", "{dataset}"),)

    dataset: Identifier
    definition: str = Field(min_length=2, max_length=32_768)


class ExportTimeline(Command):
    """The timelines as they stand, or those of a cohort with its labels, become a version of the data set: MEDS 0.4 with Croissant
    metadata. Result: `{"dataset","version"}`.

    The same timelines again are the same version. Values as text go with `texts` alone.
    """

    TYPE: ClassVar[str] = "ingestion.export-timeline.v1"
    ACTION: ClassVar[str] = "timeline.export"
    OBJECTS: ClassVar[tuple[Names, ...]] = (Names("dataset", "{dataset}"),)

    dataset: Identifier
    cohort: str | None = Field(default=None, max_length=63)
    texts: bool = False


class PublishDescriptor(Command):
    """A hospital publishes what it holds: to the whole platform, or with `within` to its own people alone."""

    TYPE: ClassVar[str] = "ingestion.publish-descriptor.v1"
    ACTION: ClassVar[str] = "catalogue.publish"
    MAKES: ClassVar[str] = "descriptor"

    descriptor: Descriptor
    within: bool = False


class DatasetVersionCreated(Event):
    TYPE: ClassVar[str] = "ingestion.dataset.version-created.v1"

    dataset: Identifier
    version: int
    content: ObjectRef
    samples: int
    rejected: int
    labels: dict[str, int]
    rows: int = 0
    """Questions, texts and rows of tables."""


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
    label: SecurityLabel | None = None


class Catalogue(Record):
    descriptors: tuple[DescriptorEntry, ...]


class ListDescriptors(Query):
    """The last 500 that the asker may see, newest first, and of them what is asked for: of a `hospital`; of a `modality`; of a data set
    whose name has `name` in it; with a label (`labelled`); with patients of a `disease` (`J18`, and all that begins so); with at least so
    many `patients` or `samples`, where what is hidden counts as none. Upper and lower case are one."""

    TYPE: ClassVar[str] = "ingestion.list-descriptors.v1"
    ACTION: ClassVar[str | None] = "catalogue.read"
    Reply: ClassVar[type[Record]] = Catalogue
    LISTS: ClassVar[str] = "descriptor"

    hospital: str | None = Field(default=None, max_length=63)
    modality: str | None = Field(default=None, max_length=80)
    name: str | None = Field(default=None, max_length=63)
    labelled: str | None = Field(default=None, max_length=200)
    disease: str | None = Field(default=None, max_length=20)
    patients: int | None = Field(default=None, ge=0, lt=2**31)
    samples: int | None = Field(default=None, ge=0, lt=2**31)


class TableView(Record):
    """Questions, texts or rows that a version holds; what its columns are stands in the version's content. `splits` is rows by split, ""
    for none; `groups` counts patients or groups."""

    name: str
    kind: str
    rows: int
    groups: int
    splits: dict[str, int]


class DatasetView(Record):
    dataset: str
    version: int
    content: ObjectRef
    samples: int
    labels: dict[str, int]
    rejected: dict[str, int] = Field(default_factory=dict)
    tables: tuple[TableView, ...] = ()
    label: SecurityLabel | None = None
    maker: str = ""
    released: bool = False
    release_digest: Sha256 | None = None
    """What an approval of `dataset.release` on `dataset/version` is bound to."""


class GetDataset(Query):
    """One version, or the newest when `version` is 0; one that was not released is its maker's alone."""

    TYPE: ClassVar[str] = "ingestion.get-dataset.v1"
    ACTION: ClassVar[str | None] = "dataset.read"
    Reply: ClassVar[type[Record]] = DatasetView
    OBJECTS: ClassVar[tuple[Names, ...]] = (Names("dataset", "{dataset}"),)

    dataset: Identifier
    version: int = 0


class CohortView(Record):
    """How many are in a cohort, and why others that had the index event are not; None is fewer than `SMALL_CELL`, or would tell it."""

    cohort: str
    version: int
    definition: Sha256
    patients: int | None = None
    counts: dict[str, int | None]


class AskCohort(Query):
    """A saved cohort of a data set's timelines, the newest when `version` is 0; the timelines' maker alone may ask."""

    TYPE: ClassVar[str] = "ingestion.ask-cohort.v1"
    ACTION: ClassVar[str | None] = "timeline.ask"
    Reply: ClassVar[type[Record]] = CohortView
    OBJECTS: ClassVar[tuple[Names, ...]] = (Names("dataset", "{dataset}"),)

    dataset: Identifier
    cohort: str = Field(max_length=63)
    version: int = Field(default=0, ge=0, lt=2**31)
