"""Questions, texts and rows of tables as a version keeps them: Parquet in parts, each row with the pseudonym of its patient or group.

A part holds so many rows and no more, so that memory does not grow with a table. Equal rows are equal bytes. pyarrow is imported where a
table is written or read, and nowhere before.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

MEDIA_TYPE = "application/vnd.apache.parquet"
PART_ROWS = 20_000
PART_CHARACTERS = 8 << 20

Kept = Literal["identifier", "references", "code", "labels", "whole", "number", "time", "text", "texts"]
"""What stands in a column: a pseudonym, items of the version, a word of a list, classes by name, numbers, a time on the patient's shifted
axis, text without what identifies, several of them."""
TableKind = Literal["question", "text", "table", "events"]


@dataclass(frozen=True, slots=True)
class Field:
    """A column of a version's table."""

    name: str
    kind: Kept
    unit: str = ""

    @property
    def document(self) -> dict[str, str]:
        return {"name": self.name, "kind": self.kind, **({"unit": self.unit} if self.unit else {})}


ITEM, GROUP, SPLIT = Field("item", "identifier"), Field("group", "identifier"), Field("split", "code")
"""What a row is known by, what a split must not tear apart, and on which side it is."""
QUESTIONS: tuple[Field, ...] = (
    ITEM, GROUP, SPLIT, Field("images", "references"), Field("question", "text"), Field("choices", "texts"), Field("answer", "text"),
    Field("label", "code"), Field("labels", "labels"), Field("caption", "text"), Field("context", "text"), Field("explanation", "text"),
)  # fmt: skip
"""`images` are items; one that is not in the version is of a picture that was not shipped or not kept. `label` is the right choice, or the
class."""
TEXTS: tuple[Field, ...] = (ITEM, GROUP, SPLIT, Field("images", "references"), Field("role", "code"), Field("text", "text"))
"""`role` is what the text is of its item: caption, finding, history, ..."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What a table is. `label` names the column that a split spreads alike; a table without `GROUP` is nobody's, and not split."""

    name: str
    kind: TableKind
    fields: tuple[Field, ...]
    label: str = ""

    @property
    def split(self) -> bool:
        return SPLIT in self.fields


@dataclass(frozen=True, slots=True)
class File:
    """A part that was written, under its hash."""

    path: Path
    sha256: str
    rows: int


@dataclass(frozen=True, slots=True)
class Written:
    """A whole table in files. `emptied` counts cells, by column, that were left empty since rules doubted what stood in them."""

    shape: Shape
    rows: int
    splits: Mapping[str, int]
    groups: int
    emptied: Mapping[str, int]
    files: tuple[File, ...]


@dataclass
class Writer:
    """Takes rows (values by column, None where there is none) and writes parts into `folder`."""

    folder: Path
    shape: Shape
    part_rows: int = PART_ROWS
    emptied: Counter[str] = field(default_factory=Counter)
    _buffer: list[Mapping[str, Any]] = field(default_factory=list)
    _characters: int = 0
    _files: list[File] = field(default_factory=list)
    _splits: Counter[str] = field(default_factory=Counter)
    _groups: set[bytes] = field(default_factory=set)

    def add(self, row: Mapping[str, Any]) -> None:
        """One more row."""
        self._buffer.append(row)
        self._characters += sum(len(value) for value in row.values() if isinstance(value, str))
        if self.shape.split:
            self._splits[row.get("split") or ""] += 1
            if group := row.get("group"):
                self._groups.add(bytes.fromhex(group))
        if len(self._buffer) >= self.part_rows or self._characters >= PART_CHARACTERS:
            self._flush()

    def finish(self) -> Written:
        """Everything that was added."""
        if self._buffer:
            self._flush()
        rows = sum(file.rows for file in self._files)
        return Written(self.shape, rows, dict(sorted(self._splits.items())), len(self._groups), dict(self.emptied), tuple(self._files))

    def _flush(self) -> None:
        self._files.append(write(self.folder, self.shape.fields, self._buffer))
        self._buffer, self._characters = [], 0


def write(folder: Path, fields: Sequence[Field], rows: Sequence[Mapping[str, Any]]) -> File:
    """One part, in `folder` under its hash."""
    import pyarrow as pa

    columns = [pa.array([row.get(one.name) for row in rows], _type(one.kind)) for one in fields]
    return _written(pa.table(columns, schema=pa.schema([pa.field(one.name, _type(one.kind)) for one in fields])), folder)


def read(path: Path, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """The rows of one part, of all columns or of these; classes by name are a mapping again."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        maps = [one.name for one in file.schema_arrow if str(one.type).startswith("map")]
        for batch in file.iter_batches(2_000, columns=None if columns is None else list(columns)):
            for row in batch.to_pylist():
                yield row | {name: dict(row[name]) for name in maps if row.get(name) is not None}


def resplit(path: Path, folder: Path, split_of: Mapping[str, str]) -> tuple[File, Counter[str]]:
    """The same part with other splits, and how many rows are in each: those of its rows' groups, of a row without a group its own; other
    rows stay as they are."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    found = zip(*(table[name].to_pylist() for name in ("item", "group", "split")), strict=True)
    splits = [split_of.get(group or item, before) for item, group, before in found]
    place = table.schema.get_field_index("split")
    made = _written(table.set_column(place, table.schema.field(place), pa.array(splits, pa.string())), folder)
    return made, Counter(one or "" for one in splits)


def _written(table: Any, folder: Path) -> File:
    import pyarrow.parquet as pq

    made = folder / "part"
    pq.write_table(table, made, compression="zstd")
    with made.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return File(made.rename(folder / sha256), sha256, int(table.num_rows))


def _type(kind: Kept) -> Any:
    import pyarrow as pa

    several = pa.list_(pa.string())
    types = {"whole": pa.int64(), "number": pa.float64(), "time": pa.timestamp("us"), "references": several, "texts": several}
    return pa.map_(pa.string(), pa.string()) if kind == "labels" else types.get(kind, pa.string())
