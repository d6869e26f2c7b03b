"""Whatever file a hospital has comes into a node's data set: by content, de-identified, once, and as a worker reads it."""

from __future__ import annotations

import asyncio
import csv
import gzip
import io
import json
import struct
import wave
import zipfile
from collections.abc import AsyncIterator
from datetime import date
from pathlib import Path
from typing import Any

import edfio
import nibabel
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from sqlalchemy import select
from tests.integration.test_forget import ALONE, everything, key_of, prepare, records
from tests.packages import tiny
from tests.unit.importing import making

from medmesh.cli.edge import edge
from medmesh.contracts.data import DataSchema, ImageSchema, SignalSchema, TableSchema, VolumeSchema
from medmesh.errors import Problem
from medmesh.imaging.reading import wrap
from medmesh.learning import isolation, weights
from medmesh.learning.host import worker
from medmesh_edge import forgetting, intake, quality, samples
from medmesh_edge.ethics import Approval, record
from medmesh_edge.policy import DEFAULT
from medmesh_edge.ports import Site, site
from medmesh_edge.tables import items

CLASSES = ("none", "tumour")
PEOPLE = 6
NAME, NUMBER = "Kanary", "PIDKANARY"
"""In each header and each file's name; whose file it is stands in labels.csv alone."""


def volume(who: int) -> bytes:
    """A packed NIfTI file that names somebody in its text fields, in an extension and in the gzip header."""
    values = np.random.default_rng(who).integers(-900, 1200, (9, 8, 7)).astype(np.int16)
    scan = nibabel.Nifti1Image(values, np.diag([1.5, 1.5, 3.0, 1.0]))
    scan.header["descrip"], scan.header["aux_file"] = f"{NAME}^San {who}".encode(), f"{NUMBER}{who}".encode()
    scan.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", f"{NAME} {NUMBER}{who}".encode()))
    made = io.BytesIO()
    with gzip.GzipFile(f"{NUMBER}{who}.nii", "wb", fileobj=made, mtime=1_700_000_000) as file:
        file.write(scan.to_bytes())
    return made.getvalue()


def recording(who: int) -> bytes:
    dice = np.random.default_rng(who)
    signals = [edfio.EdfSignal(dice.normal(size=500) * 90, 250, label=label, physical_dimension="uV") for label in ("EEG Fpz-Cz", "EOG")]
    patient = edfio.Patient(code=f"{NUMBER}{who}", sex="F", birthdate=date(1951, 5, 2), name=f"{NAME}_San{who}")
    about = edfio.Recording(startdate=date(2024, 3, 4), hospital_administration_code="ADM7788", investigator_technician_code=f"{NAME}_Si")
    notes = [edfio.EdfAnnotation(0.5, 1, "Sleep stage W"), edfio.EdfAnnotation(1.25, None, f"{NAME} coughs")]
    made = io.BytesIO()
    edfio.Edf(signals, patient=patient, recording=about, annotations=notes).write(made)
    return made.getvalue()


def record_of(who: int) -> dict[str, bytes]:
    """A WFDB record whose name, start and comments are somebody's."""
    time = np.arange(720)
    values = np.stack([np.sin(time / (20 + who)) * 500, np.cos(time / (20 + who)) * 700]).astype("<i2").T
    stem = f"{NUMBER}{who}"
    lines = [f"{stem} 2 360 720 12:30:00 02/05/1951"]
    for lead, row in zip(("MLII", "V5"), values.T, strict=True):
        checksum = (int(row.astype(np.int64).sum()) + 32768) % 65536 - 32768
        lines.append(f"{stem}.dat 16 200(0)/mV 16 0 {int(row[0])} {checksum} 0 {lead}")
    lines.append(f"# {NAME} San, {NUMBER}{who}, tel 13800138000")
    return {f"{stem}.hea": ("\n".join(lines) + "\n").encode(), f"{stem}.dat": values.tobytes()}


def sound(who: int) -> bytes:
    plain = io.BytesIO()
    with wave.open(plain, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(4000)
        file.writeframes(np.random.default_rng(who).integers(-9000, 9000, 4000, dtype=np.int16).tobytes())
    said = b"INFOIART" + struct.pack("<I", 12) + f"{NUMBER}{who}".ljust(12).encode()[:12]
    data = plain.getvalue() + b"LIST" + struct.pack("<I", len(said)) + said
    return b"RIFF" + struct.pack("<I", len(data) - 8) + data[8:]


def image(who: int) -> bytes:
    pixels = np.random.default_rng(who).integers(0, 200, (32, 32)).astype(np.uint8)
    about = {"study_uid": f"2.25.{100 + who}", "series_uid": f"2.25.{200 + who}", "sop_uid": f"2.25.{300 + who}", "study_date": "20240102"}
    named = {"patient_id": f"{NUMBER}{who}", "patient_name": f"{NAME}^San", "modality": "MR"}
    return wrap(Image.fromarray(pixels), extra={}, **about, **named)


def hospital(folder: Path) -> Path:
    """One of each format for each of a few people, in folders and under names that say who they are."""
    files: dict[str, bytes] = {}
    rows = ["file,label,split,patient,modality"]
    for who in range(PEOPLE):
        label, split, patient = CLASSES[who % 2], "test" if who > 3 else "train", f"{NUMBER}{who}"
        array = np.random.default_rng(who).normal(size=(6, 6, 6)).astype(np.float32)
        mine = {
            f"vol/{NUMBER}{who}.nii.gz": (volume(who), "MR"),
            f"eeg/{NAME}{who}.edf": (recording(who), ""),
            f"heart/{NAME}{who}.wav": (sound(who), ""),
            f"arrays/{NUMBER}{who}.npy": (making.npy(array) + f"{NUMBER}{who}".encode(), "CT"),
        }
        files |= {name: data for name, (data, _) in mine.items()} | {f"dcm/{who}.dcm": image(who)}
        files |= {f"ecg/{name}": data for name, data in record_of(who).items()}
        rows += [f"{name},{label},{split},{patient},{modality}" for name, (_, modality) in mine.items()]
        rows += [f"ecg/{patient}.hea,{label},{split},{patient},", f"{who}.dcm,{label},{split},,"]
    files["labels.csv"] = "\n".join(rows).encode()
    files["heart.csv"] = "\n".join(
        ["id,name,age,state", *(f"{NUMBER}{who},{NAME} San{who},{40 + who},{CLASSES[who % 2]}" for who in range(PEOPLE))]
    ).encode()
    files["letter.doc"] = b"\xd0\xcf\x11\xe0 nothing that is known " + NAME.encode()
    return making.write(folder / "hospital", files)


VOLUMES = VolumeSchema(kind="volumes", volume="MR", size=(8, 8, 8), spacing=("1.5", "1.5", "1.5"), classes=CLASSES)
ARRAYS = VolumeSchema(kind="volumes", volume="CT", size=(6, 6, 6), classes=CLASSES)
ECG = SignalSchema(kind="signals", signal="ECG", channels=("V5", "MLII"), rate=180, length=360, classes=CLASSES)
EEG = SignalSchema(kind="signals", signal="EEG", channels=("eeg fpz-cz",), rate=100, length=200, classes=CLASSES)
SOUND = SignalSchema(kind="signals", signal="AU", channels=("1",), rate=4000, length=4000, classes=CLASSES)
IMAGES = ImageSchema(modality="MR", image_size=16, channels=1, classes=CLASSES)
AGE: dict[str, Any] = {"name": "age", "kind": "number", "low": "18", "high": "100"}
ROWS = TableSchema.model_validate({"kind": "table", "table": "heart", "features": (AGE,), "classes": CLASSES})
EVERY: tuple[DataSchema, ...] = (VOLUMES, ARRAYS, ECG, EEG, SOUND, IMAGES, ROWS)
MANIFEST = """
[package]
name = "hearts"
version = "1.0.0"
framework = "numpy"
entry = "model"
[data]
kind = "table"
table = "heart"
classes = ["none", "tumour"]
[[data.features]]
name = "age"
kind = "number"
low = "18"
high = "100"
[[tensors]]
name = "weight"
shape = [1, 2]
dtype = "F32"
"""


def command(node: Path, *arguments: str) -> Any:
    said = CliRunner().invoke(edge, [*arguments, "--folder", str(node)], standalone_mode=False)
    if said.exception is not None:
        raise said.exception
    return json.loads(said.stdout[said.stdout.index("{") :])


def left(path: Path) -> list[list[str]]:
    """Of a report, as a spreadsheet reads it: by its mark."""
    assert path.read_bytes().startswith("\ufeff".encode())
    return list(csv.reader(io.StringIO(path.read_text("utf-8-sig"))))


def ingest(private: Path, *more: str) -> Any:
    (private / "medmesh.toml").write_text(MANIFEST)
    (private / "columns.toml").write_text('patient = "id"\nlabel = "state"\n')
    table = ["--table", str(private / "medmesh.toml"), "--columns", str(private / "columns.toml")]
    return command(private / "node", "ingest", str(private / "hospital"), "--dataset", "all", *table, "--json", *more)


@pytest.fixture
async def at(private: Path) -> AsyncIterator[Site]:
    hospital(private)
    prepare(private / "node", ALONE)
    await asyncio.to_thread(ingest, private)
    async with site(private / "node") as opened:
        yield opened


KINDS = {"volume:MR", "volume:CT", "signal:ECG", "signal:EEG", "signal:AU", "MR", "table:heart"}


async def test_a_folder_with_one_of_each_goes_in_once_and_nobody_is_named(private: Path) -> None:
    hospital(private)
    prepare(private / "node", ALONE)
    before = everything(private / "node")
    planned = await asyncio.to_thread(ingest, private, "--dry-run", "--report", str(private / "left.csv"))
    count = PEOPLE * len(KINDS)
    assert (planned["dry_run"], planned["would_store"], planned["known"]) == (True, count, 0)
    assert planned["kinds"] == dict.fromkeys(KINDS, PEOPLE) and set(planned["rejected"]) == {"imaging.not_dicom"}
    assert {"patient", "recording", "comment", "start", "LIST", "extension", "gzip name", "after the array"} <= set(planned["cleared"])
    no = Problem("imaging.not_dicom")
    assert left(private / "left.csv") == [
        ["file", "code", "reason", "原因"],
        ["letter.doc", "imaging.not_dicom", f"{no.detail()} {no.hint()}", no.detail("zh") + no.hint("zh")],
    ]
    assert (private / "left.csv").stat().st_mode & 0o777 == 0o600
    async with site(private / "node") as opened, opened.unit() as uow:
        assert await uow.all(select(items)) == [], "a dry run writes nothing"
    assert records(private / "node") == [] and len(before) > 0
    done = await asyncio.to_thread(ingest, private)
    assert (done["stored"], done["known"], done["kinds"]) == (count, 0, planned["kinds"])
    again = await asyncio.to_thread(ingest, private)
    assert (again["stored"], again["known"]) == (0, count)
    told = [r["detail"] for r in records(private / "node") if r["sub"] == "edge.ingest"]
    assert told == [{"stored": count, "known": 0, "rejected": 1}, {"stored": 0, "known": count, "rejected": 1}]
    async with site(private / "node") as opened:
        for schema in EVERY:
            await samples.prepare(opened, schema, held_out=False)
        await opened.database.close()
    found = everything(private / "node").upper()
    # Of the birth date no year alone: four digits are in many a hash.
    for one in (NAME, NUMBER, "coughs", "13800138000", "ADM7788", "02/05/1951", "02-MAY-1951", "1951-05-02", "19510502"):
        assert one.upper().encode() not in found, one


async def test_nobody_is_named_in_what_lies_under_the_patients_keys_either(at: Site) -> None:
    """What is encrypted is looked at opened: at the disk nothing could be found."""
    async with at.unit() as uow:
        rows = await uow.all(select(items, samples.patients.c.key).join(samples.patients, items.c.patient == samples.patients.c.patient))
    assert {row.modality for row in rows} == KINDS and len(rows) == PEOPLE * len(KINDS)
    for row in rows:
        raw = b"".join(samples.images(at, samples.opened(at, row.patient, row.key)).open(row.object))
        for one in (NAME, NUMBER, "coughs", "13800138000", "ADM7788"):
            assert one.upper().encode() not in raw.upper(), (row.modality, one)
    eeg = next(row for row in rows if row.modality == "signal:EEG")
    raw = b"".join(samples.images(at, samples.opened(at, eeg.patient, eeg.key)).open(eeg.object))
    assert b"Sleep stage W" in raw, "the scan looks at what is there"


async def test_every_kind_is_what_a_worker_reads(at: Site, private: Path) -> None:
    for schema in EVERY:
        path, count = await samples.prepare(at, schema, held_out=False)
        found = weights.mapped(path)
        assert found["x"].shape == (count, *schema.shape), schema.modality
        assert found["x"].dtype == (np.uint8 if schema.kind == "images" else np.float32)
        assert schema.kind == "table" or count == 4
        assert len(found["y"]) == len(found["patients"]) == count
        assert np.unique(np.array(found["patients"])).size == count
        if schema.kind in ("volumes", "signals"):
            x = np.array(found["x"])
            assert np.isfinite(x).all() and x.std() > 0.3
            assert len({one.tobytes() for one in x}) == count, "each of somebody else"
        _, rest = await samples.prepare(at, schema, held_out=True)
        assert count + rest == PEOPLE
    assert (await samples.cohort(at, VOLUMES)).samples == 4


@pytest.mark.skipif(isolation.capability().kind == "none", reason="nothing isolates here")
async def test_a_worker_trains_on_volumes_and_signals(at: Site, private: Path) -> None:
    for schema in (VOLUMES, ECG):
        path, count = await samples.prepare(at, schema, held_out=False)
        width = int(np.prod(schema.shape))
        code = f"\ndef build(size):\n    return {{'weight': np.zeros(({width}, 2), np.float32), 'bias': np.zeros(2, np.float32)}}\n"
        async with worker(tiny(private, code), private / "work") as w:
            await w.call("initial", seed=1, out=str(w.folder / "w0"))
            data = w.give(path, "data")
            call = {"weights": str(w.folder / "w0"), "data": data, "steps": 200, "batch_size": 4, "learning_rate": 0.002, "seed": 7}
            said = await w.call("train", **call, out=str(w.folder / "w1"))
            assert said["samples"] == count
            counts = await w.call("evaluate", data=data, models=[str(w.folder / "w1")])
            assert np.trace(np.array(counts["counts"][0])) == count, "four samples are told apart"


async def test_a_forgotten_patient_is_gone_from_every_kind(at: Site) -> None:
    one = forgetting.who(at, f"{NUMBER}1")
    paths = [(await samples.prepare(at, schema, held_out=False))[0] for schema in EVERY]
    assert await key_of(at, one) is not None
    _, done = await forgetting.ask(at, one, "withdrawn", "zhao")
    assert done and not any(path.exists() for path in paths)
    async with at.unit() as uow:
        left = await uow.all(select(items.c.patient, items.c.object))
    assert len(left) == (PEOPLE - 1) * len(KINDS) and one not in {row.patient for row in left}
    stored = {path.name.removesuffix(".key") for path in at.layout.objects.rglob("*.key")}
    assert stored == {row.object for row in left}, "objects of everybody else and no other"


async def test_patients_with_equal_files_share_nothing(private: Path) -> None:
    data = record_of(1)
    files = {f"sub-{who}/{name}": raw for who in ("A", "B") for name, raw in data.items()}
    async with site(prepare(private / "node", ALONE)) as opened:
        outcome = await intake.ingest(opened, making.write(private / "bids", files), "ecg")
        assert (outcome.stored, dict(outcome.rejected)) == (2, {}), "folders after BIDS say whose they are"
        async with opened.unit() as uow:
            rows = await uow.all(select(items))
        assert len({row.object for row in rows}) == len({row.patient for row in rows}) == 2
        renamed = {name.replace(f"{NUMBER}1", "other"): raw.replace(f"{NUMBER}1".encode(), b"other") for name, raw in files.items()}
        again = await intake.ingest(opened, making.write(private / "again", renamed), "ecg")
        assert (again.stored, again.known) == (0, 2), "the same samples under another name are the same item"


async def test_what_cannot_come_in_is_said_by_file_and_nothing_else_is_lost(private: Path) -> None:
    flat = np.full((8, 8, 8), 7, np.int16)
    cut = record_of(2)
    files = {
        "sub-A/good.edf": recording(1),
        "sub-A/flat.npy": making.npy(flat),
        "sub-A/cut.edf": recording(2)[:-100],
        "sub-A/two.npz": _npz(2),
        "sub-A/one.npz": _npz(1),
        "sub-A/line.npy": making.npy(np.arange(9.0)),
        "sub-A/picture.png": making.png(),
        "sub-A/table.csv": b"a,b\n1,2\n3,4\n",
        "nobody.edf": recording(3),
        "sub-A/label.edf": recording(4).replace(b"EOG             ", b"Dr. Smith Wong  "),
        f"sub-A/{NUMBER}2.hea": cut[f"{NUMBER}2.hea"],
    }
    async with site(prepare(private / "node", ALONE)) as opened:
        outcome = await intake.ingest(opened, making.write(private / "mixed", files), "mixed")
        assert outcome.stored == 2
        assert {one.name: one.codes for one in outcome.left_out} == {
            "sub-A/flat.npy": "quality.constant_image",
            "sub-A/cut.edf": "formats.damaged",
            "sub-A/two.npz": "formats.unsupported",
            "sub-A/line.npy": "formats.unsupported",
            "sub-A/picture.png": "imaging.burned_in",
            "sub-A/table.csv": "intake.columns_needed",
            "nobody.edf": "intake.no_patient",
            "sub-A/label.edf": "intake.residual",
            f"sub-A/{NUMBER}2.hea": "formats.missing_file",
        }
        assert dict(outcome.quality) == {"constant_image": 1}
        report = await quality.judge(opened, "mixed")
        assert dict(report.items) == {"signal": 1, "image": 1} and report.blocked == 0


async def test_why_a_file_was_left_out_is_said_in_both_languages_and_by_file_only_in_the_report(private: Path) -> None:
    prepare(private / "node", ALONE)
    letters = {f"letter{place}.doc": b"\xd0\xcf\x11\xe0" + bytes([place]) * 300 for place in range(3)}
    flat = {"sub-A/flat.npy": making.npy(np.full((8, 8, 8), 7, np.int16)), "sub-A/cut.edf": recording(2)[:-100]}
    source = making.write(private / "mixed", {**letters, **flat})

    def told(language: str, *more: str) -> Any:
        asked = ["ingest", str(source), "--dataset", "mixed", "--folder", str(private / "node"), *more]
        return CliRunner().invoke(edge, asked, standalone_mode=False, env={"MEDMESH_LANG": language})

    said = await asyncio.to_thread(told, "en", "--report", str(private / "left.csv"))
    assert said.exception is None and json.loads(said.stdout[said.stdout.index("{") :])["rejected"]["imaging.not_dicom"] == 3
    assert "left out, 3: This is not a DICOM file. Send the original" in said.stderr and "[imaging.not_dicom]" in said.stderr
    assert "left out, 1: Every value is the same. [quality.constant_image]" in said.stderr
    assert "letter" not in said.stderr and "sub-A" not in said.stderr, "names are for the report"
    zh = await asyncio.to_thread(told, "zh")
    assert "未导入 3 个：该文件不是 DICOM 文件。" in zh.stderr and "查看具体文件：--report" in zh.stderr
    assert "未导入" not in (await asyncio.to_thread(told, "zh", "--json")).stderr
    by_file = {row[0]: row[1:] for row in left(private / "left.csv")}
    assert set(by_file) == {"file", *letters, *flat}
    assert by_file["sub-A/flat.npy"] == ["quality.constant_image", "Every value is the same.", "所有像素值相同。"]
    code, en, zh_said = by_file["sub-A/cut.edf"]
    assert code == "formats.damaged" and "{" not in en + zh_said and len(zh_said) > 8


def _npz(count: int) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        for place in range(count):
            name = f"{NAME}{place}.npy"
            archive.writestr(name, making.npy(np.random.default_rng(place).normal(size=(5, 5, 5))))
    return made.getvalue()


async def test_kinds_stand_on_the_approval_and_the_policy(private: Path) -> None:
    files = {"sub-A/a.edf": recording(1)}
    folder = making.write(private / "eeg", files)
    async with site(prepare(private / "node", DEFAULT)) as opened:
        approval = Approval("LL-1", "pictures", ("image",), date(2020, 1, 1), date(2999, 1, 1), False)
        await record(opened, approval, "li")
        for ethics, code in (("", "ethics.needed"), ("LL-1", "ethics.kind")):
            for dry_run in (True, False):
                with pytest.raises(Problem) as caught:
                    await intake.ingest(opened, folder, "eeg", ethics=ethics, dry_run=dry_run)
                assert caught.value.code == code
        await record(opened, Approval("LL-2", "sleep", ("signal",), date(2020, 1, 1), date(2999, 1, 1), True), "li")
        outcome = await intake.ingest(opened, folder, "eeg", ethics="LL-2", dry_run=True)
        assert (outcome.stored, dict(outcome.rejected)) == (0, {"intake.no_consent": 1})
