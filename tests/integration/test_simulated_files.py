"""A federation of volumes or signals is simulated with the files that a hospital would take in, and trains on the same numbers."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from click.testing import CliRunner
from tests.integration.test_forget import ALONE, prepare
from tests.packages import HEADS
from tests.unit.pipelines.test_series import AXIAL, SAGITTAL, series

from medmesh.cli.federation import federation
from medmesh.contracts.data import DataSchema
from medmesh.contracts.federation import FederationView
from medmesh.errors import Problem
from medmesh.imaging.reading import read, write
from medmesh.learning import isolation, weights
from medmesh.learning.package import Package, pack
from medmesh.simulation import hospital
from medmesh.simulation.data import read as shares_of
from medmesh_edge import intake, samples
from medmesh_edge.ports import site

CT = "1.2.840.10008.5.1.4.1.1.2"
VOLUMES = (
    HEADS
    + """
name = "head-ct"
steps = [
    {step = "orient"},
    {step = "resample", spacing = [1.5, 1.5, 2]},
    {step = "crop", shape = [6, 8, 10], fill = -1000},
    {step = "window", center = 600, width = 400},
]
"""
)
SIGNALS = """
[data]
kind = "signals"
signal = "ECG"
channels = ["V5", "MLII"]
rate = 180
length = 180
classes = ["slow", "fast"]

[data.pipeline]
name = "ecg-180"
steps = [
    {step = "rate", hertz = 180},
    {step = "normalise", by_channel = true},
]
"""


def package(folder: Path, data: str, inputs: int, classes: int = 2) -> Path:
    """One linear layer, without code."""
    folder.mkdir()
    head = '[package]\nname = "items"\nversion = "1.0.0"\nframework = "numpy"\n\n[[layers]]\nkind = "linear"\n'
    tensors = (("bias", [classes]), ("weight", [inputs, classes]))
    head += f"out = {classes}\n"
    said = "".join(f'\n[[tensors]]\nname = "{name}"\nshape = {shape}\ndtype = "F32"\n' for name, shape in tensors)
    (folder / "medmesh.toml").write_text(head + data + said)
    return folder


def labels(folder: Path, rows: Iterable[Iterable[str]]) -> Path:
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file", "label", "split", "patient"), *rows])
    return folder


def recordings(folder: Path, count: int = 40) -> Path:
    """WFDB records at 360 Hz, of which every second one beats twice as fast."""
    (folder / "ecg").mkdir(parents=True)
    dice, time = np.random.default_rng(2), np.arange(360) / 360
    for n in range(count):
        beat = 2 * np.pi * (2, 4)[n % 2] * time
        leads = np.stack([np.sin(beat) * 500, np.cos(beat) * 700]) + dice.normal(0, 40, (2, 360))
        values = leads.astype("<i2").T
        lines = [f"r{n} 2 360 360"]
        for lead, row in zip(("MLII", "V5"), values.T, strict=True):
            lines.append(f"r{n}.dat 16 200(0)/mV 16 0 {row[0]} {(int(row.astype(np.int64).sum()) + 32768) % 65536 - 32768} 0 {lead}")
        (folder / f"ecg/r{n}.hea").write_text("\n".join(lines) + "\n")
        (folder / f"ecg/r{n}.dat").write_bytes(values.tobytes())
    return labels(folder, ((f"ecg/r{n}.hea", ("slow", "fast")[n % 2], ("train", "test")[n % 5 == 4], f"p{n}") for n in range(count)))


def heads(folder: Path) -> Path:
    """Four heads: two DICOM series, one of them sagittal, and two NIfTI files."""
    folder.mkdir()
    for number, turned in enumerate((AXIAL, SAGITTAL)):
        for place, raw in enumerate(series(turned, series_uid=f"2.25.{900 + number}", patient=f"p{number}", size=(32, 48))):
            dataset = read(raw)
            dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = CT
            dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
            (folder / f"s{number}-{place:02d}").write_bytes(write(dataset))
    for number in (2, 3):
        values = np.random.default_rng(number).normal(600, 90, (16, 14, 12)).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(values, np.diag([-1.5, -1.5, 2, 1])), folder / f"{number}.nii.gz")
    files = ("s0-07", "s1-00", "2.nii.gz", "3.nii.gz")
    with (folder / "labels.csv").open("w", newline="") as file:
        rows = [(one, ("none", "bleeding")[n % 2], "train", f"p{n}", "CT") for n, one in enumerate(files)]
        csv.writer(file).writerows([("file", "label", "split", "patient", "modality"), *rows])
    return folder


async def given(schema: DataSchema, folder: Path, data: Path, *, simulated: bool) -> list[tuple[int, bytes]]:
    """(class, numbers) of each sample that a worker would be given: of a node that takes the folder in, or of a simulated one."""
    async with site(prepare(folder, ALONE)) as at:
        if simulated:
            (mine,) = shares_of(data, schema, 1).values()
            await hospital.take_in(at, list(mine))
        else:
            done = await intake.ingest(at, data, "one", series=True)
            assert not done.rejected, done.left_out
        path, _ = await samples.prepare(at, schema, held_out=False)
        held = weights.load(path)
        return sorted((int(label), x.tobytes()) for label, x in zip(held["y"], held["x"], strict=True))


def of(path: Path) -> Package:
    return pack(path)


@pytest.mark.parametrize("kind", ["volumes", "signals"])
@pytest.mark.parametrize("piped", [True, False])
async def test_a_simulated_hospital_gives_its_worker_the_numbers_that_a_node_would(private: Path, kind: str, piped: bool) -> None:
    make, text, inputs = (heads, VOLUMES, 480) if kind == "volumes" else (recordings, SIGNALS, 360)
    text = text if piped else text[: text.index("[data.pipeline]")]
    data, schema = make(private / "data"), of(package(private / "package", text, inputs)).manifest.data
    node, simulated = [await given(schema, private / f"site-{which}", data, simulated=which) for which in (False, True)]
    assert len(node) == (4 if kind == "volumes" else 32)
    assert node == simulated


def run(package: Path, data: Path, out: Path, *further: str) -> Any:
    options = ["--rounds", "2", "--steps", "30", "--learning-rate", "0.2", "--hospitals", "3", "--workers", "1", "--out", str(out)]
    return CliRunner().invoke(federation, ["simulate", str(package), "--data", str(data), *options, *further])


@pytest.mark.skipif(isolation.capability().kind == "none", reason="nothing isolates here")
def test_the_command_trains_on_signals_and_names_the_pipeline(private: Path) -> None:
    source = package(private / "package", SIGNALS, 360)
    done = run(source, recordings(private / "data"), private / "out", "--baseline", "--small-cell", "0")
    assert done.exit_code == 0, (done.output, done.exception)
    view = FederationView.model_validate_json((private / "out.json").read_bytes())
    stated = of(source).manifest.items().pipeline
    assert stated is not None and view.plan.data.kind == "signals"
    assert view.plan.data.pipeline == stated
    mine = [one.counts for one in view.evaluation if one.name == "federated"]
    right = sum(row[n] for counts in mine for n, row in enumerate(counts))
    assert right > 0.9 * sum(sum(row) for counts in mine for row in counts) > 0


@pytest.mark.skipif(isolation.capability().kind == "none", reason="nothing isolates here")
def test_the_command_trains_on_volumes(private: Path) -> None:
    folder = heads(private / "data")
    for n in range(12):  # more of them, so that each hospital has some
        os.link(folder / f"{2 + n % 2}.nii.gz", folder / f"more{n}.nii.gz")
    with (folder / "labels.csv").open("a", newline="") as file:
        csv.writer(file).writerows(
            (f"more{n}.nii.gz", ("none", "bleeding")[n % 2], ("train", "test")[n > 9], f"q{n}", "CT") for n in range(12)
        )
    done = run(package(private / "package", VOLUMES, 480), folder, private / "out")
    assert done.exit_code == 0, (done.output, done.exception)
    assert FederationView.model_validate_json((private / "out.json").read_bytes()).state == "completed"


def test_what_the_folder_does_not_have_is_said(private: Path) -> None:
    signals, volumes = (of(package(private / name, text, n)).manifest.data for name, text, n in (("s", SIGNALS, 360), ("v", VOLUMES, 480)))
    ecg, ct = recordings(private / "ecg", 4), heads(private / "ct")

    def code(data: Path, schema: DataSchema) -> tuple[str, str]:
        with pytest.raises(Problem) as caught:
            shares_of(data, schema, 1)
        return caught.value.code, caught.value.detail()

    other = signals.model_copy(update={"classes": ("none", "bleeding")})
    assert code(ct, other)[0] == "simulation.modality"
    assert "signal:ECG" in code(ct, other)[1] and "volume:CT 4" in code(ct, other)[1]
    assert code(ecg, volumes)[0] == "simulation.data"
    foreign = code(ecg, signals.model_copy(update={"channels": ("V5", "aVR")}))
    assert foreign[0] == "simulation.items" and "ecg/r0.hea" in foreign[1] and "no channel aVR" in foreign[1] and "4 of 4" in foreign[1]
    (ecg / "ecg/r1.dat").write_bytes(b"short")
    assert code(ecg, signals)[0] == "simulation.items" and "1 of 4" in code(ecg, signals)[1]
    short = code(ct, volumes.model_copy(update={"size": (6, 8, 12)}))
    assert short[0] == "simulation.items" and "pipelines.result" in short[1]
