"""Rows of a hospital's table: read by an allow-list of columns, checked against the schema of a plan, and made into a model's inputs.

What is kept of a row is a number within its range or a code of its list, never text: nothing identifying passes by mistake.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
from pydantic import Field, ValidationError

from medmesh.contracts.data import Feature, FeatureName, TableSchema, decimal
from medmesh.contracts.message import Record
from medmesh.errors import Problem
from medmesh.importing.formats import tables

Values = Mapping[str, str | None]
"""A decimal string, a code, or None where there is no value, by feature."""


class Columns(Record):
    """What the columns of a hospital's file mean; the hospital writes it, as TOML. No other column is read.

    patient = "id"            # becomes a pseudonym
    known = ["name"]          # identifies the patient: looked for in free text, and not kept
    label = "num"
    visit = "date"            # only where a patient has several rows: tells them apart, and is not kept

    [labels]                  # what the file says = the class
    "0" = "none"
    "1" = "disease"

    [columns]                 # feature = column; a feature without a line has the column of its name
    resting_pressure = "trestbps"

    [codes.sex]               # what the file says = the code; a code without a line is written as it is
    "Male" = "male"

    [missing]                 # what stands for "no value" beside an empty cell
    cholesterol = ["0"]

    [texts]                   # name = column of free text: notes of their own, through the rules for text
    findings = "ecg_report"
    """

    patient: str
    label: str
    visit: str = ""
    known: tuple[str, ...] = ()
    texts: dict[FeatureName, str] = Field(default_factory=dict)
    labels: dict[str, str] = Field(default_factory=dict)
    columns: dict[FeatureName, str] = Field(default_factory=dict)
    codes: dict[FeatureName, dict[str, str]] = Field(default_factory=dict)
    missing: dict[FeatureName, tuple[str, ...]] = Field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Row:
    """One row that fits; `label` is a class or None."""

    patient: str
    visit: str
    values: Values
    label: str | None
    texts: Mapping[str, str] = field(default_factory=dict)
    known: tuple[str, ...] = ()


def read_columns(path: Path, schema: TableSchema) -> Columns:
    """Raises `Problem` (`intake.columns`) for a file that is not as `Columns`, or names what the schema does not have."""
    try:
        columns = Columns.model_validate_json(_json(path))
    except ValidationError as error:
        where = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_input=False)[:5])
        raise Problem("intake.columns", reason=where) from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise Problem("intake.columns", reason=type(error).__name__) from None
    features = {feature.name: feature for feature in schema.features}
    for name in (*columns.columns, *columns.codes, *columns.missing):
        if name not in features:
            raise Problem("intake.columns", reason=f"{name} is no feature of {schema.table}")
    for name, codes in columns.codes.items():
        if unknown := set(codes.values()) - set(features[name].codes):
            raise Problem("intake.columns", reason=f"{sorted(unknown)[0]!r} is no code of {name}")
    if unknown := set(columns.labels.values()) - set(schema.classes):
        raise Problem("intake.columns", reason=f"{sorted(unknown)[0]!r} is no class of {schema.table}")
    return columns


def _json(path: Path) -> str:
    import json

    return json.dumps(tomllib.loads(path.read_text(encoding="utf-8")), default=str)


def read_rows(file: BinaryIO, columns: Columns, schema: TableSchema) -> Iterator[Row | Problem]:
    """The rows of a CSV file with a heading, in any encoding and with any delimiter that `formats.tables` knows; one that does not fit is a
    `Problem` (`intake.row_*`) that holds nothing of its content.

    Raises `Problem` (`intake.table`) when it is no such file, or a column is not there.
    """
    try:
        written = tables.dialect(file)
        heading = set(written.header)
        needed = [columns.patient, columns.label, *([columns.visit] if columns.visit else [])]
        needed += [columns.columns.get(feature.name, feature.name) for feature in schema.features if not feature.missing]
        needed += [*columns.columns.values(), *columns.texts.values(), *columns.known]
        if absent := [name for name in needed if name not in heading]:
            raise Problem("intake.table", reason=f"there is no column {absent[0]!r}")
        seen: set[tuple[str, str]] = set()
        for _, _, fields in tables.rows(file, written):
            row = _row(dict(zip(written.header, fields, strict=False)), columns, schema)
            if isinstance(row, Row):
                if (row.patient, row.visit) in seen:
                    row = Problem("intake.row_repeated")
                else:
                    seen.add((row.patient, row.visit))
            yield row
    except Problem as problem:
        if problem.code != "formats.damaged":
            raise
        raise Problem("intake.table", reason="it is no CSV file") from None


def _row(given: Mapping[str, str | None], columns: Columns, schema: TableSchema) -> Row | Problem:
    patient, label = _cell(given, columns.patient), _cell(given, columns.label)
    visit = _cell(given, columns.visit) if columns.visit else ""
    if not patient or (columns.visit and not visit):
        return Problem("intake.row_patient")
    label = columns.labels.get(label, label)
    if label and label not in schema.classes:
        return Problem("intake.row_label")
    values: dict[str, str | None] = {}
    for feature in schema.features:
        cell = _cell(given, columns.columns.get(feature.name, feature.name))
        if cell in ("", *columns.missing.get(feature.name, ())):
            if not feature.missing:
                return Problem("intake.row_missing", feature=feature.name)
            values[feature.name] = None
            continue
        value = _value(feature, columns.codes.get(feature.name, {}).get(cell, cell))
        if value is None:
            return Problem("intake.row_value", feature=feature.name)
        values[feature.name] = value
    texts = {name: text for name, column in columns.texts.items() if (text := _cell(given, column))}
    known = tuple(one for column in columns.known if (one := _cell(given, column)))
    return Row(patient, visit, values, label or None, texts, known)


def _cell(given: Mapping[str, str | None], name: str) -> str:
    return (given.get(name) or "").strip()


def _value(feature: Feature, text: str) -> str | None:
    """The number in its range or the code; None for anything else."""
    if feature.kind == "code":
        return text if text in feature.codes else None
    try:
        number = decimal(text)
    except ValueError:
        return None
    assert feature.low is not None
    assert feature.high is not None
    return f"{number.normalize():f}" if decimal(feature.low) <= number <= decimal(feature.high) else None


def encode(values: Values, schema: TableSchema) -> np.ndarray:
    """float32 [width]: a number as (value - center) / scale, a code as one of as many inputs, no value as zeros; then, where the feature
    may be missing, 1 if it is. Raises `Problem` (`data.row`) when the row does not fit the schema."""
    made: list[float] = []
    for feature in schema.features:
        text = values.get(feature.name)
        value = None if text is None else _value(feature, text)
        if value is None and (text is not None or not feature.missing):
            raise Problem("data.row", feature=feature.name, table=schema.table)
        if feature.kind == "code":
            made += [float(value == code) for code in feature.codes]
        else:
            made.append(0.0 if value is None else float((decimal(value) - decimal(feature.center)) / decimal(feature.scale)))
        if feature.missing:
            made.append(float(value is None))
    return np.array(made, dtype=np.float32)
