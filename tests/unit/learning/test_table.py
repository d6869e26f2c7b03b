"""Rows of a table: what is read, what is refused, and what a model sees. The oracle of the encoding is written by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from medmesh.contracts.data import DataSchema, TableSchema
from medmesh.demo.practice import HEART
from medmesh.errors import Problem
from medmesh.learning.adapter import float_input
from medmesh.learning.package import pack
from medmesh.learning.table import Columns, Row, encode, read_columns, read_rows

AGE = {"name": "age", "kind": "number", "unit": "a", "low": "18", "high": "100", "center": "50", "scale": "10"}
SEX = {"name": "sex", "kind": "code", "codes": ["female", "male"]}
FAT = {"name": "fat", "kind": "number", "low": "50", "high": "700", "center": "200", "scale": "50", "missing": True}
PAIN = {"name": "pain", "kind": "code", "codes": ["none", "some"], "missing": True}


def schema(*features: dict[str, Any]) -> TableSchema:
    given = {"kind": "table", "table": "heart", "features": features or (AGE, SEX, FAT, PAIN), "classes": ["well", "ill"]}
    return TypeAdapter(DataSchema).validate_python(given)


COLUMNS = Columns(
    patient="id",
    label="num",
    labels={"0": "well", "1": "ill"},
    columns={"fat": "chol"},
    codes={"sex": {"F": "female", "M": "male"}},
    missing={"fat": ("0",)},
)


def rows(folder: Path, text: str, columns: Columns = COLUMNS) -> list[Row | Problem]:
    path = folder / "table.csv"
    path.write_text(text)
    with path.open("rb") as file:
        return list(read_rows(file, columns, schema()))


def test_a_row_becomes_checked_values_and_these_the_inputs_of_a_model(private: Path) -> None:
    (found,) = rows(private, "id,num,age,sex,chol,pain,name\nP7,1,65.0,M,0,some,Zhang San\n")
    assert found == Row("P7", "", {"age": "65", "sex": "male", "fat": None, "pain": "some"}, "ill")
    made = encode(found.values, schema())
    np.testing.assert_array_equal(made, np.array([1.5, 0, 1, 0, 1, 0, 1, 0], np.float32))
    assert made.shape == schema().shape
    np.testing.assert_array_equal(float_input(made), made)


def test_nothing_else_of_a_row_is_kept(private: Path) -> None:
    (found,) = rows(private, "id,num,age,sex,chol,pain,name\nP7,,65,M,230,,Zhang San\n")
    assert isinstance(found, Row)
    assert found.label is None, "a row without a label is kept without one"
    assert "Zhang" not in repr(found)


@pytest.mark.parametrize(
    ("row", "code", "feature"),
    [
        (",1,65,M,200,some", "intake.row_patient", None),
        ("P1,4,65,M,200,some", "intake.row_label", None),
        ("P1,1,,M,200,some", "intake.row_missing", "age"),
        ("P1,1,17,M,200,some", "intake.row_value", "age"),
        ("P1,1,nan,M,200,some", "intake.row_value", "age"),
        ("P1,1,1e999999,M,200,some", "intake.row_value", "age"),
        ("P1,1,50.0000000000001,M,200,some", "intake.row_value", "age"),
        ("P1,1,65 Zhang,M,200,some", "intake.row_value", "age"),
        ("P1,1,65,X,200,some", "intake.row_value", "sex"),
        ("P1,1,65", "intake.row_missing", "sex"),
    ],
)
def test_a_row_that_does_not_fit_is_refused_and_says_nothing_of_its_content(
    private: Path, row: str, code: str, feature: str | None
) -> None:
    (found,) = rows(private, f"id,num,age,sex,chol,pain\n{row}\n")
    assert isinstance(found, Problem)
    assert found.code == code
    assert found.params.get("feature") == feature
    assert not {"Zhang", "P1"} & set(str(found).split())


def test_a_patient_has_one_row_unless_visits_tell_them_apart(private: Path) -> None:
    text = "id,num,age,sex,chol,pain,day\nP1,1,65,M,200,some,1\nP1,0,66,M,200,some,2\n"
    first, second = rows(private, text)
    assert isinstance(first, Row)
    assert isinstance(second, Problem)
    assert second.code == "intake.row_repeated"
    assert [r.visit for r in rows(private, text, COLUMNS.model_copy(update={"visit": "day"})) if isinstance(r, Row)] == ["1", "2"]


@pytest.mark.parametrize("text", ["id,num,age\nP1,1,65\n", "", "\x00\x01", 'id,num,age,sex,chol,pain\n"P1,1'])
def test_what_is_no_such_table_is_refused_as_a_whole(private: Path, text: str) -> None:
    with pytest.raises(Problem) as caught:
        rows(private, text)
    assert caught.value.code == "intake.table"


@pytest.mark.parametrize(
    ("toml", "says"),
    [
        ("label = 'num'", "patient"),
        ("patient = 'id'\nlabel = 'num'\nother = 1", "other"),
        ("patient = 'id'\nlabel = 'num'\n[columns]\nname = 'name'", "no feature"),
        ("patient = 'id'\nlabel = 'num'\n[codes.sex]\nX = 'other'", "no code"),
        ("patient = 'id'\nlabel = 'num'\n[labels]\n0 = 'dead'", "no class"),
        ("patient = ", "TOMLDecodeError"),
    ],
)
def test_a_file_about_columns_that_does_not_fit_is_refused_with_the_place(private: Path, toml: str, says: str) -> None:
    (private / "columns.toml").write_text(toml)
    with pytest.raises(Problem) as caught:
        read_columns(private / "columns.toml", schema())
    assert caught.value.code == "intake.columns"
    assert says in str(caught.value.params["reason"])


def test_a_stored_row_of_another_table_does_not_become_an_input() -> None:
    for values in ({"age": "65", "sex": "male"}, {"age": "65"}, {"age": "999", "sex": "male"}):
        if values == {"age": "65", "sex": "male"}:
            assert len(encode(values, schema())) == 8, "what may be missing may be"
            continue
        with pytest.raises(Problem) as caught:
            encode(values, schema())
        assert caught.value.code == "data.row"


@pytest.mark.parametrize(
    ("feature", "says"),
    [
        ({**AGE, "low": "100"}, "low and high"),
        ({**AGE, "scale": "0"}, "more than 0"),
        ({**AGE, "center": "many"}, "decimal"),
        ({**AGE, "codes": ["a"]}, "no codes"),
        ({**SEX, "codes": ["a", "a"]}, "each once"),
        ({**SEX, "unit": "kg"}, "no unit"),
        ({**SEX, "name": "Patient name"}, "pattern"),
    ],
)
def test_a_feature_that_contradicts_itself_is_no_part_of_a_plan(feature: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        schema(feature)


def test_plans_of_the_first_release_are_about_images() -> None:
    old = TypeAdapter(DataSchema).validate_python({"modality": "MR", "image_size": 8, "classes": ["a", "b"]})
    assert (old.kind, old.modality, old.shape) == ("images", "MR", (1, 8, 8))
    with pytest.raises(ValidationError):
        TypeAdapter(DataSchema).validate_python({"kind": "sound", "modality": "MR", "image_size": 8, "classes": ["a", "b"]})


def test_the_packages_table_is_as_wide_as_its_model() -> None:
    manifest = pack(HEART).manifest
    assert manifest.data.shape == manifest.tensors[1].shape[:1]
    (weight,) = (tensor for tensor in manifest.tensors if tensor.name == "weight")
    assert weight.shape == (*manifest.data.shape, len(manifest.data.classes))
