"""Rows as a version keeps them: in parts whatever their number, the same bytes for the same rows; and what a person sees before they go."""

from __future__ import annotations

import io
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from tests.unit.importing import layouts

from medmesh.cli import _root
from medmesh.client.datasets import files_of
from medmesh.errors import Problem
from medmesh.importing import columns
from medmesh.importing.records import Names
from medmesh.importing.rows import GROUP, ITEM, SPLIT, Field, Shape, Writer, read, resplit
from medmesh.text import Sieve

SHAPE = Shape("words", "table", (ITEM, GROUP, SPLIT, Field("said", "text"), Field("count", "whole"), Field("labels", "labels")))


def row(number: int) -> dict[str, Any]:
    return {"item": f"{number:016x}", "group": f"{number // 3:016x}", "split": "train", "said": f"text {number}", "labels": {"a": "b"}}


def test_a_table_is_written_in_parts_and_read_again(tmp_path: Path) -> None:
    writer = Writer(tmp_path, SHAPE, part_rows=4)
    for number in range(10):
        writer.add(row(number))
    made = writer.finish()
    assert ([file.rows for file in made.files], made.rows, made.groups, made.splits) == ([4, 4, 2], 10, 4, {"train": 10})
    found = [one for file in made.files for one in read(file.path)]
    assert found == [{**row(number), "count": None} for number in range(10)]
    assert all(file.path.name == file.sha256 for file in made.files)
    again = Writer(tmp_path, SHAPE, part_rows=4)
    for number in range(10):
        again.add(row(number))
    assert again.finish() == made, "equal rows are equal bytes"
    moved, counts = resplit(made.files[0].path, tmp_path, {f"{0:016x}": "test"})
    assert [one["split"] for one in read(moved.path)] == ["test"] * 3 + ["train"]
    assert counts == {"test": 3, "train": 1}


def test_long_texts_make_shorter_parts_and_memory_does_not_grow_with_rows(tmp_path: Path) -> None:
    peaks = []
    tracemalloc.start()
    try:
        for rows in (3_000, 12_000):
            writer = Writer(tmp_path, SHAPE)
            tracemalloc.reset_peak()
            for number in range(rows):
                writer.add({**row(number), "said": f"{number} " + "x" * 4_000})
            made = writer.finish()
            peaks.append(tracemalloc.get_traced_memory()[1])
            assert len(made.files) == -(-rows // 2_090)
    finally:
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0] < 64 << 20


MEANT = b"""["a/x.csv"]
patient = "id"
label = "sex"
["a/x.csv".columns]
sex = { kind = "code", codes = ["m", "f"] }
age = { kind = "whole", low = 0, high = 9 }
"""


def test_columns_say_what_may_stand_in_them(tmp_path: Path) -> None:
    about = columns.read(MEANT)["a/x.csv"]
    reader = columns.Reader("a/x.csv", about, Names(b"k" * 32, "files"), Sieve())
    assert (reader.shape.name, reader.shape.label) == ("a/x", "sex")
    text = "id;sex;age;name\n1;m;3;Somebody\n1;x;3;\n1;m;3.5;\n1;m;10;\n;m;3;\n2;;;\n2;m\n"
    found = list(reader.read(io.BytesIO(text.encode("gb18030"))))
    assert [one if isinstance(one, str) else (one.values.get("sex"), one.values.get("age")) for one in found] == [
        ("m", 3), "row_value", "row_value", "row_value", "row_patient", (None, None), "row_cells",
    ]  # fmt: skip
    with pytest.raises(Problem) as twice:
        list(reader.read(io.BytesIO(b"id,sex,sex,age\n1,m,m,3\n")))
    assert twice.value.code == "importing.columns"


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (MEANT.replace(b'label = "sex"', b'label = "age"'), "label: age is no column of kind code"),
        (MEANT + b"item = { kind = 'text' }\n", "item is a name of our own: rename the column"),
        (MEANT + b"id = { kind = 'text' }\n", "id identifies the patient, and is not kept"),
        (MEANT + b"x = { kind = 'picture' }\n", "a/x.csv.columns.x: Input tag 'picture'"),
        (MEANT + b"x = { kind = 'number' }\n", "a/x.csv.columns.x.number.low: Field required"),
        (MEANT + MEANT.replace(b"x.csv", b"x.tsv"), "two files would be the table a/x"),
        (b"[a", "Expected"),
        (b"\xff", "not UTF-8"),
    ],
)
def test_columns_that_are_not_said_rightly_are_refused(said: bytes, reason: str) -> None:
    with pytest.raises(Problem) as refused:
        columns.read(said)
    assert refused.value.code == "importing.columns"
    assert refused.value.params["reason"].startswith(reason)


def ran(*arguments: str, language: str = "en") -> str:
    done = CliRunner().invoke(_root, ["dataset", *arguments], env={"MEDMESH_LANG": language}, standalone_mode=False)
    if done.exception:
        raise done.exception
    return done.output


def test_the_words_that_rules_doubt_are_listed_before_anything_is_sent(tmp_path: Path) -> None:
    layouts.pmcvqa(tmp_path)
    path = tmp_path / "train.csv"
    path.write_text(path.read_text().replace('"What is\nshown?"', "Zebedee Canaryname was admitted.", 1))
    said = ran("doubts", str(tmp_path))
    assert said.splitlines() == ["Zebedee Canaryname\t1", "1 of 7 rows would be put aside"]
    assert json.loads(ran("doubts", str(tmp_path), "--json")) == {"rows": 7, "aside": 1, "words": {"Zebedee Canaryname": 1}}
    (tmp_path / "fine.txt").write_text("zebedee canaryname\n")
    assert ran("doubts", str(tmp_path), "--vouched", str(tmp_path / "fine.txt"), language="zh").startswith("共 7 行，其中 0 行")


def test_tables_without_a_word_about_their_columns_are_not_sent(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("id,age\n1,3\n2,4\n")
    with pytest.raises(Problem) as refused:
        ran("import", str(tmp_path), "--name", "x")
    assert refused.value.code == "importing.columns_needed"
    (tmp_path / "wrong.toml").write_text("[a")
    with pytest.raises(Problem) as wrong:
        ran("import", str(tmp_path), "--name", "x", "--columns", str(tmp_path / "wrong.toml"))
    assert wrong.value.code == "importing.columns"
    layouts.mimic3(tmp_path / "set")
    (tmp_path / "fine.toml").write_bytes(MEANT)
    with pytest.raises(Problem) as published:
        ran("import", str(tmp_path / "set"), "--name", "x", "--columns", str(tmp_path / "fine.toml"))
    assert published.value.params["reason"] == "mimic3 says itself what its columns are"


def test_the_files_of_a_version_have_places_of_their_own() -> None:
    ref = {"sha256": "0" * 64, "bytes": 1, "media_type": "application/dicom"}
    several = [{"role": "image", "part": "", "object": {**ref, "media_type": "image/png"}}, {"role": "mask", "part": "", "object": ref}]
    document = {
        "items": [{"item": "aa", "object": ref}, {"item": "bb", "object": ref, "files": several}],
        "tables": [{"name": name, "parts": [{"object": ref, "rows": 1}]} for name in ("../a/x", "_a_x")],
    }
    assert [file.path for file in files_of(document)] == [
        "items/aa.dcm", "items/bb-0-image.png", "items/bb-1-mask.dcm", "tables/_a_x/0000.parquet", "tables/_a_x-2/0000.parquet",
    ]  # fmt: skip
