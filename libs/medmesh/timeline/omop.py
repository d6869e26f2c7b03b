"""OMOP CDM 5.4 as CSV files, one a table (https://ohdsi.github.io/CommonDataModel/cdm54.html); comma, or tab as vocabularies ship.

Two passes: which concepts the tables name, then the events under those concepts' codes, so that of a vocabulary of millions only what is
used is kept. The hospital's own coding (`*_source_concept_id`) goes before the standard concept it was mapped to.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from medmesh.importing.port import Report, Source
from medmesh.timeline.codes import coded, system, word
from medmesh.timeline.events import BIRTH, DEATH, Draft, Identity
from medmesh.timeline.reading import Place, Reading, number, rows, start

NAME = "omop"
AUTHORITY = "omop"


@dataclass(frozen=True, slots=True)
class _Table:
    """A table of events: its stem in column names, what kind its codes are, and its columns."""

    stem: str
    kind: str
    key: str
    times: tuple[str, ...]
    modality: str
    value: str = ""
    text: str = ""
    unit: str = ""


_TABLES = {
    "condition_occurrence": _Table(
        "condition", "DIAGNOSIS", "condition_occurrence_id", ("condition_start_datetime", "condition_start_date"), "diagnosis"
    ),
    "drug_exposure": _Table(
        "drug",
        "MEDICATION",
        "drug_exposure_id",
        ("drug_exposure_start_datetime", "drug_exposure_start_date"),
        "medication",
        "quantity",
        unit="dose_unit_source_value",
    ),
    "measurement": _Table(
        "measurement",
        "LAB",
        "measurement_id",
        ("measurement_datetime", "measurement_date"),
        "lab",
        "value_as_number",
        "value_source_value",
        "unit_source_value",
    ),
    "observation": _Table(
        "observation",
        "OBSERVATION",
        "observation_id",
        ("observation_datetime", "observation_date"),
        "observation",
        "value_as_number",
        "value_as_string",
        "unit_source_value",
    ),
    "procedure_occurrence": _Table(
        "procedure", "PROCEDURE", "procedure_occurrence_id", ("procedure_datetime", "procedure_date"), "procedure"
    ),
}
_OTHERS = ("person", "visit_occurrence", "death")


def _names(source: Source) -> dict[str, str]:
    """File by table; the nearest to the root where there are two."""
    found: dict[str, str] = {}
    for name in sorted(source.names, key=lambda one: (one.count("/"), one)):
        stem = PurePosixPath(name.lower().removesuffix(".gz"))
        if stem.suffix in (".csv", ".tsv", ".txt"):
            found.setdefault(stem.stem, name)
    return found


def sniff(source: Source) -> float:
    """By the names of its tables and the first column of `person`."""
    names = _names(source)
    if "person" not in names or not names.keys() & _TABLES.keys():
        return 0.0
    return 0.95 if b"person_id" in start(source, names["person"], 400).lower() else 0.0


def read(source: Source, reading: Reading) -> Iterator[Draft]:
    """Persons, visits, the tables of events, deaths."""
    names = _names(source)
    concepts = _concepts(source, names)
    for table in sorted(names.keys() - _TABLES.keys() - {*_OTHERS, "concept"}):
        reading.left_out[table] += 1
    if "person" in names:
        for line, row in rows(source, names["person"], reading.report, ("person_id", "year_of_birth")):
            yield from _person(_Row(row, Place(names["person"], line), "person", reading), concepts)
    if "visit_occurrence" in names:
        needed = ("visit_occurrence_id", "person_id", "visit_concept_id", "visit_start_date")
        for line, row in rows(source, names["visit_occurrence"], reading.report, needed):
            yield from _visit(_Row(row, Place(names["visit_occurrence"], line), "visit_occurrence", reading), concepts)
    for table, shape in _TABLES.items():
        if table in names:
            needed = (shape.key, "person_id", f"{shape.stem}_concept_id", shape.times[-1])
            for line, row in rows(source, names[table], reading.report, needed):
                yield from _event(_Row(row, Place(names[table], line), table, reading), shape, concepts)
    if "death" in names:
        for line, row in rows(source, names["death"], reading.report, ("person_id", "death_date")):
            one = _Row(row, Place(names["death"], line), "death", reading)
            yield from one.draft(row["person_id"], DEATH, ("death_datetime", "death_date"))


@dataclass
class _Row:
    """A row with its place."""

    row: dict[str, str]
    place: Place
    table: str
    reading: Reading

    def draft(self, key: str, code: str, times: tuple[str, ...], **values: object) -> Iterator[Draft]:
        person = self.row["person_id"].strip()
        if not person:
            self.place.error(self.reading.report, "timeline.no_patient")
            return
        name = next((one for one in times if self.row.get(one, "").strip()), "")
        if times and not name:
            self.place.error(self.reading.report, "timeline.no_time")
            return
        at, precision = self.reading.time(self.row[name], self.place, name) if times else (None, None)
        if times and at is None:
            return
        yield Draft(Identity(AUTHORITY, person), NAME, f"{self.table}/{key}", code, at, precision, **values)  # type: ignore[arg-type]


def _concepts(source: Source, names: dict[str, str]) -> dict[str, tuple[str, str]]:
    """(vocabulary, code) of every concept that a table names."""
    if "concept" not in names:
        return {}
    quiet, used = Report(), set[str]()
    columns: dict[str, tuple[str, ...]] = {"person": ("gender_concept_id",), "visit_occurrence": ("visit_concept_id",)}
    columns |= {table: (f"{one.stem}_concept_id", f"{one.stem}_source_concept_id") for table, one in _TABLES.items()}
    for table, wanted in columns.items():
        if table in names:
            for _, row in rows(source, names[table], quiet, ()):
                used.update(row.get(column, "").strip() for column in wanted)
    found = {}
    for _, row in rows(source, names["concept"], quiet, ("concept_id", "vocabulary_id", "concept_code")):
        if row["concept_id"] in used and row["concept_id"] != "0":
            found[row["concept_id"]] = (system(row["vocabulary_id"]), row["concept_code"])
    return found


def _code(kind: str, row: dict[str, str], stem: str, concepts: dict[str, tuple[str, str]]) -> tuple[str, str]:
    mapped, own = row.get(f"{stem}_concept_id", "").strip(), row.get(f"{stem}_source_concept_id", "").strip()
    for concept in (own, mapped):
        if concept in concepts:
            name, code = concepts[concept]
            return coded(kind, name, code), name
    if text := row.get(f"{stem}_source_value", "").strip():
        return coded(kind, "LOCAL", text), "LOCAL"
    concept = own if own not in ("", "0") else mapped
    return (coded(kind, "OMOP", concept), "OMOP") if concept not in ("", "0") else ("", "")


def _event(one: _Row, shape: _Table, concepts: dict[str, tuple[str, str]]) -> Iterator[Draft]:
    code, name = _code(shape.kind, one.row, shape.stem, concepts)
    if not code:
        one.place.error(one.reading.report, "timeline.no_code")
        return
    values: dict[str, object] = {"code_system": name, "modality": shape.modality}
    written = one.row.get(shape.value, "").strip() if shape.value else ""
    if written and (found := number(written)) is not None:
        values |= {"numeric": found}
    elif written:
        one.place.error(one.reading.report, "timeline.bad_number", field=shape.value)
        return
    elif shape.text and (text := one.row.get(shape.text, "").strip()):
        values |= {"text": text}
    if shape.unit and (unit := one.row.get(shape.unit, "").strip()):
        values |= {"unit": unit}
    yield from one.draft(one.row[shape.key], code, shape.times, **values)


def _person(one: _Row, concepts: dict[str, tuple[str, str]]) -> Iterator[Draft]:
    row = one.row
    year, month, day = (row.get(f"{part}_of_birth", "").strip() for part in ("year", "month", "day"))
    if row.get("birth_datetime", "").strip():
        yield from one.draft(f"{row['person_id']}#birth", BIRTH, ("birth_datetime",))
    elif year:
        row["birth"] = "-".join(
            [year.zfill(4), *(part.zfill(2) for part in ((month, day) if month and day else (month,) if month else ()))]
        )
        yield from one.draft(f"{row['person_id']}#birth", BIRTH, ("birth",))
    gender = concepts.get(row.get("gender_concept_id", ""), ("", ""))[1] or row.get("gender_source_value", "").strip()
    gender = gender or {"8507": "M", "8532": "F"}.get(row.get("gender_concept_id", "").strip(), "")
    if gender:
        yield from one.draft(f"{row['person_id']}#gender", f"GENDER//{word(gender)}", ())


def _visit(one: _Row, concepts: dict[str, tuple[str, str]]) -> Iterator[Draft]:
    concept = one.row["visit_concept_id"].strip()
    kind = concepts.get(concept, ("", ""))[1] or {"9201": "IP", "9202": "OP", "9203": "ER"}.get(concept, concept)
    for part, end in (("start", "START"), ("end", "END")):
        times = (f"visit_{part}_datetime", f"visit_{part}_date")
        if any(one.row.get(name, "").strip() for name in times):
            key = f"{one.row['visit_occurrence_id']}#{part}"
            yield from one.draft(key, f"ENCOUNTER//{word(kind)}//{end}", times, modality="encounter")
