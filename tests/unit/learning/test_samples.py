"""What a worker is given: written a row at a time, read a batch at a time, the same for every reader of safetensors."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from tests.unit.importing import making

from medmesh.contracts.data import SignalSchema, VolumeSchema
from medmesh.errors import Problem
from medmesh.importing import stored
from medmesh.learning import weights
from medmesh.pipelines.data import Data
from medmesh.pipelines.fitting import decoded, fitted, sized

CLASSES = ("none", "tumour")


def test_a_file_is_written_by_the_row_and_read_as_any_other(tmp_path: Path) -> None:
    x = np.random.default_rng(1).standard_normal((7, 2, 3), dtype=np.float32)
    y = np.arange(7)
    weights.save_rows(tmp_path / "a", "x", x.shape, "F32", iter(x), {"y": y, "patients": y[::-1]})
    found, plain = weights.mapped(tmp_path / "a"), weights.load(tmp_path / "a")
    for read in (found, plain):
        assert sorted(read) == ["patients", "x", "y"]
        np.testing.assert_array_equal(read["x"], x)
        np.testing.assert_array_equal(read["y"], y)
        np.testing.assert_array_equal(read["patients"], y[::-1])
    assert (found["x"].flags.owndata, found["x"].flags.writeable) == (False, False)  # of the file, as it lies
    for wrong in (x[:6], [*x, x[0]], [x[0].T] * 7):
        with pytest.raises(ValueError, match="row"):
            weights.save_rows(tmp_path / "b", "x", x.shape, "F32", iter(wrong), {})


def test_memory_is_a_batch_however_many_samples_there_are(tmp_path: Path) -> None:
    row = np.ones((1, 32, 32, 32), dtype=np.float32)
    peaks = []
    for count in (20, 200):  # 2.5 and 25 MiB
        tracemalloc.start()
        weights.save_rows(tmp_path / "x", "x", (count, *row.shape), "F32", (row for _ in range(count)), {})
        x = weights.mapped(tmp_path / "x")["x"]
        assert all(float(np.array(x[at : at + 10]).sum()) == 10 * row.size for at in range(0, count, 10))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0] + 65536


def volume(spacing: tuple[str, str, str] | None = None) -> VolumeSchema:
    return VolumeSchema(kind="volumes", volume="MR", size=(8, 8, 4), spacing=spacing, classes=CLASSES)


def test_volumes_end_in_the_shape_of_the_plan_whatever_their_axes() -> None:
    raw = stored.pack(stored.Stored("i", "nifti", {"0": making.nifti()}))
    data = decoded(raw, volume())
    assert data.values.shape == (7, 6, 5) and data.affine is not None
    made = fitted(data, volume())
    assert (made.shape, made.dtype) == ((1, 8, 8, 4), np.float32)
    # as stored: the first axis runs to anterior, the second to left; RAS exchanges and flips them
    whole = np.flip(data.values.transpose(1, 0, 2), 0)
    scaled = (whole - whole.mean()) / whole.std()
    np.testing.assert_allclose(made[0, 1:7, 0:7, :], scaled[:, :, 0:4], atol=1e-5)
    assert not made[0, 0].any() and not made[0, 7].any() and not made[0, :, 7].any(), "filled with 0 around"
    wide = fitted(data, volume(("0.8", "1.5", "1.5")))
    assert wide.shape == (1, 8, 8, 4) and not np.array_equal(wide, made), "twice as many slices, of which the middle ones"
    plain = Data(np.arange(4 * 4 * 4, dtype=np.int16).reshape(4, 4, 4))
    assert fitted(plain, volume()).shape == (1, 8, 8, 4), "without a geometry as it lies"
    for unfit, schema in ((plain, volume(("1", "1", "1"))), (Data(np.zeros((2, 2))), volume())):
        with pytest.raises(Problem) as caught:
            fitted(unfit, schema)
        assert caught.value.code == "pipelines.unfit"


def test_signals_have_the_channels_of_the_plan_in_its_order() -> None:
    files = making.record()
    raw = stored.pack(stored.Stored("i", "wfdb", {name: files[name] for name in ("r212.hea", "r212.dat")}))
    header = files["r212.hea"].decode().splitlines()[1:3]
    names = [line.split(maxsplit=8)[8] for line in header]
    schema = SignalSchema(kind="signals", signal="ECG", channels=(names[1].upper(), names[0]), rate=180, length=30, classes=CLASSES)
    data = decoded(raw, schema)
    other = decoded(raw, schema.model_copy(update={"channels": tuple(names)}))
    np.testing.assert_array_equal(data.values, other.values[::-1])
    made = fitted(data, schema)
    assert (made.shape, made.dtype) == ((2, 30), np.float32)
    assert made[:, :10].any() and not made[:, 11:].any(), "21 samples at 360 Hz are 11 at 180, the rest is 0"
    with pytest.raises(Problem, match="no channel V9"):
        decoded(raw, schema.model_copy(update={"channels": ("V9",)}))


def test_sizes_are_cut_and_filled() -> None:
    line = np.arange(1, 6, dtype=np.float32)
    assert sized(line, (3,), centred=True).tolist() == [2, 3, 4]
    assert sized(line, (3,), centred=False).tolist() == [1, 2, 3]
    assert sized(line, (7,), centred=True).tolist() == [0, 1, 2, 3, 4, 5, 0]
    assert sized(line, (7,), centred=False).tolist() == [1, 2, 3, 4, 5, 0, 0]


def test_a_stored_item_is_what_was_packed_or_an_error() -> None:
    one = stored.Stored("item", "wfdb", {"record.hea": b"a", "record.dat": b"b" * 100})
    raw = stored.pack(one)
    assert stored.unpack(raw) == one and stored.is_stored(raw) and stored.pack(one) == raw
    assert stored.pack(stored.Stored("other", "wfdb", one.files)) != raw, "two patients share no object"
    for broken in (raw[:50], b"", making.npz(), raw.replace(b"b" * 100, b"c" * 100)):
        with pytest.raises(Problem) as caught:
            stored.unpack(broken)
        assert caught.value.code == "formats.damaged"
