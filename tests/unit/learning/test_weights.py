"""Files of tensors: the library of the format is the oracle."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from medmesh.errors import Problem
from medmesh.learning import weights

KINDS = ("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "uint16")


def tensors() -> dict[str, np.ndarray]:
    random = np.random.default_rng(7)
    made = {f"层.{kind}.{rows}": random.integers(0, 100, (rows, 3)).astype(kind) for kind in KINDS for rows in (0, 5)}
    made |= {'a"quoted\\\x1f': np.ones(3, np.uint8), "scalar": np.array(2.5, np.float32), "turned": np.arange(12.0).reshape(3, 4).T}
    return made


def test_what_is_saved_is_what_the_library_saves_byte_for_byte(tmp_path: Path) -> None:
    for number, made in enumerate((tensors(), {}, {"large": np.arange(700_000, dtype=np.float32)})):
        ours, theirs = tmp_path / f"ours{number}", tmp_path / f"theirs{number}"
        weights.save(made, ours)
        save_file({name: np.asarray(array, order="C") for name, array in made.items()}, theirs)
        assert ours.read_bytes() == theirs.read_bytes()
        for loaded in (weights.load(ours), weights.mapped(ours), load_file(theirs)):
            assert {name: (a.dtype, a.tolist()) for name, a in loaded.items()} == {n: (a.dtype, a.tolist()) for n, a in made.items()}


def test_numbers_of_another_byte_order_are_turned(tmp_path: Path) -> None:
    weights.save({"x": np.array([1.0, 2.0], ">f4")}, tmp_path / "x")
    assert weights.load(tmp_path / "x")["x"].tolist() == [1.0, 2.0]


def test_tensors_of_a_kind_that_models_have_not_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"before")
    for kind in ("complex64", "bool", "uint32"):
        with pytest.raises(Problem) as caught:
            weights.save({"x": np.ones(3, kind)}, tmp_path / "x")
        assert caught.value.code == "weights.malformed"
    assert (tmp_path / "x").read_bytes() == b"before"


def test_a_reader_of_the_file_before_goes_on_reading_it(tmp_path: Path) -> None:
    weights.save({"x": np.zeros(5, np.float32)}, tmp_path / "x")
    before = weights.mapped(tmp_path / "x")
    weights.save({"x": np.ones(5, np.float32)}, tmp_path / "x")
    assert before["x"].tolist() == [0.0] * 5 and weights.load(tmp_path / "x")["x"].tolist() == [1.0] * 5


def test_what_is_read_one_by_one_is_ones_own(tmp_path: Path) -> None:
    weights.save(tensors(), tmp_path / "x")
    stored = weights.Stored(tmp_path / "x")
    assert {name: (a.dtype, a.tolist()) for name, a in stored.items()} == {n: (a.dtype, a.tolist()) for n, a in tensors().items()}
    assert len(stored) == len(tensors()) and "none" not in stored
    kept = stored["turned"]
    kept += 1
    assert stored["turned"].tolist() == tensors()["turned"].tolist()
    (tmp_path / "x").write_bytes(b"\x08")
    with pytest.raises(Problem):
        weights.Stored(tmp_path / "x")
