"""Rules of ingestion, as functions of values: the label file, the content of a version, what a descriptor may tell."""

from __future__ import annotations

import csv
import io
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Any

from medmesh.canonical import canonical, digest
from medmesh.contracts.ingestion import SMALL_CELL, Descriptor
from medmesh.contracts.message import ObjectRef
from medmesh.errors import Problem

LABEL_FILE = "labels.csv"
MAX_LABEL = 64
MAX_CLASSES = 200
"""The counts by label travel in one message."""


@dataclass(frozen=True, slots=True)
class Label:
    """What a row says of a file; `patient` is empty where it does not say whose it is."""

    label: str
    row: int
    patient: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of an item beside its label: of a published set from its layout, of a volume or signal by its format. `group` is the
    pseudonym of what a split must not tear apart."""

    kind: str
    split: str | None
    group: str | None
    labels: Mapping[str, str | list[str]]


@dataclass(frozen=True, slots=True)
class FilePart:
    """A file of an item that has several."""

    role: str
    part: str
    object: ObjectRef


@dataclass(frozen=True, slots=True)
class Sample:
    """One item of a version; `files` are all of its files where there are several, `object` is the image."""

    item: str
    object: ObjectRef
    label: str | None
    facts: Facts | None = None
    files: tuple[FilePart, ...] = ()

    @property
    def objects(self) -> Iterator[str]:
        """The SHA-256 of everything it needs."""
        yield self.object.sha256
        yield from (file.object.sha256 for file in self.files)

    @property
    def document(self) -> dict[str, Any]:
        """As it stands in the content of a version."""
        facts = {} if self.facts is None else asdict(self.facts)
        return {"item": self.item, "object": self.object.model_dump(), "label": self.label, **facts, **self._files}

    @property
    def _files(self) -> dict[str, Any]:
        made = [{"role": file.role, "part": file.part, "object": file.object.model_dump()} for file in self.files]
        return {"files": made} if made else {}


@dataclass(frozen=True, slots=True)
class TablePart:
    """So many rows of a table, in Parquet."""

    object: ObjectRef
    rows: int


@dataclass(frozen=True, slots=True)
class Table:
    """Questions, texts or rows of a version. `fields` are name, kind and unit of each column; `label` is the one that a split spreads
    alike; `groups` counts patients or groups, `emptied` cells by column in which rules for free text doubted."""

    name: str
    kind: str
    label: str
    fields: tuple[Mapping[str, str], ...]
    rows: int
    groups: int
    splits: Mapping[str, int]
    emptied: Mapping[str, int]
    parts: tuple[TablePart, ...]

    @property
    def document(self) -> dict[str, Any]:
        """As it stands in the content of a version."""
        parts = [{"object": part.object.model_dump(), "rows": part.rows} for part in self.parts]
        return {**self.told, "label": self.label, "fields": list(self.fields), "emptied": dict(self.emptied), "parts": parts}

    @property
    def told(self) -> dict[str, Any]:
        """What is said of it without opening it."""
        return {"name": self.name, "kind": self.kind, "rows": self.rows, "groups": self.groups, "splits": dict(self.splits)}

    @property
    def is_split(self) -> bool:
        """Whether its rows stand on sides: those of a list of terms do not."""
        return any(one["name"] == "split" for one in self.fields)


def find_label_file(names: Iterable[PurePosixPath]) -> PurePosixPath | None:
    """The label file among the paths of an archive. Raises `Problem` when there are two."""
    found = [name for name in names if name.name.lower() == LABEL_FILE]
    if len(found) > 1:
        raise _wrong(1, f"the archive holds {len(found)} files of this name")
    return found[0] if found else None


def read_labels(data: bytes, folder: PurePosixPath, names: Collection[PurePosixPath]) -> dict[PurePosixPath, Label]:
    """The label of each path in a CSV file (RFC 4180, UTF-8) with the columns `item`, a path from `folder` on, and `label`; and `patient`,
    where there is one, of files that do not say it.

    `names` are the paths there are. Rows count from 1, the header. Raises `Problem` (`ingestion.labels`) for the first row at fault,
    without its values.
    """
    try:
        rows = csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True)
        header = [_clean(cell).lower() for cell in next(rows, [])]
        for column in ("item", "label"):
            if header.count(column) != 1:
                raise _wrong(1, f"there must be one column {column}")
        labels: dict[PurePosixPath, Label] = {}
        for row, cells in _numbered(rows):
            if len(cells) < len(header):
                raise _wrong(row, "a cell is missing")
            item, label = (_clean(cells[header.index(column)]) for column in ("item", "label"))
            name = folder / item
            if not item or name not in names:
                raise _wrong(row, "the archive holds no such item")
            if name in labels:
                raise _wrong(row, f"row {labels[name].row} is about the same item")
            if not 1 <= len(label) <= MAX_LABEL or not label.isprintable():
                raise _wrong(row, f"a label has 1 to {MAX_LABEL} characters that can be seen")
            labels[name] = Label(label, row, _clean(cells[header.index("patient")]) if "patient" in header else "")
    except UnicodeDecodeError:
        raise _wrong(1, "the file is not UTF-8") from None
    except csv.Error:
        raise _wrong(rows.line_num, "it is not CSV") from None
    if len({label.label for label in labels.values()}) > MAX_CLASSES:
        raise _wrong(1, f"there are more than {MAX_CLASSES} different labels")
    return labels


def agreed(first: Label | None, second: Label | None) -> Label | None:
    """The label of one image that stands in the archive twice. Raises `Problem` (`ingestion.labels`) when the two differ."""
    if first and second and first.label != second.label:
        raise _wrong(max(first.row, second.row), f"row {min(first.row, second.row)} gives the same image another label")
    return first or second


def content(
    samples: Iterable[Sample],
    about: Mapping[str, Any] | None = None,
    tables: Iterable[Table] = (),
    files: Mapping[str, ObjectRef] | None = None,
) -> bytes:
    """The manifest of a version: canonical JSON, the items in the order of their ids, so that equal samples are equal bytes.

    `about` says which published set it is, and under what licence. `files` are the whole by path, where it has a form of its own."""
    made: dict[str, Any] = {"items": [sample.document for sample in sorted(samples, key=lambda sample: sample.item)]}
    made |= {} if about is None else {"about": dict(about)}
    rows = [table.document for table in tables]
    made |= {"tables": rows} if rows else {}
    return canonical(
        made | ({"files": [{"path": path, "object": ref.model_dump()} for path, ref in sorted(files.items())]} if files else {})
    )


def samples_of(document: Mapping[str, Any]) -> list[Sample]:
    """The samples of a content document that this service wrote."""
    return [
        Sample(
            one["item"],
            ObjectRef.model_validate(one["object"]),
            one["label"],
            Facts(one["kind"], one["split"], one["group"], one["labels"]) if "kind" in one else None,
            tuple(FilePart(file["role"], file["part"], ObjectRef.model_validate(file["object"])) for file in one.get("files", ())),
        )
        for one in document["items"]
    ]


def tables_of(document: Mapping[str, Any]) -> list[Table]:
    """The tables of a content document that this service wrote."""
    return [
        Table(
            one["name"],
            one["kind"],
            one["label"],
            tuple(one["fields"]),
            one["rows"],
            one["groups"],
            one["splits"],
            one["emptied"],
            tuple(TablePart(ObjectRef.model_validate(part["object"]), part["rows"]) for part in one["parts"]),
        )
        for one in document.get("tables", ())
    ]


def label_counts(samples: Iterable[Sample]) -> dict[str, int]:
    """How many samples have each label; those without one are not counted."""
    return dict(sorted(Counter(sample.label for sample in samples if sample.label is not None).items()))


def release_digest(dataset: str, version: int, content: str) -> str:
    """What the approval of a version's release is bound to: this version, and every sample in it."""
    return digest({"dataset": dataset, "version": version, "content": content})


def reasons(rejected: Mapping[str, int]) -> str:
    """Counts by reason, for people."""
    return ", ".join(f"{reason} {count}" for reason, count in sorted(rejected.items()))


def check_descriptor(descriptor: Descriptor) -> None:
    """Refuse a count of so few that it could point at one of them. Raises `Problem`; the label itself is not repeated."""
    if not 1 <= descriptor.version < 2**31:
        raise Problem("request.invalid", reason="version: it counts from 1")
    counts = [("samples", descriptor.samples), ("patients", descriptor.patients)]
    counts += [(f"disease {place}", count) for place, count in enumerate(descriptor.diseases.values(), start=1)]
    counts += [(f"label {place}", count) for place, count in enumerate(descriptor.labels.values(), start=1)]
    for name, count in counts:
        if count is not None and count < SMALL_CELL:
            raise Problem("ingestion.small_cell", field=name, smallest=SMALL_CELL)


def _numbered(rows: Iterable[list[str]]) -> Iterator[tuple[int, list[str]]]:
    """The rows after the header that are not empty, as a spreadsheet numbers them."""
    return ((number, cells) for number, cells in enumerate(rows, start=2) if any(cells))


def _clean(cell: str) -> str:
    return unicodedata.normalize("NFC", cell).strip()


def _wrong(row: int, reason: str) -> Problem:
    return Problem("ingestion.labels", row=row, reason=reason)
