"""Quality: each rule fires on data that break it and is silent on data that do not; a folder becomes a report and a page."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from pydicom.dataset import Dataset
from tests.unit.importing import making

from medmesh.cli.data import dataset
from medmesh.errors import Problem, catalogue
from medmesh.importing.sources import opened
from medmesh.quality import arrays, dicom, tables
from medmesh.quality.html import page
from medmesh.quality.inspecting import Inspection, inspect
from medmesh.quality.report import Report
from medmesh.quality.rules import BLOCKING, RULES, Finding, known

DICE = np.random.default_rng(8)


def codes(findings: Any) -> set[str]:
    return {finding.code for finding in findings}


IMAGES = {
    "constant_image": np.full((40, 40), 7, np.uint8),
    "clipped": np.where(DICE.random((40, 40)) < 0.4, 255, DICE.integers(0, 250, (40, 40))).astype(np.uint8),
    "few_levels": DICE.integers(0, 5, (40, 40)).astype(np.uint8),
    "not_finite": np.where(DICE.random((40, 40)) < 0.1, np.nan, DICE.random((40, 40))).astype(np.float32),
}


@pytest.mark.parametrize("code", IMAGES)
def test_images(code: str) -> None:
    assert codes(arrays.of_image(IMAGES[code], bits=8 if IMAGES[code].dtype == np.uint8 else None)) == {code}
    dark = np.where(DICE.random((40, 40)) < 0.6, 0, DICE.integers(0, 250, (40, 40))).astype(np.uint8)
    assert not codes(arrays.of_image(dark, bits=8)), "a dark background is how images look"


def test_volumes() -> None:
    turned = np.eye(4)
    turned[:2, :2] = [[0.7, -0.7], [0.7, 0.7]]
    assert codes(arrays.of_volume((9, 9, 9), (1, 1, 1), np.eye(4))) == set()
    assert codes(arrays.of_volume((9, 9, 1), (1, 1, 1), np.eye(4))) == {"single_slice"}
    assert codes(arrays.of_volume((9, 9, 9), (0.5, 0.5, 5), np.diag([0.5, 0.5, 5, 1]))) == {"thick_slices"}
    assert codes(arrays.of_volume((9, 9, 9), (1, 1, 1), turned)) == {"oblique"}


def slices(places: list[float], **changed: Any) -> list[dicom.Slice]:
    made = []
    for number, place in enumerate(places, start=1):
        one = Dataset()
        one.Rows, one.Columns, one.InstanceNumber = 64, 64, number
        one.ImagePositionPatient, one.ImageOrientationPatient = [0, 0, place], [1, 0, 0, 0, 1, 0]
        for keyword, value in changed.items():
            if number == 2:
                setattr(one, keyword, value)
        made.append(dicom.slice_of(one))
    return made


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        (slices([0, 3, 6, 9.0005]), {}),
        (slices([9, 0, 3, 6]), {}),
        (slices([0, 3, 6, 15, 18]), {"missing_slices": {"count": 2, "spacing": "3.00"}}),
        (slices([0, 3, 6.5, 9, 12]), {"uneven_spacing": {"low": "2.50", "high": "3.50"}}),
        (slices([0, 3, 6], InstanceNumber=1), {"duplicate_instance_number": {"count": 1}}),
        (slices([0, 3, 6], ImageOrientationPatient=[0, 1, 0, 0, 0, 1]), {"mixed_orientation": {"count": 2}}),
        (slices([0, 3, 6], Rows=65), {"mixed_size": {"count": 2}}),
        (slices([0, 3, 6], ImagePositionPatient=None), {}),
    ],
)
def test_series(found: list[dicom.Slice], wanted: dict[str, Any]) -> None:
    assert {one.code: dict(one.params) for one in dicom.of_series(found)} == wanted


def test_signals() -> None:
    beat = np.sin(np.linspace(0, 60, 3000)).astype(np.float32)
    flat = beat.copy()
    flat[500:2500] = 0.1
    clipped = np.clip(beat * 3, -1, 1)
    gap = np.where(np.arange(3000) < 9, np.nan, beat).astype(np.float32)
    for channel, code in ((flat, "flat_line"), (clipped, "clipped"), (gap, "not_finite"), (beat * 1e-9, "lead_off")):
        assert codes(arrays.of_signal([beat, channel, beat], [300] * 3, ["I", "II", "III"])) == {code}
    assert codes(arrays.of_signal([beat], [20], ["I"])) == {"low_rate"}
    assert codes(arrays.of_signal([beat, beat], [300, 300], ["I", "II"])) == set()


def test_tables_and_texts() -> None:
    rows = "a,b,c,d,e\n" + "".join(f"{n},{n % 2},x,{'' if n % 3 else n},\n" for n in range(9)) + "0,0,x,0,\n"
    found = {(one.code, one.params.get("column", "")) for one in tables.of_table(io.BytesIO(rows.encode()))}
    assert found == {("missing_values", "d"), ("constant_column", "c"), ("empty_column", "e"), ("duplicate_rows", "")}
    wanted = {
        "a": tables.Wanted("number", 0, 5),
        "c": tables.Wanted("number"),
        "d": tables.Wanted("whole", required=True),
        "z": tables.Wanted(),
    }
    against = {(one.code, one.params["column"]) for one in tables.of_table(io.BytesIO(rows.encode()), wanted) if "column" in one.params}
    assert {("out_of_range", "a"), ("wrong_type", "c"), ("missing_values", "d"), ("missing_column", "z")} <= against
    assert codes(tables.of_text(" \n")) == {"empty_text"}
    assert codes(tables.of_text("结节锟斤拷")) == codes(tables.of_text("Ã©")) == {"damaged_encoding"}
    assert codes(tables.of_text("右肺上叶结节 3 mm")) == set()


def test_every_rule_has_words_and_unknown_ones_are_refused() -> None:
    rules = {code for group in RULES.values() for code in group}
    assert rules == {code for code in catalogue() if code.startswith("quality.")} - {"quality.unknown_rule"}
    assert known(BLOCKING) == BLOCKING
    with pytest.raises(Problem, match="there are"):
        known(["constant_imagee"])


def folder(path: Path) -> Path:
    picture = io.BytesIO()
    Image.fromarray(np.full((50, 50), 9, np.uint8)).save(picture, "PNG")
    again = io.BytesIO()
    with Image.open(io.BytesIO(making.png())) as one:
        one.save(again, "PNG", compress_level=1)
    files = {
        "a.png": making.png(),
        "b.png": making.png(),
        "c.png": again.getvalue(),
        "<b>.png": picture.getvalue(),
        "t1.nii.gz": making.nifti(),
    }
    files |= {"bad.nii": making.nifti(packed=False)[:-9], "night.edf": making.edf(), "x.csv": b"a,b\n1,2\n1,2\n", **making.record()}
    return making.write(path / "data", files)


def test_a_folder_becomes_a_report_and_a_page(tmp_path: Path) -> None:
    report = Report("")
    with opened(folder(tmp_path)) as source:
        made = Inspection(source.name)
        assert list(inspect(made, source)) == list(range(1, len(source.names) + 1))
        report = made.finish()
    found = {code: [one.place for one in places] for code, places in report.places.items()}
    assert found["exact_copy"] == ["b.png"] and found["same_pixels"] == ["c.png"]
    assert "<b>.png" in found["constant_image"] and found["unreadable"] == ["bad.nii"] and found["duplicate_rows"] == ["x.csv"]
    assert report.blocked == 2 and report.clusters == [2]
    for tongue in ("en", "zh"):
        drawn = page(report, tongue)
        assert "<script" not in drawn and "http" not in re.sub(r"http-equiv", "", drawn) and "default-src 'none'" in drawn
        assert "&lt;b&gt;.png" in drawn and "<b>.png" not in drawn and "<svg" in drawn
    assert "质量报告" in page(report, "zh")


def test_the_command_ends_with_one_when_items_are_kept_out(tmp_path: Path) -> None:
    data = str(folder(tmp_path))
    said = CliRunner().invoke(dataset, ["quality", data, "--page", str(tmp_path / "q.html")], standalone_mode=False)
    assert said.return_value == 1 and '"exact_copy"' in said.output and (tmp_path / "q.html").stat().st_mode & 0o77 == 0
    said = CliRunner().invoke(dataset, ["quality", data, "--block", "lead_off"], standalone_mode=False)
    assert said.return_value == 0
    assert isinstance(CliRunner().invoke(dataset, ["quality", data, "--block", "nothing"], standalone_mode=False).exception, Problem)


def test_pictures_with_findings_are_rather_shown() -> None:
    report = Report("x")
    for place in range(50):
        report.picture(str(place), b"", ("clipped",) if place > 45 else ())
    assert [one.place for one in report.pictures if one.codes] == ["46", "47", "48", "49"]
    assert report.add("image", "p", [Finding("clipped", {"share": "3"})]) == ("clipped",) and report.blocked == 0
