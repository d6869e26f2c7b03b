"""Central jobs on volumes and signals: taken in by the platform's door, made by the code of a node, written in constant memory."""

from __future__ import annotations

import io
import json
import random
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.dicoms import file as dicom_file
from tests.dicoms import stack
from tests.frames import ENHANCED_CT, enhanced, file
from tests.integration.test_forget import ALONE, prepare
from tests.integration.test_ingestion import code, ingest, items, rng_array, zipped
from tests.integration.test_ingestion import view as version
from tests.integration.test_simulated_files import SIGNALS, heads, package, recordings
from tests.integration.test_training import failed, finished, refused, researcher, submit, view
from tests.packages import HEADS, TINY
from tests.platform import Platform, platform
from tests.unit.importing import layouts, making
from tests.unit.pipelines.test_series import AXIAL, SAGITTAL

from medmesh.contracts.data import VolumeSchema
from medmesh.contracts.ingestion import IngestArchive
from medmesh.contracts.message import ObjectRef
from medmesh.contracts.registry import Lineage, ModelRegistered, RegisterModel
from medmesh.contracts.training import SubmitJob
from medmesh.embedded.testing import RunningServers
from medmesh.learning import isolation, weights
from medmesh.learning.package import Package, pack
from medmesh.store.objects.port import load
from medmesh_edge import intake, samples
from medmesh_edge.ports import site
from medmesh_ingestion.service import SERVICE as INGESTION
from medmesh_registry.service import SERVICE as REGISTRY
from medmesh_training import adapters
from medmesh_training.domain import Item
from medmesh_training.service import SERVICE as TRAINING

JOBS: dict[str, Any] = {"checkpoint_steps": 20, "learning_rate": 0.2, "batch_size": 8, "lease_seconds": 60, "poll_seconds": 0.1}
NIFTI = (
    HEADS
    + """
name = "head-ct"
steps = [{step = "orient"}, {step = "crop", shape = [6, 8, 10]}, {step = "normalise"}]
"""
)
ORGANS = """
[data]
kind = "volumes"
volume = "CT"
size = [28, 28, 28]
classes = [%s]
"""


@pytest.fixture
async def p(servers: RunningServers, private: Path) -> AsyncIterator[Platform]:
    own = {
        "ingestion": {"key": private / "secrets" / "project.key"},
        "training": JOBS,
        "registry": {"release_key": private / "keys" / "release.nk"},
    }
    async with platform(servers, private, INGESTION, TRAINING, REGISTRY, settings=own) as made:
        yield made


def folder_of(data: Path) -> dict[str, bytes]:
    """The files of a folder that a node would take in, with labels.csv as the platform's door reads it."""
    files = {path.relative_to(data).as_posix(): path.read_bytes() for path in sorted(data.rglob("*")) if path.is_file()}
    return files | {"labels.csv": files["labels.csv"].replace(b"file,label", b"item,label", 1)}


async def job_on(p: Platform, dataset: str, made: Package, **changed: Any) -> SubmitJob:
    shown = await version(p, dataset)
    stored = await p.stores.kept.put(made.archive)
    wanted = {"package": stored, "dataset": dataset, "version": shown.version, "content": shown.content, "steps": 60, "seed": 5}
    return SubmitJob(**wanted | changed)


async def contents(p: Platform, dataset: str) -> list[Item]:
    document = json.loads(await load(p.stores.kept, (await version(p, dataset)).content))
    return [Item.model_validate(one, extra="ignore") for one in document["items"]]


async def written(p: Platform, dataset: str, made: Package) -> dict[str, np.ndarray]:
    """What the service writes for a worker."""
    path = p.folder / "written"
    await adapters.write_samples(await contents(p, dataset), made.manifest.items(), p.stores, path)
    return weights.load(path)


def rows(held: dict[str, np.ndarray]) -> list[tuple[int, bytes]]:
    return sorted((int(label), x.tobytes()) for label, x in zip(held["y"], held["x"], strict=True))


@pytest.mark.skipif(isolation.capability().kind == "none", reason="nothing isolates here")
async def test_a_job_on_recordings_learns_and_its_pipeline_is_on_record(p: Platform, private: Path) -> None:
    data = recordings(private / "data")
    files = folder_of(data)
    files |= {"ecg/r0.hea": files["ecg/r0.hea"] + b"# Canary San, tel 13800138000\n", "ecg/r1.atr": b"\0\0"}
    assert (await ingest(p, zipped(files), "ecg")).result == {"dataset": "ecg", "version": 1}
    shown = await version(p, "ecg")
    assert (shown.samples, shown.labels, shown.rejected) == (40, {"fast": 20, "slow": 20}, {})
    held = await items(p, shown.content)
    assert {(one["kind"], one["object"]["media_type"]) for one in held} == {("signal", "application/zip")}
    assert len({one["group"] for one in held}) == 40 and not {"p0", "p1"} & {one["group"] for one in held}
    assert not [one for one in held if b"Canary" in await load(p.stores.kept, ObjectRef(**one["object"]))]

    made = pack(package(private / "package", SIGNALS, 360))
    stated = made.manifest.items().pipeline
    assert stated is not None
    job = await submit(p, await job_on(p, "ecg", made))
    done = await finished(p, job)
    assert done.metrics["balanced_accuracy"] > 0.9
    assert done.metrics["samples_trained"] + done.metrics["samples_held_out"] == 40
    assert (await view(p, job)).pipeline == stated.hash
    records = {record["sub"]: record for record in await p.audited("training")}
    for verb in ("training.submit", "training.finish"):
        assert [one["digest"] for one in records[verb]["entities"] if one["type"] == "pipeline"] == [stated.hash]
    assert not list((p.runtimes["training"].settings.state / "attempts").iterdir()), "no recording stays behind"
    register = RegisterModel(model="beats", weights=done.weights, package=done.package, lineage=Lineage(job=job, datasets=("ecg",)))
    assert (await p.send(register, researcher(p))).succeeded
    (known,) = p.emitted(ModelRegistered)
    assert known.data.lineage.pipeline == stated.hash

    foreign = pack(package(private / "foreign", SIGNALS.replace('"MLII"', '"aVR"'), 360))
    job = await submit(p, await job_on(p, "ecg", foreign))
    assert await failed(p, job) == "training.item"
    said = (await view(p, job)).failure
    assert said and "no channel aVR" in said


@pytest.mark.parametrize("kind", ["volumes", "signals"])
async def test_what_a_central_worker_is_given_is_what_a_node_would_give(p: Platform, private: Path, kind: str) -> None:
    data = heads(private / "data") if kind == "volumes" else recordings(private / "data", 10)
    if kind == "volumes":  # a series of DICOM files is a volume at a node alone
        for path in data.glob("s*"):
            path.unlink()
        kept = [line for line in (data / "labels.csv").read_text().splitlines() if not line.startswith("s")]
        (data / "labels.csv").write_text("\n".join(kept) + "\n")
    text, inputs = (NIFTI, 480) if kind == "volumes" else (SIGNALS, 360)
    made = pack(package(private / "package", text, inputs))
    assert (await ingest(p, zipped(folder_of(data)), "set")).succeeded
    async with site(prepare(private / "node", ALONE)) as at:
        (data / "labels.csv").write_text((data / "labels.csv").read_text().replace(",test,", ",train,"))
        await intake.ingest(at, data, "set")
        path, count = await samples.prepare(at, made.manifest.data, held_out=False)
        node = rows(weights.load(path))
    assert count == (2 if kind == "volumes" else 10)
    assert rows(await written(p, "set", made)) == node


@pytest.mark.skipif(isolation.capability().kind == "none", reason="nothing isolates here")
async def test_series_and_objects_of_several_frames_are_volumes_as_at_a_node_and_a_job_trains_on_them(p: Platform, private: Path) -> None:
    data = heads(private / "data")
    for number in range(10, 50):
        dataset = enhanced((AXIAL, SAGITTAL)[number % 2], sop=ENHANCED_CT, uid=f"2.25.7{number}", patient=f"PID-KANARY-{number}")
        (data / f"{number}.dcm").write_bytes(file(dataset))
    hole = [dicom_file(one) for one in stack(missing=3)]
    for number, raw in enumerate(hole):
        (data / f"hole-{number}").write_bytes(raw)
    with (data / "labels.csv").open("a") as rows_:
        rows_.writelines(f"{number}.dcm,{('none', 'bleeding')[number % 2]},train,,\n" for number in range(10, 50))
    archive = zipped(folder_of(data))

    async def import_(volumes: bool) -> Any:
        ref = await p.stores.kept.put(archive)
        return (await p.send(IngestArchive(dataset="heads", archive=ref, volumes=volumes), researcher(p))).result

    assert await import_(True) == {"dataset": "heads", "version": 1}
    shown = await version(p, "heads")
    assert (shown.samples, shown.labels, shown.rejected) == (44, {"bleeding": 22, "none": 22}, {"missing_slices": 1})
    held = await items(p, shown.content)
    assert {one["kind"] for one in held} == {"volume"}
    groups = {one["group"] for one in held}
    assert len(groups) == 44 and not groups & {"p0", "p1", "p2", "p3", *(f"PID-KANARY-{number}" for number in range(10, 50))}
    for one in held:
        raw = await load(p.stores.kept, ObjectRef(**one["object"]))
        assert b"Kanary" not in raw and b"KANARY" not in raw
    assert await import_(True) == {"dataset": "heads", "version": 1}, "the same archive, read alike, is the same version"
    assert await import_(False) == {"dataset": "heads", "version": 2}, "as images it is another"
    assert {record["detail"].get("volumes") for record in await p.audited("ingestion") if record["sub"] == "dataset.create"} == {True, None}

    made = pack(package(private / "package", NIFTI, 480))
    async with site(prepare(private / "node", ALONE)) as at:
        await intake.ingest(at, data, "one", series=True)
        path, count = await samples.prepare(at, made.manifest.items(), held_out=False)
        node = rows(weights.load(path))
    content = json.loads(await load(p.stores.kept, shown.content))["items"]
    written_ = p.folder / "written"
    await adapters.write_samples([Item.model_validate(one, extra="ignore") for one in content], made.manifest.items(), p.stores, written_)
    assert count == 44 and rows(weights.load(written_)) == node
    wanted = {"package": await p.stores.kept.put(made.archive), "dataset": "heads", "version": 1, "content": shown.content}
    done = await finished(p, await submit(p, SubmitJob(**wanted, steps=30, seed=5)))
    assert done.metrics["samples_trained"] + done.metrics["samples_held_out"] == 44


@pytest.mark.skipif(isolation.capability().kind == "none", reason="nothing isolates here")
async def test_a_job_on_a_published_set_of_volumes(p: Platform, private: Path) -> None:
    rng = random.Random(1)
    layouts.medmnist(private / "m", "organmnist3d", classes=11, fill=lambda shape: rng_array(rng, shape))
    npz = (private / "m/organmnist3d.npz").read_bytes()
    assert (await ingest(p, zipped({"organmnist3d.npz": npz}), "organs")).succeeded
    classes = sorted({item.label or "" for item in await contents(p, "organs")})
    made = pack(package(private / "package", ORGANS % ", ".join(f'"{one}"' for one in classes), 28**3, len(classes)))
    held = await written(p, "organs", made)
    with np.load(io.BytesIO(npz)) as arrays:
        original = np.concatenate([arrays[f"{split}_images"] for split in ("train", "val", "test")]).astype(np.float64)
    expected = [(one - one.mean()) / one.std() for one in original]
    assert held["x"].shape == (11, 1, 28, 28, 28)
    for x in held["x"]:
        assert min(np.abs(x[0] - one).max() for one in expected) < 1e-5, "each is one of the set, mean 0 and deviation 1"
    done = await finished(p, await submit(p, await job_on(p, "organs", made)))
    assert (done.metrics["samples_trained"], done.metrics["samples_held_out"]) == (6, 5), "the set's own split"


async def test_what_is_something_else_is_refused_with_what_can_be_done(p: Platform, private: Path) -> None:
    layouts.decathlon(private / "d")
    spleen = {path.relative_to(private / "d").as_posix(): path.read_bytes() for path in (private / "d/Task09_Spleen").rglob("*.*")}
    assert (await ingest(p, zipped(spleen), "spleen")).succeeded
    assert (await ingest(p, zipped(folder_of(recordings(private / "ecg", 6))), "ecg")).succeeded
    volumes, signals, images = pack(package(private / "v", NIFTI, 480)), pack(package(private / "s", SIGNALS, 360)), pack(TINY)
    assert await refused(p, await job_on(p, "spleen", volumes)) == "training.unlabelled"
    for dataset, made, found in (("ecg", volumes, "signal 6"), ("ecg", images, "signal 6"), ("spleen", signals, "volume 3")):
        answer = await p.send(await job_on(p, dataset, made), researcher(p))
        assert code(answer) == "training.kinds"
        assert answer.problem and found in answer.problem["title"], answer.problem
    nothing = zipped({"labels.csv": b"item,label\na.hea,x\n", "a.hea": b"a 1 360 10\na.dat 16 200 16 0 0 0 0 I\n"})
    answer = await ingest(p, nothing, "broken")
    assert code(answer) == "ingestion.nothing_accepted" and answer.problem and "missing_file 1" in answer.problem["title"]


async def test_memory_is_an_item_however_many_there_are(p: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "_AT_ONCE", 1)
    schema = VolumeSchema(kind="volumes", volume="CT", size=(32, 32, 32), classes=("a", "b"))
    dice, peaks = np.random.default_rng(1), []
    for count in (10, 150):  # 1.25 and 19 MiB of samples
        held = []
        for n in range(count):
            raw = making.npy(dice.normal(size=(32, 32, 32)).astype(np.float32))
            held.append(Item(item=str(n), object=await p.stores.kept.put(raw, "application/x-npy"), label="ab"[n % 2], kind="volume"))
        tracemalloc.start()
        await adapters.write_samples(held, schema, p.stores, p.folder / "x")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert weights.mapped(p.folder / "x")["x"].shape == (count, 1, 32, 32, 32)
    assert peaks[1] < 1.3 * peaks[0] + 2**20, peaks
