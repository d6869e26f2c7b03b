"""The ten public sets: recognised by themselves, counted exactly, and a damaged one names the file and the line or key at fault."""

from __future__ import annotations

import gzip
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.unit.importing import layouts
from tests.unit.importing.layouts import nifti, npz, put

from medmesh.errors import Problem
from medmesh.importing import registry
from medmesh.importing.port import Plan
from medmesh.importing.sets import medmnist
from medmesh.importing.sets.mimic3 import tables
from medmesh.importing.sources import opened

COUNTS: dict[str, dict[str, Any]] = {
    "mimic3": {"items": 11, "units": 2, "pending": 0, "counts": {("events", ""): 9, ("table", ""): 1, ("text", ""): 1}},
    "mura": {"items": 4, "units": 2, "pending": 0, "counts": {("image", "train"): 3, ("image", "valid"): 1}},
    "ctpelvic1k": {"items": 4, "units": 3, "pending": 2, "counts": {("mask", ""): 2, ("volume", ""): 2}},
    "ctspine1k": {
        "items": 4,
        "units": 4,
        "pending": 1,
        "counts": {("mask", ""): 1, ("volume", "train"): 1, ("volume", "test_public"): 1, ("volume", "test_private"): 1},
    },
    "ribseg": {"items": 4, "units": 4, "pending": 1, "counts": {("mask", ""): 1, ("volume", "train"): 2, ("volume", "val"): 1}},
    "decathlon": {"items": 4, "units": 4, "pending": 0, "counts": {("volume", "train"): 3, ("volume", "test"): 1}},
    "medmnist": {"items": 11, "units": 0, "pending": 0, "counts": {("image", "train"): 6, ("image", "val"): 2, ("image", "test"): 3}},
    "pmcvqa": {
        "items": 7,
        "units": 2,
        "pending": 2,
        "counts": {("question", "train"): 3, ("question", "test"): 3, ("question", "test_clean"): 1},
    },
    "medmd": {
        "items": 10,
        "units": 9,
        "pending": 7,
        "counts": {
            ("image", "train"): 4,
            ("question", "train"): 1,
            ("question", "test"): 2,
            ("text", "train"): 2,
            ("volume", "train"): 1,
        },
    },
    "sammed3d": {"items": 4, "units": 3, "pending": 0, "counts": {("volume", "train"): 2, ("volume", "val"): 2}},
}
LABELS: dict[str, dict[str, Any]] = {
    "mimic3": {"table": {"CHARTEVENTS": {"": 2}, "NOTEEVENTS": {"": 1}}},
    "mura": {"abnormal": {"0": {"train": 1, "valid": 1}, "1": {"train": 2}}},
    "ctpelvic1k": {"source": {"CLINIC": {"": 1}, "CLINIC-metal": {"": 1}, "COLONOG": {"": 2}}},
    "ctspine1k": {"source": {"colon": {"train": 1}, "liver": {"test_public": 1}}},
    "ribseg": {"fractures": {"non-displaced": {"train": 1}, "unknown type": {"train": 1}}},
    "decathlon": {"task": {"Spleen": {"train": 2, "test": 1}, "Dataset005_Prostate": {"train": 1}}},
    "medmnist": {"class": {"normal": {"train": 3, "val": 1, "test": 2}, "pneumonia": {"train": 3, "val": 1, "test": 1}}},
    "pmcvqa": {"answer": {"B": {"train": 2, "test": 2, "test_clean": 1}}},
    "medmd": {"label": {"normal": {"train": 1}, "yes": {"test": 1}}},
    "sammed3d": {"class": {"liver": {"train": 1, "val": 1}, "adrenal": {"train": 1}}},
}


def planned(root: Path) -> Plan:
    with opened(root) as source:
        importer = registry.recognised(source)
        plan = importer.plan(source)
        if not plan.errors:
            assert sum(1 for _ in importer.items(source)) == plan.items
        return plan


@pytest.mark.parametrize("name", sorted(COUNTS))
def test_a_set_is_known_and_counted(tmp_path: Path, name: str) -> None:
    getattr(layouts, name)(tmp_path)
    plan = planned(tmp_path)
    assert plan.importer == name
    assert [finding.problem().detail() for finding in plan.findings if finding.severity == "error"] == []
    assert {key: getattr(plan, key) for key in COUNTS[name]} == COUNTS[name]
    for label, values in LABELS[name].items():
        assert {value: plan.labels[label].get(value) for value in values} == values
    assert plan.licence
    # As it is downloaded: one archive. What is in it is the same, and so is the manifest.
    with zipfile.ZipFile(tmp_path.parent / f"{name}.zip", "w") as archive:
        for path in sorted(tmp_path.rglob("*")):
            if path.is_file():
                archive.write(path, path.relative_to(tmp_path).as_posix())
    assert planned(tmp_path.parent / f"{name}.zip").manifest == plan.manifest


def test_a_published_count_that_differs_is_said_and_no_error(tmp_path: Path) -> None:
    layouts.mura(tmp_path)
    (found,) = planned(tmp_path).findings
    assert (found.code, found.severity) == ("importing.count", "warning")
    assert "14656 studies are published, 3 are here" in found.problem().detail()


def test_a_patient_in_two_published_splits_is_said(tmp_path: Path) -> None:
    layouts.pmcvqa(tmp_path)
    leaks = [finding for finding in planned(tmp_path).findings if finding.code == "importing.leak"]
    assert [dict(leak.params) for leak in leaks] == [{"units": 1, "of": 2}]  # PMC1; the clean part of the test part is no other side
    for name in ("train_2.csv", "test_2.csv"):
        (tmp_path / name).unlink()
    assert "importing.leak" not in {finding.code for finding in planned(tmp_path).findings}


def edit(name: str, old: str, new: str) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        path = root / name
        packed = name.endswith(".gz")
        text = (gzip.decompress(path.read_bytes()) if packed else path.read_bytes()).decode()
        assert old in text
        data = text.replace(old, new, 1).encode()
        path.write_bytes(gzip.compress(data) if packed else data)

    return damage


def give(name: str, data: bytes | str) -> Callable[[Path], None]:
    return lambda root: put(root, name, data)


def drop(name: str) -> Callable[[Path], None]:
    return lambda root: (root / name).unlink()


def cut(name: str) -> Callable[[Path], None]:
    return lambda root: (root / name).write_bytes((root / name).read_bytes()[:-12])


SPINE, PELVIS = "CTSpine1K/label/Liver/liver_0_seg.nii.gz", "ipcai2021_dataset6_Anonymized/dataset6_CLINIC_0001_mask_4label.nii.gz"
SPLEEN, SAM = "Task09_Spleen/dataset.json", "data/medical_preprocessed/liver/ct_WORD"
DAMAGES: dict[str, list[tuple[Callable[[Path], None], str, str]]] = {
    "mimic3": [
        (edit("PATIENTS.csv", ",F,", ",,"), "value", "PATIENTS.csv:2"),
        (edit("PATIENTS.csv", "2090-01-01", "2090-1-1"), "value", "PATIENTS.csv:2"),
        (edit("PATIENTS.csv", "GENDER", "SEX"), "column", "PATIENTS.csv:1"),
        (edit("ADMISSIONS.csv", "2,1,100", "2,1"), "cells", "ADMISSIONS.csv:3"),
        (edit("NOTEEVENTS.csv", '1,"two\nlines, ""quoted"""', '1,"two\nlines, ""quoted""'), "csv", "NOTEEVENTS.csv:5"),
        (cut("CHARTEVENTS.csv.gz"), "unreadable", "CHARTEVENTS.csv.gz"),
        (give("LABEVENTS.csv.gz", b"\x1f\x8b"), "twice", "LABEVENTS.csv.gz"),
        (give("D_ITEMS.csv", b"ROW_ID,\xb2\xe2\n"), "csv", "D_ITEMS.csv:1"),
    ],
    "mura": [
        (edit("MURA-v1.1/train_labeled_studies.csv", "/,1", "/,2"), "value", "MURA-v1.1/train_labeled_studies.csv:1"),
        (edit("MURA-v1.1/train_labeled_studies.csv", "/,1", "/,0"), "contradiction", "MURA-v1.1/train_labeled_studies.csv:1"),
        (edit("MURA-v1.1/train_image_paths.csv", "image2", "image9"), "named_missing", "MURA-v1.1/train_image_paths.csv:2"),
        (edit("MURA-v1.1/train_image_paths.csv", "image2", "image1"), "twice", "MURA-v1.1/train_image_paths.csv:2"),
        (edit("MURA-v1.1/valid_image_paths.csv", "XR_HAND", "XR_NOSE"), "value", "MURA-v1.1/valid_image_paths.csv:1"),
        (give("MURA-v1.1/train/XR_WRIST/patient00001/study1_negative/image1.png", b"GIF89a"), "format", "image1.png"),
        (give("MURA-v1.1/valid_image_paths.csv", ""), "unpaired", "MURA-v1.1/valid_labeled_studies.csv:1"),
    ],
    "ctpelvic1k": [
        (give(PELVIS, nifti(4, 4, 9)), "grid", PELVIS),
        (give(PELVIS, gzip.compress(b"no volume" * 99)), "format", PELVIS),
        (give(PELVIS, b"\x1f\x8b\x08\0"), "unreadable", PELVIS),
        (drop(PELVIS), "unpaired", "CTPelvic1K_dataset6_data/dataset6_CLINIC_0001_data.nii.gz"),
        (give("dataset9_x_mask_4label.nii.gz", nifti(1, 1, 1)), "value", "dataset9_x_mask_4label.nii.gz"),
    ],
    "ctspine1k": [
        (edit("CTSpine1K/data_split.txt", "test_public:", "test_secret:"), "value", "CTSpine1K/data_split.txt:4"),
        (edit("CTSpine1K/data_split.txt", "liver_9", "liver_0"), "twice", "CTSpine1K/data_split.txt:6"),
        (edit("CTSpine1K/data_split.txt", "liver_9.nii.gz", "liver_9"), "value", "CTSpine1K/data_split.txt:6"),
        (give(SPINE, nifti(3, 3, 5)), "grid", SPINE),
        (drop(SPINE), "unpaired", "CTSpine1K/data/liver/liver_0.nii.gz"),
    ],
    "ribseg": [
        (give("cl/RibFrac2.npz", npz(cl=np.zeros((24, 400, 3)))), "json_key", "cl/RibFrac2.npz[cl]"),
        (give("cl/RibFrac2.npz", npz(cl=np.array([{}], dtype=object))), "pickled", "cl/RibFrac2.npz[cl]"),
        (give("cl/RibFrac2.npz", b"PK\3\4"), "unreadable", "cl/RibFrac2.npz"),
        (drop("seg/RibFrac2-rib-seg.nii.gz"), "unpaired", "cl/RibFrac2.npz"),
        (edit("ribfrac-train-info.csv", "RibFrac1,2,-1", "RibFrac1,2,7"), "value", "ribfrac-train-info.csv:4"),
    ],
    "decathlon": [
        (edit(SPLEEN, '"modality": {"0": "CT"}', '"modality": 1'), "json_key", f"{SPLEEN}[modality]"),
        (edit(SPLEEN, '"1": "spleen"', '"1": 2.5'), "json_key", f"{SPLEEN}[labels.1]"),
        (edit(SPLEEN, '"numTraining": 2', '"numTraining": 3'), "contradiction", f"{SPLEEN}[numTraining]"),
        (edit(SPLEEN, '"numTraining": 2,', '"numTraining": 2;'), "json", f"{SPLEEN}:1"),
        (drop("Task09_Spleen/labelsTr/spleen_3.nii.gz"), "named_missing", f"{SPLEEN}[training[1]]"),
        (drop("Task09_Spleen/imagesTs/spleen_1.nii.gz"), "named_missing", f"{SPLEEN}[test[0]]"),
        (give("Task09_Spleen/labelsTr/spleen_3.nii.gz", nifti(4, 4, 4)), "grid", "Task09_Spleen/labelsTr/spleen_3.nii.gz"),
        (drop("Dataset005_Prostate/imagesTr/prostate_00_0001.nii.gz"), "unpaired", "prostate_00_0000.nii.gz"),
    ],
    "medmnist": [
        (cut("pneumoniamnist.npz"), "unreadable", "pneumoniamnist.npz"),
        (lambda root: layouts.medmnist(root, classes=3), "value", "pneumoniamnist.npz[train_labels[2]]"),
        (lambda root: layouts.medmnist(root, columns=2), "json_key", "pneumoniamnist.npz[train_labels]"),
        (give("pneumoniamnist.npz", npz(train_images=np.zeros((1, 28, 28), np.uint8))), "json_key", "pneumoniamnist.npz[train_labels]"),
    ],
    "pmcvqa": [
        (edit("train.csv", ",B\n", ",E\n"), "value", "train.csv:2"),
        (edit("train.csv", "PMC1_a-g002_3", "x"), "value", "train.csv:4"),
        (edit("train.csv", "PMC1_a-g002_3", "PMC1_a-g002_4"), "named_missing", "train.csv:4"),
        (edit("train_2.csv", ",split", ""), "column", "train_2.csv:1"),
    ],
    "medmd": [
        (edit("filtered_case_report_test.csv", "['F1', 'F2']", "__import__('os').abort()"), "value", "filtered_case_report_test.csv:2"),
        (edit("filtered_case_report_test.csv", "['F1', 'F2']", "[1]"), "value", "filtered_case_report_test.csv:2"),
        (edit("chestxray_balance_train_new.csv", "normal", ""), "value", "chestxray_balance_train_new.csv:3"),
        (edit("vqarad_train.csv", "Figure_path", "Figure"), "value", "vqarad_train.csv:1"),
        (edit("paper_train.csv", "PMC8", "PMC88"), "named_missing", "paper_train.csv:2"),
        (edit("papers/PMC8.json", '"img_ref": []', '"img_ref": 1'), "json_key", "papers/PMC8.json[[1]]"),
        (edit("radiopaedia_train.json", "finding", "findings"), "json_key", "radiopaedia_train.json[[0]]"),
    ],
    "sammed3d": [
        (drop(f"{SAM}/labelsTr/word_0025.nii.gz"), "unpaired", f"{SAM}/imagesTr/word_0025.nii.gz"),
        (drop(f"{SAM}/imagesVa/word_0026.nii.gz"), "unpaired", f"{SAM}/labelsVa/word_0026.nii.gz"),
        (give(f"{SAM}/labelsTr/word_0025.nii.gz", nifti(4, 4, 3)), "grid", f"{SAM}/labelsTr/word_0025.nii.gz"),
    ],
}


@pytest.mark.parametrize(("name", "place"), [(name, place) for name in sorted(DAMAGES) for place in range(len(DAMAGES[name]))])
def test_damage_is_found_where_it_is(tmp_path: Path, name: str, place: int) -> None:
    damage, code, at = DAMAGES[name][place]
    getattr(layouts, name)(tmp_path)
    damage(tmp_path)
    with opened(tmp_path) as source:
        importer = registry.named(name)
        plan = importer.plan(source)
        errors = [(finding.code, finding.place) for finding in plan.findings if finding.severity == "error"]
        assert errors
        assert errors[0][0] == f"importing.{code}"
        assert errors[0][1].endswith(at)
        with pytest.raises(Problem) as stopped:
            list(importer.items(source))
        assert stopped.value.code == errors[0][0]


def test_the_table_of_medmnist_is_the_published_one() -> None:
    flags = medmnist.flags()
    assert len(flags) == 18
    totals = {name: sum(flag.samples.values()) for name, flag in flags.items()}
    assert totals["chestmnist"] == 112_120  # every image of NIH ChestXray14
    assert totals["pathmnist"] == 100_000 + 7_180  # NCT-CRC-HE-100K and CRC-VAL-HE-7K
    assert totals["breastmnist"] == 780  # BUSI
    assert all(len(flag.md5) == (2 if name.endswith("3d") else 4) for name, flag in flags.items())
    assert flags["breastmnist"].classes[0] == "malignant"
    assert flags["organamnist"].classes != flags["organmnist3d"].classes
    assert {name for name, flag in flags.items() if "NC" in flag.licence} == {"dermamnist"}


@pytest.mark.parametrize(
    ("flag", "side", "columns", "classes"), [("chestmnist", 28, 14, 2), ("pathmnist", 64, 1, 9), ("organmnist3d", 28, 1, 11)]
)
def test_every_form_of_medmnist(tmp_path: Path, flag: str, side: int, columns: int, classes: int) -> None:
    layouts.medmnist(tmp_path, flag, side=side, columns=columns, classes=classes)
    plan = planned(tmp_path)
    assert (plan.items, plan.errors) == (11, 0)
    assert {kind for kind, _ in plan.counts} == {"volume" if flag.endswith("3d") else "image"}
    if flag == "chestmnist":
        assert plan.labels["findings"]["cardiomegaly"] == {"train": 6, "val": 2, "test": 3}


def test_mimic_knows_its_tables_and_keeps_zeros(tmp_path: Path) -> None:
    assert len(tables()) == 26
    assert tables()["ADMISSIONS"].filled >= {"ADMITTIME", "ETHNICITY"}
    assert "HADM_ID" not in tables()["CHARTEVENTS"].filled
    layouts.mimic3(tmp_path)
    with opened(tmp_path) as source:
        items = list(registry.named("mimic3").items(source))
    codes = [item.meta["ICD9_CODE"] for item in items if item.labels["table"] == "DIAGNOSES_ICD"]
    assert codes == ["0389", "0389"]
    (note,) = (item for item in items if item.kind == "text")
    assert note.meta["TEXT"] == 'two\nlines, "quoted"'
    assert note.patient == "2"


def test_figures_are_found_in_the_zip_they_are_shipped_in(tmp_path: Path) -> None:
    layouts.pmcvqa(tmp_path)
    figures = sorted((tmp_path / "images/figures").iterdir())
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for figure in figures:
            archive.write(figure, f"images/figures/{figure.name}")
            figure.unlink()
    with opened(tmp_path) as source:
        item = next(iter(registry.recognised(source).items(source)))
    assert (item.files[0].name, item.files[0].part) == ("images.zip", "images/figures/PMC2_b-g001_1.jpg")
