"""DICOM series and NIfTI files come into a node as volumes, and a worker reads what the plan's pipeline makes of them."""

from __future__ import annotations

import asyncio
import csv
import hashlib
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import nibabel
import numpy as np
import pytest
from sqlalchemy import select
from tests.integration.test_forget import ALONE, everything, prepare, records
from tests.packages import HEADS
from tests.unit.pipelines.test_series import AXIAL, SAGITTAL, series

from medmesh.contracts.data import VolumeSchema
from medmesh.contracts.message import ObjectRef
from medmesh.contracts.registry import Lineage, Manifest
from medmesh.imaging.reading import read, write
from medmesh.learning import isolation, weights
from medmesh.learning.host import worker
from medmesh.learning.package import Package, pack
from medmesh.learning.worker import _samples
from medmesh.pipelines import pipeline
from medmesh.pipelines.loading import from_files
from medmesh.serving.repository import Repository
from medmesh_conversion import domain, onnxruntime_parity
from medmesh_edge import forgetting, intake, models, quality, samples
from medmesh_edge.ports import Site, site
from medmesh_edge.tables import items, outputs

MODEL = """
from torch import nn


def build():
    return nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveMaxPool3d(1), nn.Flatten(), nn.Linear(4, 2))
"""
MANIFEST = f"""
[package]
name = "bleeding"
version = "1.0.0"
framework = "torch"
entry = "model"
{HEADS}"""
TENSORS = {"0.bias": [4], "0.weight": [4, 1, 3, 3, 3], "4.bias": [2], "4.weight": [2, 4]}
CT = "1.2.840.10008.5.1.4.1.1.2"
STEPS = """
name = "head-ct"
[[steps]]
step = "orient"
[[steps]]
step = "resample"
spacing = [1.5, 1.5, 2]
[[steps]]
step = "crop"
shape = [6, 8, 10]
fill = -1000
[[steps]]
step = "window"
center = 600
width = 400
"""


def schema() -> VolumeSchema:
    stated = pipeline.read(STEPS).stated()
    return VolumeSchema(kind="volumes", volume="CT", size=(6, 8, 10), classes=("none", "bleeding"), pipeline=stated)


def scans(folder: Path) -> dict[str, list[bytes]]:
    """Three patients' series, of which one is sagittal and one lacks slices; labels by one of each series' files."""
    folder.mkdir()
    made = {}
    with (folder / "labels.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file", "label", "split"])
        for number, (turned, left_out) in enumerate(((AXIAL, ()), (SAGITTAL, ()), (AXIAL, (4, 5)))):
            objects = []
            for place, raw in enumerate(series(turned, series_uid=f"2.25.{900 + number}", patient=f"PID-KANARY-{number}", size=(32, 48))):
                if place in left_out:
                    continue
                dataset = read(raw)
                dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = CT
                dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
                objects.append(write(dataset))
                (folder / f"scan{number}-{place:02d}").write_bytes(objects[-1])
            rows.writerow([f"scan{number}-07", ("none", "bleeding")[number % 2], "train"])
            made[f"PID-KANARY-{number}"] = objects
    return made


@pytest.fixture
async def at(private: Path) -> AsyncIterator[Site]:
    async with site(prepare(private / "node", ALONE)) as opened:
        yield opened


async def test_a_series_is_one_volume_through_the_plans_pipeline(at: Site, private: Path) -> None:
    objects = scans(private / "pacs")
    seen = await intake.ingest(at, private / "pacs", "heads", series=True, dry_run=True)
    assert (seen.stored, dict(seen.kinds)) == (2, {"volume:CT": 2})
    done = await intake.ingest(at, private / "pacs", "heads", series=True)
    assert (done.stored, dict(done.rejected), dict(done.quality)) == (2, {"intake.quality": 1}, {"missing_slices": 1})
    assert (again := await intake.ingest(at, private / "pacs", "heads", series=True)).stored == 0 and again.known == 2
    assert b"KANARY" not in everything(at.layout.folder).upper()
    path, count = await samples.prepare(at, schema(), held_out=False)
    given = _samples(str(path))
    assert count == 2 and not given.x.flags.owndata and given.x.shape == (2, 1, 6, 8, 10) and given.x.dtype == np.float32
    found = await samples.rows(at, schema(), held_out=False)
    applied = pipeline.read(STEPS)
    for place, row in enumerate(found):
        patient = next(name for name in objects if forgetting.who(at, name) == row.patient)
        whole = applied.apply(from_files("dicom", {str(n): one for n, one in enumerate(objects[patient])}))
        np.testing.assert_allclose(given.x[place, 0], whole.values, atol=1e-6)
        assert row.label == {"PID-KANARY-0": "none", "PID-KANARY-1": "bleeding"}[patient]
    report = await quality.judge(at, "heads")
    assert not report.blocked and sum(1 for _ in found) == 2
    request, over = await forgetting.ask(at, forgetting.who(at, "PID-KANARY-1"), "requested", "li")
    assert over and request
    async with at.unit() as uow:
        assert len(await uow.all(select(outputs))) == len(await uow.all(select(items))) == 1
    assert not path.exists()
    _, left = await samples.prepare(at, schema(), held_out=False)
    assert left == 1


async def test_nifti_and_dicom_of_one_head_become_the_same_numbers(at: Site, private: Path) -> None:
    """The same field of values from two formats: what the model sees does not tell which."""
    objects = next(iter(scans(private / "pacs").values()))
    folder = private / "nifti"
    folder.mkdir()
    data = from_files("dicom", {str(n): one for n, one in enumerate(objects)})
    nibabel.save(nibabel.Nifti1Image(data.values, data.affine), folder / "head.nii.gz")
    (folder / "labels.csv").write_text("file,label,patient,modality,split\nhead.nii.gz,none,PID-KANARY-9,CT,train\n")
    await intake.ingest(at, private / "pacs", "heads", series=True)
    await intake.ingest(at, folder, "heads")
    path, count = await samples.prepare(at, schema(), held_out=False)
    x = (await asyncio.to_thread(weights.load, path))["x"]
    whose = [row.patient for row in await samples.rows(at, schema(), held_out=False)]
    mine, other = (whose.index(forgetting.who(at, name)) for name in ("PID-KANARY-0", "PID-KANARY-9"))
    assert count == 3
    np.testing.assert_allclose(x[mine], x[other], atol=1e-5)


def package(folder: Path) -> Package:
    """A convolution over volumes, its pipeline in the manifest."""
    folder.mkdir()
    tensors = "".join(f'\n[[tensors]]\nname = "{name}"\nshape = {shape}\ndtype = "F32"\n' for name, shape in TENSORS.items())
    (folder / "medmesh.toml").write_text(MANIFEST + STEPS.replace("[[steps]]", "[[data.pipeline.steps]]") + tensors)
    (folder / "model.py").write_text(MODEL)
    return pack(folder)


@pytest.mark.skipif(isolation.capability().kind == "none", reason="nothing isolates here")
async def test_a_model_of_volumes_is_converted_installed_and_shown_what_it_was_trained_on(at: Site, private: Path) -> None:
    scans(private / "pacs")
    await intake.ingest(at, private / "pacs", "heads", series=True)
    made = package(private / "package")
    assert made.manifest.items() == schema(), "a plan and its package say the same"
    path, count = await samples.prepare(at, schema(), held_out=False)
    async with worker(made, private / "work") as running:
        first, onnx, said = (running.folder / name for name in ("w0", "model.onnx", "reference"))
        await running.call("initial", seed=5, out=str(first))
        await running.call("export", weights=str(first), out=str(onnx), reference=str(said), examples=8, seed=3)
        data = running.give(path, "data")
        await running.call("predict", weights=str(first), data=data, out=str(running.folder / "logits"))
        reference, expected = weights.load(said), weights.load(running.folder / "logits")["logits"]
        kept = Path(shutil.copyfile(onnx, private / "model.onnx"))
    x = domain.inputs(3, 8, made.manifest.items())
    assert np.array_equal(reference["x"], x)
    found, _ = onnxruntime_parity.run(kept, x)
    assert domain.verdict(domain.compare(reference["logits"], found["batched"], found["single"]), domain.Thresholds(1e-4, 1.0)) is None
    content = kept.read_bytes()
    manifest = Manifest(
        model="bleeding",
        version=1,
        onnx=ObjectRef(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content)),
        package=ObjectRef(sha256=made.digest, bytes=len(made.archive)),
        preprocess=domain.preprocess(made.manifest.items()),
        classes=made.manifest.data.classes,
        lineage=Lineage(),
        hospitals=("xiehe",),
    )
    repository = Repository(private / "models")
    repository.install(manifest, kept, "r-1")
    answers = await models.classify(at, repository, "bleeding", held_out=False)
    rows = await samples.rows(at, schema(), held_out=False)
    shares = np.exp(expected - expected.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    assert count == len(answers) == 2
    by_item = {one["item"]: one["probabilities"]["bleeding"] for one in answers}
    np.testing.assert_allclose([by_item[row.item] for row in rows], shares[:, 1], atol=1e-4)
    left = [(r["sub"], r["detail"], r["entities"][0]["id"]) for r in records(at.layout.folder) if r["sub"].endswith(".infer")]
    assert left == [("inference.infer", {"inputs": 2}, "bleeding"), ("patient.infer", {"patients": 2}, "bleeding")]
