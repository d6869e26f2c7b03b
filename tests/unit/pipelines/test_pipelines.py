"""Pipelines: what a step does beside scipy and nibabel, the same in another process, made once, and its origin known."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from pathlib import Path

import nibabel
import numpy as np
import pytest
from click.testing import CliRunner
from pydicom.data import get_testdata_file
from scipy import ndimage, signal, stats
from tests.unit.importing import making

from medmesh.cli.data import dataset
from medmesh.contracts import pipeline as contract
from medmesh.errors import Problem
from medmesh.importing.formats.files import Files
from medmesh.importing.sources import opened
from medmesh.pipelines import pipeline, steps
from medmesh.pipelines.cache import Cache
from medmesh.pipelines.data import Data, packed, unpacked
from medmesh.pipelines.loading import from_files, load, stream

HEAD = """
name = "head-ct"
[[steps]]
step = "orient"
to = "RAS"
[[steps]]
step = "resample"
spacing = [1.5, 2.0, 1.0]
[[steps]]
step = "window"
version = 1
center = 40
width = 80
[[steps]]
step = "features"
"""
DICE = np.random.default_rng(12)


def volume() -> Data:
    affine = np.array([[0, -0.8, 0, 10], [1.5, 0, 0, -20], [0, 0, -3.0, 5], [0, 0, 0, 1.0]])
    return Data(np.random.default_rng(1).normal(40, 60, (7, 9, 5)).astype(np.float32), affine=affine)


def beats(rate: float = 1000.0) -> Data:
    at = np.arange(int(4 * rate)) / rate
    values = np.stack([np.sin(2 * np.pi * 5 * at) + 0.5 * np.sin(2 * np.pi * 180 * at), np.cos(2 * np.pi * 9 * at) + 2])
    return Data(values.astype(np.float32), rate=rate, unit="mV")


def test_orientation_is_nibabels() -> None:
    data = volume()
    peer = nibabel.as_closest_canonical(nibabel.Nifti1Image(data.values, data.affine))
    made = steps.Orient(to="RAS").apply(data)
    assert np.array_equal(made.values, np.asarray(peer.dataobj)) and made.affine is not None
    np.testing.assert_allclose(made.affine, peer.affine, atol=1e-9)
    there = steps.Orient(to="PIL").apply(made)
    assert np.array_equal(steps.Orient(to="RAS").apply(there).values, made.values)


def test_resampling_is_scipys_and_keeps_every_place() -> None:
    data = volume()
    made = steps.Resample(spacing=(1.0, 0.5, 2.0)).apply(data)
    assert made.affine is not None and data.affine is not None
    grid = np.stack(np.meshgrid(*(np.arange(size) for size in made.values.shape), indexing="ij")).reshape(3, -1)
    back = np.linalg.inv(data.affine) @ made.affine @ np.vstack([grid, np.ones(grid.shape[1])])
    wanted = ndimage.map_coordinates(data.values.astype(np.float64), back[:3], order=1, mode="nearest")
    np.testing.assert_allclose(made.values.ravel(), wanted, atol=1e-4)
    np.testing.assert_allclose(np.sqrt((made.affine[:3, :3] ** 2).sum(axis=0)), (1.0, 0.5, 2.0))
    mask = Data((data.values > 40).astype(np.uint8), affine=data.affine)
    assert set(np.unique(steps.Resample(spacing=(1.0, 0.5, 2.0), by="nearest").apply(mask).values)) == {0, 1}


def test_window_and_normalisation() -> None:
    values = np.array([[-100.0, 0, 40, 80, 900]], dtype=np.float32)
    assert steps.Window(center=40, width=80).apply(Data(values)).values.tolist() == [[0, 0, 0.5, 1, 1]]
    noise = Data(DICE.normal(5, 3, (4, 500)).astype(np.float32))
    np.testing.assert_allclose(
        steps.Normalise(by_channel=True).apply(noise).values, stats.zscore(noise.values.astype(np.float64), axis=1), atol=1e-5
    )
    scaled = steps.Normalise(how="percentile").apply(noise).values
    assert scaled.min() == 0 and scaled.max() == 1
    assert not steps.Normalise().apply(Data(np.full((3, 3), 7.0))).values.any()


def test_filters_pass_what_they_should() -> None:
    made = steps.Rate(hertz=250).apply(beats())
    assert made.rate == 250 and made.values.shape == (2, 1000)
    kept = np.sin(2 * np.pi * 5 * np.arange(1000) / 250)
    assert np.abs(made.values[0] - kept)[50:-50].max() < 0.02, "5 Hz stays, 180 Hz would fold to 70"
    band = steps.Band(low=2, high=40).apply(beats()).values
    at = np.arange(4000) / 1000
    assert np.abs(band[0] - np.sin(2 * np.pi * 5 * at))[800:-800].max() < 0.02, "without delay"
    assert abs(band[1][800:-800].mean()) < 0.02, "what is constant goes"
    peer = signal.sosfiltfilt(signal.butter(4, [2, 40], "bandpass", fs=1000, output="sos"), beats().values)
    assert np.corrcoef(peer[0][800:-800], band[0][800:-800])[0, 1] > 0.995


def test_features_are_scipys() -> None:
    values = DICE.gamma(2, 3, (1, 2000)).astype(np.float32)
    made = steps.Features().apply(Data(values, rate=100.0)).values
    wide = values.astype(np.float64).ravel()
    wanted = [
        wide.mean(),
        wide.std(),
        stats.skew(wide),
        stats.kurtosis(wide, fisher=False),
        *np.percentile(wide, (1, 5, 25, 50, 75, 95, 99)),
    ]
    np.testing.assert_allclose(made[:11], wanted, rtol=1e-5)
    np.testing.assert_allclose(made[12], stats.entropy(np.histogram(wide, 64)[0], base=2), rtol=1e-5)
    assert 0 <= made[14] <= made[15] <= made[16] <= made[17] <= 1 and len(made) == 18


def test_units_are_converted_and_never_guessed() -> None:
    np.testing.assert_allclose(steps.Unit(to="uV").apply(beats()).values, beats().values * 1000, rtol=1e-6)
    np.testing.assert_allclose(steps.Unit(to="Cel").apply(Data(np.array([98.6]), unit="[degF]")).values, [37], rtol=1e-6)
    for unit in ("", "mmol/L"):
        with pytest.raises(Problem, match="no fixed factor"):
            steps.Unit(to="mg/dL").apply(Data(np.ones(2), unit=unit))


def test_the_same_in_another_process(tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text(HEAD)
    program = (
        "import sys; from pathlib import Path; from medmesh.pipelines import pipeline; from medmesh.pipelines.data import unpacked\n"
        "p = pipeline.read(Path(sys.argv[1]).read_text()); print(p.version, p.apply(unpacked(Path(sys.argv[2]).read_bytes())).digest())"
    )
    (tmp_path / "in").write_bytes(packed(volume()))
    said = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "p.toml", tmp_path / "in"], capture_output=True, text=True, check=True
    ).stdout
    made = pipeline.read(HEAD)
    assert said.split() == [made.version, made.apply(volume()).digest()]


def test_what_was_made_is_not_made_again_and_its_origin_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, cache = pipeline.read(HEAD), Cache(tmp_path / "cache")
    first, trail = cache.run(made, volume())
    assert np.array_equal(first.values, made.apply(volume()).values)
    assert [one.name for one in trail] == ["orient", "resample", "window", "features"] and trail[0].input == volume().digest()
    assert cache.origin(first.digest()) == trail[::-1]

    def never(*_: object) -> Data:
        raise AssertionError("made again")

    monkeypatch.setattr(steps.Resample, "apply", never)
    again, same = cache.run(made, volume())
    assert again.digest() == first.digest() and same == trail
    longer = pipeline.read(HEAD.replace('step = "features"', 'step = "normalise"'))
    assert [one.step for one in cache.run(longer, volume())[1][:3]] == [one.step for one in trail[:3]], "what they share is shared"
    damaged = tmp_path / "cache" / f"{trail[1].output}.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\x01")
    with pytest.raises(AssertionError, match="made again"):
        cache.run(made, volume())
    with pytest.raises(Problem):
        cache.read(trail[1].output)
    assert (tmp_path / "cache").stat().st_mode & 0o77 == 0
    cache.wipe()
    assert not list((tmp_path / "cache").iterdir())


def test_a_version_follows_every_parameter_and_defaults_are_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    made = pipeline.read(HEAD)
    version = made.version
    assert pipeline.read(HEAD.replace('to = "RAS"\n', "")).version == version
    changed = {pipeline.read(HEAD.replace(a, b)).version for a, b in (("40", "41"), ("RAS", "LPS"), ("1.5", "1.25"))}
    assert len(changed | {made.version}) == 4
    stated = made.stated()
    assert stated.model_dump(mode="json")["steps"][1] == {
        "step": "resample",
        "version": 1,
        "parameters": {"spacing": ["1.5", 2, 1], "by": "linear"},
    }
    assert pipeline.of(contract.Pipeline.model_validate_json(stated.model_dump_json())) == made
    monkeypatch.setattr(steps.Window, "version", 2)
    for again in (lambda: pipeline.read(HEAD), lambda: pipeline.of(stated)):
        with pytest.raises(Problem, match="window") as refused:
            again()
        assert refused.value.code == "pipelines.version"
    assert pipeline.read(HEAD.replace("version = 1\n", "")).version != version


def test_what_a_plan_states_is_repeated_exactly_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    stated = pipeline.read(HEAD).stated()
    assert pipeline.of(stated).version == stated.hash
    window = stated.steps[2].model_copy(update={"parameters": {**stated.steps[2].parameters, "width": 81}})
    altered = stated.model_copy(update={"steps": (*stated.steps[:2], window, *stated.steps[3:])})
    unknown = stated.model_copy(update={"steps": (stated.steps[0].model_copy(update={"step": "sharpen"}),)})
    for wrong, code in ((altered, "pipelines.hash"), (unknown, "pipelines.version")):
        with pytest.raises(Problem) as refused:
            pipeline.of(wrong)
        assert refused.value.code == code
    monkeypatch.setattr(pipeline, "ARITHMETIC", "numpy-99")
    with pytest.raises(Problem, match="numpy-99"):
        pipeline.of(stated)


def test_scaling_is_the_mean_of_what_is_covered_and_keeps_the_place() -> None:
    picture = Data(np.arange(24, dtype=np.float32).reshape(4, 6))
    made = steps.Scale(shape=(2, 3)).apply(picture).values
    assert np.array_equal(made, picture.values.reshape(2, 2, 3, 2).mean(axis=(1, 3))) and made.dtype == np.float32
    data = volume()
    small = steps.Scale(shape=(4, 3, 5)).apply(data)
    assert small.values.shape == (4, 3, 5) and small.affine is not None and data.affine is not None
    np.testing.assert_allclose(small.values.mean(), data.values.mean(), rtol=1e-4)
    ends = [np.array((*corner, 1)) for corner in ((-0.5, -0.5, -0.5), (3.5, 2.5, 4.5))]
    whole = [np.array((*corner, 1)) for corner in ((-0.5, -0.5, -0.5), (6.5, 8.5, 4.5))]
    for after, before in zip(ends, whole, strict=True):
        np.testing.assert_allclose(small.affine @ after, data.affine @ before, atol=1e-9)


def test_cropping_keeps_the_middle_and_its_place() -> None:
    picture = Data(np.arange(30, dtype=np.int16).reshape(5, 6))
    assert np.array_equal(steps.Crop(shape=(3, 4)).apply(picture).values, picture.values[1:4, 1:5])
    wide = steps.Crop(shape=(7, 4), fill=-1).apply(picture).values
    assert np.array_equal(wide[1:6], picture.values[:, 1:5]) and (wide[[0, 6]] == -1).all() and wide.dtype == np.int16
    data = volume()
    made = steps.Crop(shape=(4, 12, 5)).apply(data)
    assert made.values.shape == (4, 12, 5) and made.affine is not None and data.affine is not None
    assert made.values[0, 1, 0] == data.values[1, 0, 0]
    np.testing.assert_allclose(made.affine @ [0, 1, 0, 1], data.affine @ [1, 0, 0, 1], atol=1e-9)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("name = ", "file"), ('name = "X y"\nsteps = []', "file"), ('name = "x"\nsteps = []', "steps"),
        (HEAD.replace('"window"', '"widow"'), "step 3"), (HEAD.replace("width = 80", "width = -1"), "width"),
        (HEAD.replace("width = 80", "wide = 80"), "step 3"), (HEAD.replace("[1.5, 2.0, 1.0]", "[1.5, 2.0]"), "spacing"),
        (HEAD.replace("width = 80", "width = nan"), "width"),
    ],
)  # fmt: skip
def test_a_wrong_declaration_says_where(text: str, place: str) -> None:
    with pytest.raises(Problem, match=place):
        pipeline.read(text)


@pytest.mark.parametrize(
    ("step", "data"),
    [
        (steps.Orient(), Data(np.ones((3, 3)))), (steps.Resample(spacing=(0.01, 1, 1)), volume()), (steps.Rate(hertz=9), Data(np.ones(3))),
        (steps.Scale(shape=(2, 2)), volume()), (steps.Crop(shape=(2, 2, 2)), Data(np.ones((3, 3)))),
        (steps.Band(high=600), beats()), (steps.Features(), Data(np.array([np.nan]))), (steps.Normalise(), Data(np.array([np.inf]))),
    ],
)  # fmt: skip
def test_a_step_refuses_what_it_is_not_for(step: steps.Step, data: Data) -> None:
    with pytest.raises(Problem, match=step.name):
        step.apply(data)


def test_batches_come_one_at_a_time_in_an_order_that_a_seed_decides() -> None:
    def whole(key: int) -> Data:
        return Data(np.full((64, 64, 16), key, np.float32))

    def order(**options: int) -> list[int]:
        return [int(one) for batch in stream(range(10), whole, 4, **options) for one in batch[:, 0, 0, 0]]

    assert order() == list(range(10)) and order(seed=1) == order(seed=1) != order(seed=1, epoch=1)
    assert sorted(order(seed=1)) == list(range(10))
    peaks = []
    for count in (8, 80):
        tracemalloc.start()
        for _ in stream(range(count), whole, 4):
            pass
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0] + 65536
    with pytest.raises(Problem, match="2x2, 3x3"):
        list(stream([2, 3], lambda key: Data(np.ones((key, key))), 2))


def test_files_become_data_and_data_come_back_as_they_were() -> None:
    for raw, form in ((making.nifti(), "nifti"), (making.wav(), "wav")):
        data = from_files(form, {"0": raw})
        again = unpacked(packed(data))
        assert again.digest() == data.digest() and again.rate == data.rate and np.array_equal(again.values, data.values)
    with pytest.raises(Problem, match="different rates"):
        from_files("edf", {"0": making.edf()})
    alone = from_files("edf", {"0": making.edf()}, ["temp"])
    assert (alone.values.shape, alone.rate, alone.unit) == ((1, 20), 10, "degC"), "channels of one rate, by name"
    with pytest.raises(Problem):
        unpacked(b"\x09" + b"\0" * 30)


def test_the_command_makes_what_fits_and_names_what_does_not(tmp_path: Path) -> None:
    files = {"a/t1.nii.gz": making.nifti(), "b.nii": making.nifti(2, packed=False), "c.png": making.png()} | making.record()
    data = making.write(tmp_path / "data", files)
    (tmp_path / "p.toml").write_text(HEAD)
    arguments = ["apply", str(tmp_path / "p.toml"), str(data), str(tmp_path / "out")]
    said = CliRunner().invoke(dataset, arguments, standalone_mode=False)
    shown = json.loads(said.stdout)
    assert said.return_value == 1 and shown["made"] == 2 and [one["item"] for one in shown["unfit"]] == ["c.png", "r212.hea"]
    lines = [json.loads(line) for line in (tmp_path / "out" / "origin.jsonl").read_text().splitlines()]
    assert [line["item"] for line in lines] == ["a/t1.nii.gz", "b.nii"]
    assert Cache(tmp_path / "out").read(lines[0]["steps"][-1]["output"]).values.shape == (13,)
    steps_said = CliRunner().invoke(dataset, ["steps"], standalone_mode=False).stdout
    assert all(name in steps_said for name in steps.STEPS)


def test_items_of_every_kind_become_data(tmp_path: Path) -> None:
    ct = Path(str(get_testdata_file("CT_small.dcm"))).read_bytes()
    files = {"ct.dcm": ct, "x.jpg": making.jpeg(turned=6), "x.csv": making.table()} | making.record()
    with opened(making.write(tmp_path / "data", files)) as source:
        items = {item.key: item for item in Files().items(source)}
        shapes = {key: load(source, item).values.shape for key, item in items.items() if item.kind != "table"}
        assert shapes == {"ct.dcm": (128, 128), "x.jpg": (60, 50), "r212.hea": (2, 21)}
        assert load(source, items["ct.dcm"]).values.min() < 0, "in Hounsfield units"
        assert load(source, items["r212.hea"]).rate == 360
        with pytest.raises(Problem, match="csv"):
            load(source, items["x.csv#1"])
