"""A folder of everything a hospital has: what is in it by content, what is amiss with its place, and items without their patients."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from pydicom.data import get_testdata_file
from tests.unit.importing import making

from medmesh.cli.data import dataset
from medmesh.errors import Problem
from medmesh.importing.formats import wfdb
from medmesh.importing.formats.files import Files, taken
from medmesh.importing.registry import recognised
from medmesh.importing.sources import opened


def everything() -> dict[str, bytes]:
    return {
        "sub-01/anat/t1.nii.gz": making.nifti(),
        "sub-02/anat/t1.nii": making.nifti(2, packed=False),
        "scan.jpg": making.png("RGBA"),
        "photo.jpeg": making.jpeg(),
        "arrays.npz": making.npz(),
        "plain.npy": making.npy(np.zeros((4, 4))),
        "night.edf": making.edf(),
        "heart.wav": making.wav(),
        "lab.csv": making.table("gb18030", ";"),
        "genome.vcf": making.vcf(),
        **{f"ecg/{name}": data for name, data in making.record().items()},
        "readme.bin": b"\0\1\2 nothing known",
    }


def test_a_folder_of_everything_is_planned_and_taken(tmp_path: Path) -> None:
    with opened(making.write(tmp_path / "data", everything())) as source:
        assert recognised(source).name == "files"
        plan = Files().plan(source)
        assert plan.errors == 0 and plan.items == 13
        assert {(kind, count) for (kind, _), count in plan.counts.items()} == {
            ("volume", 3), ("image", 3), ("signal", 2), ("audio", 1), ("table", 4)
        }  # fmt: skip
        said = {(finding.code, finding.file) for finding in plan.findings}
        assert {("formats.renamed", "scan.jpg"), ("formats.unknown", "readme.bin"), ("formats.carries_identity", "night.edf")} <= said
        assert "MRN0042337" not in str(plan.document()) and "张三" not in str(plan.document("zh"))
        items = {item.key: item for item in Files().items(source)}
        assert items["sub-01/anat/t1.nii.gz"].patient == "01"
        assert items["ecg/r212.hea"].labels == {"age": 63, "sex": "F", "dx": "164889003"}
        assert items["lab.csv#1"].meta["values"] == {"age": "63", "hb": "12.5", "note": 'said "no",\nthen left', "when": "2024-01-02"}
        assert [file.part for file in items["genome.vcf#2"].files] == ["S2"]
        for item in items.values():
            for data in taken(source, item).values():
                assert b"MRN0042337" not in data and b"Zhang" not in data
        record = taken(source, items["ecg/r212.hea"])
        assert len(wfdb.decode(wfdb.read_header(record["ecg/r212.hea"]), {"r212.dat": record["ecg/r212.dat"]})[0]) == 2
        assert Files().plan(source).manifest == plan.manifest


def test_damage_is_said_with_its_file_and_line_and_stops_the_import(tmp_path: Path) -> None:
    record = making.record()
    files = {
        "bad.csv": making.table() + b"1,2\r\n",
        "bad.vcf": making.vcf() + b"chr1\tx\t.\tA\tC\t.\t.\t.\tGT\t0/1\t0/1\n",
        "cut.nii": making.nifti(packed=False)[:-1],
        "r212.hea": record["r212.hea"],
        "short/r212.hea": record["r212.hea"],
        "short/r212.dat": record["r212.dat"][:-1],
        "good.png": making.png(),
    }
    with opened(making.write(tmp_path / "data", files)) as source:
        plan = Files().plan(source)
        places = {(finding.code, finding.place) for finding in plan.findings if finding.severity == "error"}
        assert places == {
            ("formats.damaged", "bad.csv"), ("formats.damaged", "bad.vcf:8"), ("formats.damaged", "cut.nii"),
            ("formats.missing_file", "r212.hea"), ("formats.damaged", "short/r212.dat"),
        }  # fmt: skip
        assert plan.items == 1
        with pytest.raises(Problem, match=r"bad\.csv .*row 3"):
            list(Files().items(source))


def test_a_dicomdir_is_no_item_and_names_what_is_missing(tmp_path: Path) -> None:
    data = Path(str(get_testdata_file("DICOMDIR"))).read_bytes()
    one = Path(str(get_testdata_file("CT_small.dcm"))).read_bytes()
    with opened(making.write(tmp_path / "data", {"DICOMDIR": data, "77654033/CR1/6154": one})) as source:
        plan = Files().plan(source)
        missing = [finding for finding in plan.findings if finding.code == "formats.missing_file"]
        assert plan.items == 1 and missing and not plan.errors
        assert "77654033/CR1/6154" not in {finding.params["reference"] for finding in missing}
        with pytest.raises(Problem, match="edge ingest"):
            taken(source, next(Files().items(source)))


def test_rows_pass_in_constant_memory(tmp_path: Path) -> None:
    lines = [f"{row},{row % 7},{row / 3:.3f},note {row % 100}" for row in range(6_000)]
    for count in (600, 6_000):
        (tmp_path / f"{count}.csv").write_text("id_row,ward,value,note\n" + "\n".join(lines[:count]) + "\n")
    peaks = []
    for count in (600, 6_000):
        with opened(tmp_path / f"{count}.csv") as source:
            tracemalloc.start()
            assert sum(1 for _ in Files().items(source)) == count
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0] + (1 << 18)


def test_dicom_without_a_preamble_is_dicom(tmp_path: Path) -> None:
    names = ("ExplVR_LitEndNoMeta.dcm", "CT_small.dcm", "rtplan.dcm")
    files = {name: Path(str(get_testdata_file(name))).read_bytes() for name in names}
    with opened(making.write(tmp_path / "data", files)) as source:
        assert {item.key for item in Files().items(source)} == set(names)


def test_the_command_writes_files_that_say_nobody_and_names_what_it_left_out(tmp_path: Path) -> None:
    named = {f"{making.NUMBER}/{name}": data for name, data in everything().items()}
    named |= {f"{making.NUMBER}.hea": making.record(16)["r16.hea"].replace(b"r16 ", making.NUMBER.encode() + b" ", 1)}
    named |= {"r16.dat": making.record(16)["r16.dat"], "ct.dcm": Path(str(get_testdata_file("CT_small.dcm"))).read_bytes()}
    folder = making.write(tmp_path / "data", named)
    said = CliRunner().invoke(dataset, ["clean", str(folder), str(tmp_path / "out")], standalone_mode=False)
    shown = json.loads(said.stdout)
    assert said.return_value == 1 and sorted(shown["left_out"]) == [f"{making.NUMBER}/readme.bin", "ct.dcm"]
    written = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert sorted({name for names in shown["files"].values() for name in names}) == sorted(written)
    for name, data in written.items():
        for word in (making.NUMBER, "Zhang", "张三"):
            assert word not in name and word.encode() not in data and word.encode("gb18030") not in data
    with opened(tmp_path / "out") as source:
        plan = Files().plan(source)
        assert plan.errors == 0 and not [one for one in plan.findings if one.code == "formats.carries_identity"]
        with opened(folder) as before:
            kept = {kind: count for (kind, _), count in Files().plan(before).counts.items()}
        kept["image"] -= 1  # DICOM
        assert {kind: count for (kind, _), count in plan.counts.items()} == kept
