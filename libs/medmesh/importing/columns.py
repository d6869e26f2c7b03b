"""A table that is no published one: of its columns those are kept that whoever brings it named, each with what may stand in it.

    ["heart.csv"]                 # a file, by its path from the folder of columns.toml on
    patient = "id"                # becomes a pseudonym; a table without one is of rows that have nothing to do with each other
    known = ["name"]              # identifies the patient: looked for in free text, and not kept
    split = "fold"                # the published split, where there is one
    label = "num"                 # what a split spreads alike
    missing = ["?"]               # what stands for "no value" beside an empty cell

    ["heart.csv".columns]
    age = { kind = "number", low = 0, high = 120, unit = "a" }
    sex = { kind = "code", codes = ["male", "female"] }
    num = { kind = "code", codes = ["0", "1", "2", "3", "4"] }
    seen = { kind = "time" }      # moved back by the patient's days
    visit = { kind = "identifier" }
    report = { kind = "text" }    # by the rules for free text; left empty where they doubt

What does not fit is not kept: no other column, and no row with a number out of its range or a code that is not in the list.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import PurePosixPath
from typing import Annotated, Any, BinaryIO, Literal

from pydantic import BaseModel, ConfigDict, Field, RootModel, ValidationError

from medmesh.errors import Problem
from medmesh.importing.formats import tables
from medmesh.importing.port import Source
from medmesh.importing.records import Names, Record
from medmesh.importing.rows import GROUP, ITEM, SPLIT, Shape
from medmesh.importing.rows import Field as Kept
from medmesh.text import Sieve

FILE = "columns.toml"
LARGEST = 1 << 20
_WORD = 64
_OWN = frozenset(("item", "group", "split"))


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Number(_Strict):
    kind: Literal["number", "whole"]
    low: float
    high: float
    unit: str = Field(default="", max_length=40)


class Code(_Strict):
    kind: Literal["code"]
    codes: tuple[Annotated[str, Field(min_length=1, max_length=_WORD)], ...] = Field(min_length=1, max_length=10_000)

    @cached_property
    def known(self) -> frozenset[str]:
        return frozenset(self.codes)


class Other(_Strict):
    kind: Literal["time", "identifier", "text"]


Name = Annotated[str, Field(min_length=1, max_length=200)]
Meaning = Annotated[Number | Code | Other, Field(discriminator="kind")]


class Table(_Strict):
    """What is kept of one file."""

    patient: str = ""
    known: tuple[str, ...] = ()
    split: str = ""
    label: str = ""
    missing: tuple[str, ...] = ()
    columns: dict[Name, Meaning] = Field(min_length=1, max_length=4_000)

    @property
    def named(self) -> tuple[str, ...]:
        """Every column that must be there."""
        return tuple(one for one in (self.patient, self.split, self.label, *self.known, *self.columns) if one)


class _File(RootModel[dict[str, Table]]):
    pass


def read(data: bytes) -> dict[str, Table]:
    """The tables by file. Raises `Problem` (`importing.columns`)."""
    try:
        found = _File.model_validate(tomllib.loads(data.decode("utf-8-sig"))).root
    except ValidationError as error:
        where = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_input=False)[:5])
        raise Problem("importing.columns", reason=where) from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise Problem("importing.columns", reason=str(error) if isinstance(error, tomllib.TOMLDecodeError) else "not UTF-8") from None
    for table in found.values():
        if taken := _OWN & set(table.columns):
            raise Problem("importing.columns", reason=f"{min(taken)} is a name of our own: rename the column")
        if table.label and not isinstance(table.columns.get(table.label), Code):
            raise Problem("importing.columns", reason=f"label: {table.label} is no column of kind code")
        if dropped := {table.patient, *table.known} & set(table.columns):
            raise Problem("importing.columns", reason=f"{min(dropped)} identifies the patient, and is not kept")
    names = [table_of(name) for name in found]
    if twice := next((name for name in names if names.count(name) > 1), ""):
        raise Problem("importing.columns", reason=f"two files would be the table {twice}")
    return found


def table_of(name: str) -> str:
    """What the table of a file is called."""
    return name.removesuffix(".gz").rpartition(".")[0] or name


def described(source: Source, said: bytes | None = None) -> dict[str, tuple[str, Table]]:
    """Which files of a source `columns.toml` describes, each with its name there; `said` stands for the one that is in the source. Raises
    `Problem` (`importing.columns`)."""
    found = [name for name in source.names if name.rpartition("/")[2] == FILE]
    if said is None and not found:
        return {}
    if said is None and len(found) > 1:
        raise Problem("importing.columns", reason=f"there are {len(found)} files of this name")
    top = PurePosixPath(".") if said is not None else PurePosixPath(found[0]).parent
    made = {}
    for named, about in read(small(source, found[0], LARGEST) if said is None else said).items():
        if (name := str(top / named)) not in source.names:
            raise Problem("importing.columns", reason=f"there is no {named}")
        made[name] = (named, about)
    return made


def small(source: Source, name: str, largest: int) -> bytes:
    """A file that is read at once. Raises `Problem` (`importing.columns`) for a larger one."""
    if source.size(name) > largest:
        raise Problem("importing.columns", reason=f"{name.rpartition('/')[2]} is too large")
    with source.open(name) as file:
        return file.read()


@dataclass(frozen=True, slots=True)
class Reader:
    """Makes rows of one file, `name` in `columns.toml`."""

    name: str
    about: Table
    names: Names
    sieve: Sieve

    @property
    def shape(self) -> Shape:
        fields = tuple(Kept(name, one.kind, one.unit if isinstance(one, Number) else "") for name, one in self.about.columns.items())
        return Shape(table_of(self.name), "table", (ITEM, GROUP, SPLIT, *fields), self.about.label)

    def read(self, file: BinaryIO) -> Iterator[Record | str]:
        """Each row, or why it is not kept. Raises `Problem`: `importing.columns` for a column that is not there, `formats.damaged`."""
        written = tables.dialect(file)
        for column in self.about.named:
            if written.header.count(column) != 1:
                raise Problem("importing.columns", reason=f"{self.name} has not one column {column!r}")
        shape, width = self.shape, len(written.header)
        for number, _, fields in tables.rows(file, written):
            if len(fields) != width:
                yield "row_cells"
                continue
            cells = {name: cell.strip() for name, cell in zip(written.header, fields, strict=True)}
            yield self._row(shape, number, {name: "" if cell in self.about.missing else cell for name, cell in cells.items()})

    def _row(self, shape: Shape, number: int, cells: dict[str, str]) -> Record | str:
        about, patient = self.about, cells.get(self.about.patient, "")
        if about.patient and not patient:
            return "row_patient"
        split = cells.get(about.split, "") or None
        if split is not None and not (len(split) <= _WORD and split.replace("-", "").replace("_", "").isalnum()):
            return "row_value"
        group = self.names.group(patient) if patient else None
        values: dict[str, Any] = {"item": self.names.item(f"{self.name}#{number}"), "group": group, "split": split}
        known, emptied = tuple(one for one in (patient, *(cells[name] for name in about.known)) if one), []
        for name, meaning in about.columns.items():
            if not (cell := cells[name]):
                continue
            try:
                values[name] = self._value(name, meaning, cell, patient, known)
            except (ValueError, OverflowError):
                return "row_value"
            if values[name] is None:
                emptied.append(name)
        return Record(shape, values, tuple(emptied))

    def _value(self, name: str, meaning: Number | Code | Other, cell: str, patient: str, known: tuple[str, ...]) -> Any:
        """None for text in which rules doubt. Raises `ValueError` for what does not fit."""
        if isinstance(meaning, Code):
            if cell not in meaning.known:
                raise ValueError("no code of the list")
            return cell
        if isinstance(meaning, Number):
            value = int(cell) if meaning.kind == "whole" else float(cell)
            if not meaning.low <= value <= meaning.high:
                raise ValueError("out of range")
            return value
        if meaning.kind == "time":
            time = datetime.fromisoformat(cell.replace("/", "-")).replace(tzinfo=None)
            return time - timedelta(days=self.names.days(patient) if patient else 0)
        return self.names.identifier(name, cell) if meaning.kind == "identifier" else self.sieve.kept(cell, known)
