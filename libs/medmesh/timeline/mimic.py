"""MIMIC-III v1.4: its tables' rows as events.

Columns after MIT-LCP/mimic-code, mimic-iii/buildmimic/postgres/postgres_create_tables.sql. Diagnoses and procedures of an admission are
coded after it and have no time of their own: they count from discharge. Rows marked as errors are dropped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from medmesh.importing.port import Report, Source
from medmesh.timeline.codes import coded, word
from medmesh.timeline.events import BIRTH, DEATH, Draft, Identity
from medmesh.timeline.reading import Place, Reading, number, rows, start

NAME = "mimic"
AUTHORITY = "mimic-iii"
TABLES = {
    "patients": ("subject_id", "gender", "dob"),
    "admissions": ("subject_id", "hadm_id", "admittime", "dischtime"),
    "icustays": ("subject_id", "icustay_id", "intime"),
    "diagnoses_icd": ("subject_id", "hadm_id", "icd9_code"),
    "procedures_icd": ("subject_id", "hadm_id", "icd9_code"),
    "labevents": ("subject_id", "itemid", "charttime", "value"),
    "chartevents": ("subject_id", "itemid", "charttime", "value"),
    "prescriptions": ("subject_id", "startdate", "drug"),
    "noteevents": ("subject_id", "chartdate", "category", "text"),
}
"""What is read, in this order, each with the columns it cannot do without."""


@dataclass
class Context:
    """What rows refer to: when each admission ended, and the LOINC code of each laboratory item."""

    discharges: dict[str, str] = field(default_factory=dict)
    loinc: dict[str, str] = field(default_factory=dict)


def _names(source: Source) -> dict[str, str]:
    return {
        stem.stem: name
        for name in sorted(source.names, key=lambda one: (-one.count("/"), one))
        if (stem := PurePosixPath(name.lower().removesuffix(".gz"))).suffix == ".csv"
    }


def sniff(source: Source) -> float:
    """By its patients' table."""
    names = _names(source)
    if "patients" not in names or "admissions" not in names:
        return 0.0
    head = start(source, names["patients"], 400).lower()
    return 0.95 if all(column in head for column in (b"row_id", b"subject_id", b"expire_flag")) else 0.0


def read(source: Source, reading: Reading) -> Iterator[Draft]:
    """Every table there is, in the order of `TABLES`."""
    names = _names(source)
    context, quiet = Context(), Report()
    if "admissions" in names:
        for _, row in rows(source, names["admissions"], quiet, ("hadm_id", "dischtime")):
            context.discharges[row["hadm_id"].strip()] = row["dischtime"]
    if "d_labitems" in names:
        for _, row in rows(source, names["d_labitems"], quiet, ("itemid", "loinc_code")):
            if row["loinc_code"].strip():
                context.loinc[row["itemid"].strip()] = row["loinc_code"].strip()
    for table, needed in TABLES.items():
        if table in names:
            for line, row in rows(source, names[table], reading.report, ("row_id", *needed)):
                yield from drafts(table, row, Place(names[table], line), reading, context)
    for table in sorted(names.keys() - TABLES.keys()):
        if not table.startswith("d_"):
            reading.left_out[table] += 1


def drafts(table: str, row: Mapping[str, str], place: Place, reading: Reading, context: Context) -> Iterator[Draft]:
    """The events of one row; names of tables and columns in lower case."""
    person = row["subject_id"].strip()
    if not person:
        place.error(reading.report, "timeline.no_patient")
        return
    for name, code, time, values in _MAKERS[table](row, context):
        if not code:
            place.error(reading.report, "timeline.no_code")
            continue
        at, precision = (None, None) if time is None else reading.time(time, place, "time")
        if time is not None and at is None:
            if not time.strip():
                place.error(reading.report, "timeline.no_time")
            continue
        yield Draft(Identity(AUTHORITY, person), NAME, f"{table}/{row['row_id'].strip()}{name}", code, at, precision, **values)  # type: ignore[arg-type]


_Made = Iterator[tuple[str, str, str | None, dict[str, object]]]
"""(suffix of the key, code, time or None for static, further values)."""


def _patients(row: Mapping[str, str], context: Context) -> _Made:
    if row["gender"].strip():
        yield "#gender", f"GENDER//{word(row['gender'])}", None, {}
    yield "#birth", BIRTH, row["dob"], {}
    if row.get("dod", "").strip():
        yield "#death", DEATH, row["dod"], {}


def _admissions(row: Mapping[str, str], context: Context) -> _Made:
    kind = word(row.get("admission_type", ""))
    for name, column in (("START", "admittime"), ("END", "dischtime")):
        yield f"#{name}", f"ENCOUNTER//{kind}//{name}", row[column], {"modality": "encounter"}


def _icustays(row: Mapping[str, str], context: Context) -> _Made:
    for name, column, unit in (("START", "intime", "first_careunit"), ("END", "outtime", "last_careunit")):
        if row.get(column, "").strip():
            yield f"#{name}", f"ICU//{word(row.get(unit, ''))}//{name}", row[column], {"modality": "encounter"}


def _icd(kind: str, system: str, row: Mapping[str, str], context: Context) -> _Made:
    written = row["icd9_code"].strip()
    time = context.discharges.get(row["hadm_id"].strip(), "")
    yield "", coded(kind, system, written) if written else "", time, {"code_system": system, "modality": kind.lower()}


def _diagnoses(row: Mapping[str, str], context: Context) -> _Made:
    return _icd("DIAGNOSIS", "ICD9CM", row, context)


def _procedures(row: Mapping[str, str], context: Context) -> _Made:
    return _icd("PROCEDURE", "ICD9PROC", row, context)


def _labevents(row: Mapping[str, str], context: Context) -> _Made:
    item = row["itemid"].strip()
    system, code = ("LOINC", context.loinc[item]) if item in context.loinc else ("MIMIC3", item)
    yield "", coded("LAB", system, code) if code else "", row["charttime"], {"code_system": system, "modality": "lab", **_value(row)}


def _chartevents(row: Mapping[str, str], context: Context) -> _Made:
    if row.get("error", "").strip() != "1":
        item = row["itemid"].strip()
        values = {"code_system": "MIMIC3", "modality": "vital", **_value(row)}
        yield "", coded("CHART", "MIMIC3", item) if item else "", row["charttime"], values


def _prescriptions(row: Mapping[str, str], context: Context) -> _Made:
    ndc = row.get("ndc", "").strip()
    system, code = ("NDC", ndc) if ndc.strip("0") else ("LOCAL", row["drug"].strip())
    dose = number(row.get("dose_val_rx", ""))
    values: dict[str, object] = {"code_system": system, "modality": "medication"}
    if dose is not None:
        values |= {"numeric": dose, "unit": row.get("dose_unit_rx", "").strip() or None}
    yield "", coded("MEDICATION_ORDER", system, code) if code else "", row["startdate"], values


def _noteevents(row: Mapping[str, str], context: Context) -> _Made:
    if row.get("iserror", "").strip() != "1":
        time = row.get("charttime", "").strip() or row["chartdate"].strip()[:10]
        yield "", f"NOTE//{word(row['category'])}", time, {"modality": "text", "text": row["text"] or None}


def _value(row: Mapping[str, str]) -> dict[str, object]:
    unit = row.get("valueuom", "").strip() or None
    found = number(row.get("valuenum", "")) if row.get("valuenum", "").strip() else number(row["value"])
    return {"numeric": found, "unit": unit} if found is not None else {"text": row["value"].strip() or None, "unit": unit}


_MAKERS = {
    "patients": _patients,
    "admissions": _admissions,
    "icustays": _icustays,
    "diagnoses_icd": _diagnoses,
    "procedures_icd": _procedures,
    "labevents": _labevents,
    "chartevents": _chartevents,
    "prescriptions": _prescriptions,
    "noteevents": _noteevents,
}
