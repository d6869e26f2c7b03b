"""The ten public sets in small: their published layouts, synthetic content. Each function fills an empty folder."""

from __future__ import annotations

import csv
import gzip
import io
import json
import struct
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010800000000376ef9240000000a49444154789c6360000000020001e221bc330000000049454e44ae426082"
)


def put(root: Path, name: str, data: bytes | str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)


def nifti(*shape: int) -> bytes:
    """A gzipped NIfTI-1 volume of zeros, uint8."""
    header = bytearray(352)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, len(shape), *shape, *([1] * (7 - len(shape))))
    struct.pack_into("<hh", header, 70, 2, 8)
    struct.pack_into("<f", header, 108, 352.0)
    header[344:348] = b"n+1\0"
    return gzip.compress(bytes(header) + bytes(int(np.prod(shape))), mtime=0)


def sheet(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([header, *rows] if header else rows)
    return text.getvalue()


def npz(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def mimic3(root: Path, rows: int = 3) -> None:
    """Eight of the 26 tables, csv and csv.gz; a chart event and a note are marked as errors."""
    from medmesh.importing.sets.mimic3 import tables

    when = "2150-01-01 10:00:00"

    def line(table: str, number: int, **values: object) -> list[object]:
        made = {"ROW_ID": number, "SUBJECT_ID": 1 + number % 2, "HADM_ID": 100 + number % 2, **values}
        forms = {"i": 0, "t": when, "f": 1.5, "": "x"}
        about = tables()[table]
        filled = {column: forms[about.forms.get(column, "")] for column in about.filled}
        return [{**filled, **made}.get(column, "") for column in about.columns]

    def write(table: str, lines: list[list[object]], *, packed: bool = False) -> None:
        text = sheet(tables()[table].columns, lines).encode()
        put(root, f"{table}.csv.gz" if packed else f"{table}.csv", gzip.compress(text) if packed else text)

    write("PATIENTS", [line("PATIENTS", n, GENDER="F", DOB="2090-01-01 00:00:00", EXPIRE_FLAG=0) for n in (1, 2)])
    write("ADMISSIONS", [line("ADMISSIONS", n) for n in (1, 2)])
    write("D_ITEMS", [line("D_ITEMS", 1, ITEMID=220045, LABEL="Heart Rate")])
    write("DIAGNOSES_ICD", [line("DIAGNOSES_ICD", n, SEQ_NUM=1, ICD9_CODE="0389") for n in (1, 2)])
    events = [
        line("CHARTEVENTS", n, HADM_ID="", ITEMID=220045, CHARTTIME=when, VALUE="80", VALUENUM=80, ERROR=int(n == 2))
        for n in range(1, rows + 1)
    ]
    write("CHARTEVENTS", events, packed=True)
    notes = [line("NOTEEVENTS", n, TEXT='two\nlines, "quoted"', ISERROR="1" if n == 2 else "") for n in (1, 2)]
    write("NOTEEVENTS", notes)
    write("LABEVENTS", [line("LABEVENTS", 1, HADM_ID="", ITEMID=50912, VALUENUM=".9")])


def mura(root: Path) -> None:
    studies = {
        "train": [("XR_SHOULDER/patient00001/study1_positive", 1, 2), ("XR_WRIST/patient00001/study1_negative", 0, 1)],
        "valid": [("XR_HAND/patient00002/study1_negative", 0, 1)],
    }
    top = "MURA-v1.1"
    for split, all_of in studies.items():
        images = [f"{top}/{split}/{study}/image{n}.png" for study, _, count in all_of for n in range(1, count + 1)]
        for image in images:
            put(root, image, PNG)
        put(root, f"{top}/{split}_image_paths.csv", sheet((), [(image,) for image in images]))
        lines = [(f"{top}/{split}/{study}/", label) for study, label, _ in all_of]
        put(root, f"{top}/{split}_labeled_studies.csv", sheet((), lines))


def ctpelvic1k(root: Path) -> None:
    put(root, "CTPelvic1K_dataset6_data/dataset6_CLINIC_0001_data.nii.gz", nifti(4, 4, 3))
    put(root, "ipcai2021_dataset6_Anonymized/dataset6_CLINIC_0001_mask_4label.nii.gz", nifti(4, 4, 3))
    put(root, "CTPelvic1K_dataset7_data/dataset7_CLINIC_metal_0000_data.nii.gz", nifti(4, 4, 2))
    put(root, "CTPelvic1K_dataset7_mask/CLINIC_metal_0000_mask_4label.nii.gz", nifti(4, 4, 2))
    colon = "CTPelvic1K_dataset2_mask_mappingback/dataset2_1.3.6.1.4.1.9328.50.4.0001_{}_325_mask_4label.nii.gz"
    put(root, colon.format(3), nifti(4, 4, 5))
    put(root, colon.format(4), nifti(4, 4, 5))
    put(root, "splits_final.pkl", b"\x80\x04N.")


def ctspine1k(root: Path) -> None:
    top = "CTSpine1K"
    pairs = {
        "colon/1.3.6.1.4.1.9328.50.4.0001": "conlon/1.3.6.1.4.1.9328.50.4.0001",
        "liver/liver_0": "Liver/liver_0",
        "COVID-19/volume-covid19-A-0003_ct": "COVID-19/volume-covid19-A-0003_ct",
    }
    for image, mask in pairs.items():
        put(root, f"{top}/data/{image}.nii.gz", nifti(3, 3, 4))
        put(root, f"{top}/label/{mask}_seg.nii.gz", nifti(3, 3, 4))
    put(root, f"{top}/label/Verse/verse004_seg.nii.gz", nifti(3, 3, 4))
    lists = "trainset:\n1.3.6.1.4.1.9328.50.4.0001.nii.gz\n\ntest_public:\nliver_0.nii.gz\nliver_9.nii.gz\n\ntest_private:\n"
    put(root, f"{top}/data_split.txt", lists + "volume-covid19-A-0003_ct.nii.gz\n")
    put(root, f"{top}/Path.csv", "CT COLONOGRAPHY/1.3.6.1.4.1.9328.50.4.0001\n")


def ribseg(root: Path) -> None:
    for number, split in ((1, "train"), (2, "train"), (421, "val")):
        put(root, f"ribfrac-{split}-images/RibFrac{number}-image.nii.gz", nifti(4, 4, 3))
        put(root, f"seg/RibFrac{number}-rib-seg.nii.gz", nifti(4, 4, 3))
        put(root, f"cl/RibFrac{number}.npz", npz(cl=np.zeros((24, 500, 3))))
    put(root, "seg/RibFrac501-rib-seg.nii.gz", nifti(4, 4, 3))
    rows = [("RibFrac1", 0, 0), ("RibFrac1", 1, 2), ("RibFrac1", 2, -1), ("RibFrac2", 0, 0)]
    put(root, "ribfrac-train-info.csv", sheet(("public_id", "label_id", "label_code"), rows))


def decathlon(root: Path) -> None:
    """Task 09 as published, with what macOS leaves; and a task in the form of nnU-Net v2 with two channels."""
    top = "Task09_Spleen"
    for name in ("imagesTr/spleen_2", "labelsTr/spleen_2", "imagesTr/spleen_3", "labelsTr/spleen_3", "imagesTs/spleen_1"):
        put(root, f"{top}/{name}.nii.gz", nifti(4, 4, 3))
        put(root, f"{top}/{name.replace('/', '/._')}.nii.gz", b"\0\5\x16\7")
    about = {
        "name": "Spleen",
        "licence": "CC-BY-SA 4.0",
        "tensorImageSize": "3D",
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "spleen"},
        "numTraining": 2,
        "numTest": 1,
        "training": [{"image": f"./imagesTr/spleen_{n}.nii.gz", "label": f"./labelsTr/spleen_{n}.nii.gz"} for n in (2, 3)],
        "test": ["./imagesTs/spleen_1.nii.gz"],
    }
    put(root, f"{top}/dataset.json", json.dumps(about))
    top = "Dataset005_Prostate"
    for channel in ("0000", "0001"):
        put(root, f"{top}/imagesTr/prostate_00_{channel}.nii.gz", nifti(4, 4, 2))
    put(root, f"{top}/labelsTr/prostate_00.nii.gz", nifti(4, 4, 2))
    other = {
        "channel_names": {"0": "T2", "1": "ADC"},
        "labels": {"background": 0, "PZ": 1, "TZ": 2},
        "numTraining": 1,
        "file_ending": ".nii.gz",
    }
    put(root, f"{top}/dataset.json", json.dumps(other))


def sevens(shape: tuple[int, ...]) -> np.ndarray:
    return np.full(shape, 7, np.uint8)


def medmnist(
    root: Path,
    flag: str = "pneumoniamnist",
    *,
    side: int = 28,
    columns: int = 1,
    classes: int = 2,
    fill: Callable[[tuple[int, ...]], np.ndarray] = sevens,
) -> None:
    arrays: dict[str, np.ndarray] = {}
    for split, count in (("train", 6), ("val", 2), ("test", 3)):
        shape = (side,) * (3 if flag.endswith("3d") else 2) + ((3,) if flag == "pathmnist" else ())
        arrays[f"{split}_images"] = fill((count, *shape))
        arrays[f"{split}_labels"] = (np.arange(count * columns) % classes).reshape(count, columns).astype(np.uint8)
    put(root, f"{flag}.npz" if side == 28 else f"{flag}_{side}.npz", npz(**arrays))


V1 = ("Figure_path", "Question", "Answer", "Choice A", "Choice B", "Choice C", "Choice D", "Answer_label")
V2 = ("index", "Figure_path", "Caption", "Question", "Choice A", "Choice B", "Choice C", "Choice D", "Answer", "split")


def pmcvqa(root: Path) -> None:
    def asked(figure: str) -> tuple[str, ...]:
        return (figure, "What is\nshown?", " B: heart", " A:lung ", "B: heart", " C : bone", "D:skin", "B")

    first, second, third = "PMC1_a-g001_1.jpg", "PMC1_a-g002_3.jpg", "PMC2_b-g001_1.jpg"
    put(root, "train.csv", sheet(V1, [asked(first), asked(second)]))
    put(root, "test.csv", sheet(V1, [asked(third), asked(third)]))
    put(root, "test_clean.csv", sheet(V1, [asked(third)]))
    choices = ("A:lung", "B:heart", "C:bone", "D:skin")
    put(root, "train_2.csv", sheet(V2, [(0, "PMC1_F1.jpg", "A figure.", "What?", *choices, "A", "train")]))
    put(root, "test_2.csv", sheet(V2, [(0, "PMC1_F2.jpg", "A figure.", "What?", *choices, "D", "test")]))
    for figure in (first, second, third):
        put(root, f"images/figures/{figure}", b"\xff\xd8\xff\xe0")


def medmd(root: Path) -> None:
    put(
        root,
        "chestxray_balance_train_new.csv",
        sheet(("image_path", "label"), [("/mnt/x/cxr1.png", "pneumonia"), ("/mnt/x/cxr2.png", "normal")]),
    )
    put(root, "pcxr_balance_test.csv", sheet(("image_path", "disease", "label"), [("/mnt/x/cxr3.png", "effusion", "yes")]))
    put(
        root, "vqarad_train.csv", sheet(("img_root_dir", "Figure_path", "Question", "Answer"), [("/mnt/v", "synpic1.jpg", "Normal?", "no")])
    )
    put(root, "pmcoa_image_caption_train.csv", sheet(("PMC_ID", "Figure_path", "Caption"), [("PMC7", "PMC7_F1.jpg", "A scan.")]))
    put(root, "paper_train.csv", sheet(("PMC_path",), [("/mnt/papers/PMC8.json",)]))
    put(root, "papers/PMC8.json", json.dumps([{"text": "See <img>.", "img_ref": ["F1", "F2"]}, {"text": "No.", "img_ref": []}]))
    cases = ("PMC_id", "img_ref", "context", "question", "answer")
    put(root, "filtered_case_report_test.csv", sheet(cases, [("PMC9", "['F1', 'F2']", "A man.", "Q: What?", "A: That.")]))
    put(root, "MedPix_multi_train.csv", sheet(("name", "type", "context", "history"), [("a.png, b.png", "CT", "head", "fall")]))
    put(root, "radiopaedia_train.json", json.dumps([{"pre": "p", "npy_path": "/mnt/r/9/1.npy", "finding": "none"}]))
    put(root, "images/cxr1.png", PNG)
    put(root, "images/cxr2.png", PNG)


def sammed3d(root: Path) -> None:
    top = "data/medical_preprocessed"
    for place in ("adrenal/ct_WORD", "liver/ct_WORD"):
        for what in ("images", "labels"):
            put(root, f"{top}/{place}/{what}Tr/word_0025.nii.gz", nifti(4, 4, 4))
    for what in ("images", "labels"):
        put(root, f"{top}/liver/ct_WORD/{what}Va/word_0026.nii.gz", nifti(4, 4, 4))
        put(root, f"{top}/brain/mr_ISLES/{what}Va/sub_1.nii.gz", nifti(4, 4, 4))
