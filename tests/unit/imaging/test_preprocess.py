"""One specification, the same tensor everywhere: against stored values and against the filters' definitions in numpy."""

from __future__ import annotations

import dataclasses
import itertools
import json

import numpy as np
import pytest
from numpy.typing import NDArray

from medmesh.errors import Problem
from medmesh.imaging.preprocess import Preprocess, Resize

RAMP = (np.arange(24, dtype=np.float32) / np.float32(23)).reshape(4, 6)
STORED = {
    "area": [[0.08695652, 0.17391304, 0.26086957], [0.41304348, 0.5, 0.58695652], [0.73913043, 0.82608696, 0.91304348]],
    "bilinear": [[0.10931677, 0.18695652, 0.26459627], [0.42236025, 0.5, 0.57763975], [0.73540373, 0.81304348, 0.89068323]],
}


def weights(source: int, target: int, resize: str) -> NDArray[np.float64]:
    """Row i: how much each source pixel counts in target pixel i; source pixel j covers j to j + 1."""
    scale = source / target
    rows = np.zeros((target, source))
    for i, j in itertools.product(range(target), range(source)):
        if resize == "area":
            rows[i, j] = max(0.0, min((i + 1) * scale, j + 1) - max(i * scale, j))
        else:
            rows[i, j] = max(0.0, 1 - abs(j + 0.5 - (i + 0.5) * scale) / max(scale, 1.0))
    return rows / rows.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("resize", ["area", "bilinear"])
@pytest.mark.parametrize("shape", [(64, 64), (37, 91), (512, 300), (9, 5)])
@pytest.mark.parametrize("size", [8, 32, 33])
def test_it_is_the_filter_it_says(shape: tuple[int, int], size: int, resize: Resize) -> None:
    pixels = np.random.default_rng(3).random(shape, dtype=np.float32)
    expected = weights(shape[0], size, resize) @ pixels.astype(np.float64) @ weights(shape[1], size, resize).T
    assert np.abs(Preprocess(size, resize=resize).apply(pixels)[0] - expected).max() < 2e-6


@pytest.mark.parametrize("resize", ["area", "bilinear"])
def test_it_gives_the_stored_values(resize: Resize) -> None:
    assert np.allclose(Preprocess(3, resize=resize).apply(RAMP)[0], STORED[resize], atol=1e-6)


@pytest.mark.parametrize("resize", ["area", "bilinear"])
def test_shape_type_range_and_repetition(resize: Resize) -> None:
    pixels = (np.random.default_rng(4).random((70, 50)) > 0.5).astype(np.float32)
    specification = Preprocess(32, channels=3, resize=resize)
    result = specification.apply(pixels)
    assert result.shape == (3, 32, 32) and result.dtype == np.float32 and result.flags.c_contiguous
    assert result.min() >= 0 and result.max() <= 1
    assert (result[0] == result[2]).all()
    assert result.tobytes() == specification.apply(np.asfortranarray(pixels)).tobytes()


def test_an_image_of_the_right_size_is_not_touched() -> None:
    pixels = np.random.default_rng(4).random((32, 32), dtype=np.float32)
    assert np.allclose(Preprocess(32).apply(pixels)[0], pixels, atol=1e-6)


def test_the_document_brings_the_same_specification_back() -> None:
    specification = Preprocess(96, channels=3, resize="bilinear")
    document = json.loads(json.dumps(specification.to_document()))
    assert Preprocess.from_document(document) == specification
    assert document == {"size": 96, "channels": 3, "resize": "bilinear", "range": [0, 1]}


@pytest.mark.parametrize(
    "change",
    [
        {"size": 0},
        {"size": "96"},
        {"size": True},
        {"size": 10**6},
        {"channels": 0},
        {"resize": "nearest"},
        {"range": [-1, 1]},
        {"mean": 0.5},
    ],
)
def test_a_document_that_is_not_understood_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(Problem) as caught:
        Preprocess.from_document({**Preprocess(96).to_document(), **change})
    assert caught.value.code == "imaging.preprocess"


def test_a_missing_member_is_not_guessed() -> None:
    document = Preprocess(96).to_document()
    del document["resize"]
    with pytest.raises(Problem):
        Preprocess.from_document(document)


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((4, 4)),
        np.zeros((1, 4, 4), np.float32),
        np.full((4, 4), 2, np.float32),
        np.full((4, 4), np.nan, np.float32),
        np.zeros((0, 4), np.float32),
    ],
)
def test_pixels_of_another_kind_are_refused(pixels: NDArray[np.float32]) -> None:
    with pytest.raises(ValueError, match="pixels"):
        Preprocess(8).apply(pixels)


def test_it_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Preprocess(8).size = 9  # type: ignore[misc]
