"""MIMIC-III v1.4: 26 tables as .csv or .csv.gz, each row an item of its patient. The tables and their rules are `mimic3.toml`.

A. Johnson et al., "MIMIC-III", Scientific Data 3 (2016). Rows that the set itself marks as errors (ERROR = 1, ISERROR = 1) are left out
and counted. ICD-9 codes are text: leading zeros matter. HADM_ID and ICUSTAY_ID may be empty in events.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources

from medmesh.importing.port import Column, ColumnKind, File, Importer, Item, Kind, Report, Source
from medmesh.importing.reading import Row, published, rows

_NAME = re.compile(r"(?:.*/)?(?P<table>[A-Za-z_]+)\.csv(?:\.gz)?")
_FORMS = {
    "i": (re.compile(r"-?\d{1,18}"), "an integer"),
    "t": (re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"), "YYYY-MM-DD HH:MM:SS"),
    "f": (re.compile(r"-?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"), "a number"),
}
KNOWN_BY = {"ADMISSIONS", "PATIENTS", "ICUSTAYS", "CHARTEVENTS", "LABEVENTS", "NOTEEVENTS", "DIAGNOSES_ICD", "D_ITEMS", "D_LABITEMS"}
ERRORS = ("ERROR", "ISERROR")
IDENTIFIERS = frozenset(("HADM_ID", "ICUSTAY_ID", "CGID", "ORDERID", "LINKORDERID"))
_ROW = "ROW_ID"
_KINDS: dict[str, ColumnKind] = {"i": "whole", "t": "time", "f": "number"}


@dataclass(frozen=True, slots=True)
class Table:
    """A table: its published rows, its columns, those that may not be empty, and the form of those that are no text."""

    rows: int
    columns: tuple[str, ...]
    filled: frozenset[str]
    forms: dict[str, str]

    @property
    def kind(self) -> Kind:
        """Rows about patients are events, the notes text, all else a table to look up."""
        return "table" if "SUBJECT_ID" not in self.columns else "text" if "TEXT" in self.columns else "events"

    def kept_as(self, column: str) -> ColumnKind:
        """A table without patients is a published list: its words are terms."""
        if column == "SUBJECT_ID":
            return "patient"
        if column in IDENTIFIERS:
            return "identifier"
        return _KINDS.get(self.forms.get(column, "")) or ("vocabulary" if self.kind == "table" else "text")


@cache
def tables() -> dict[str, Table]:
    """The published tables, by name."""
    found = {}
    text = resources.files("medmesh.importing.sets").joinpath("mimic3.toml").read_text(encoding="utf-8")
    for name, about in tomllib.loads(text).items():
        parts = [word.rstrip("!").partition(":") for word in about["columns"].split()]
        filled = frozenset(word.partition(":")[0].rstrip("!") for word in about["columns"].split() if word.endswith("!"))
        found[name] = Table(about["rows"], tuple(part[0] for part in parts), filled, {part[0]: part[2] for part in parts if part[2]})
    return found


class MIMIC3(Importer):
    name = "mimic3"
    title = "MIMIC-III v1.4"
    licence = "PhysioNet Credentialed Health Data License 1.5.0"
    looked_for = "PATIENTS.csv, ADMISSIONS.csv, CHARTEVENTS.csv, ... or .csv.gz, at least two of them"

    def sniff(self, source: Source) -> float:
        found = {table for name in source.names if (table := _table(name))}
        return 0.95 if len(found & KNOWN_BY) >= 2 else 0.0

    def columns(self, table: str) -> tuple[Column, ...]:
        """Those that are published, but for the number of the row."""
        about = tables()[table]
        return tuple(Column(name, about.kept_as(name)) for name in about.columns if name != _ROW)

    def read(self, source: Source, report: Report) -> Iterator[Item]:
        seen: set[str] = set()
        for name in source.names:
            if (table := _table(name)) is None:
                continue
            if table in seen:
                report.error("importing.twice", name, what=table)
                continue
            seen.add(table)
            yield from _rows(source, name, table, report)


def _table(name: str) -> str | None:
    match = _NAME.fullmatch(name)
    return match["table"].upper() if match and match["table"].upper() in tables() else None


def _rows(source: Source, name: str, table: str, report: Report) -> Iterator[Item]:
    about = tables()[table]
    files, kind, count, dropped = (File(name, "table"),), about.kind, 0, 0
    marks = [column for column in ERRORS if column in about.columns]
    checks = [(column, _FORMS[form][0].fullmatch, _FORMS[form][1]) for column, form in about.forms.items()]
    for row in rows(source, name, report, columns=about.columns, upper=True):
        count += 1
        cells = row.cells
        if not all(map(cells.__getitem__, about.filled)):
            _fault(name, row, next(column for column in about.columns if column in about.filled and not cells[column]), "not empty", report)
            continue
        for column, matches, form in checks:
            if (cell := cells[column]) and not matches(cell):
                _fault(name, row, column, form, report)
                break
        else:
            if any(cells[mark].strip() == "1" for mark in marks):
                dropped += 1
            else:
                yield Item(f"{name}#{row.number}", kind, files, patient=cells.get("SUBJECT_ID"), labels={"table": table}, meta=cells)
    if dropped:
        report.note("importing.dropped", name, rows=dropped)
    published(report, source, f"{table} rows", count, about.rows)


def _fault(name: str, row: Row, column: str, expected: str, report: Report) -> None:
    report.error("importing.value", name, line=row.line, column=column, expected=expected)
