"""What is the same, and what nearly: hashes against another implementation, clusters against comparing all pairs, units of a split."""

from __future__ import annotations

import copy
import tracemalloc

import imagehash
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageEnhance
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

from medmesh.duplicates.clusters import mixed, near, units
from medmesh.duplicates.hashes import BITS, Look, exact, look, same_object, same_pixels
from medmesh.imaging.reading import read, write


def scene(seed: int, size: int = 96) -> Image.Image:
    """Smooth blobs, as different from each other as two people's slices."""
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 7), dtype=np.uint8)
    return Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)


def variants(image: Image.Image) -> list[Image.Image]:
    return [image, image.resize((150, 130)), ImageEnhance.Brightness(image).enhance(0.85), image.convert("RGB"), image.crop((1, 1, 95, 95))]


def hashes(images: list[Image.Image], kind: Look = "difference") -> NDArray[np.uint8]:
    return np.array([look(image, kind) for image in images]).reshape(-1, BITS[kind] // 8)


@pytest.mark.parametrize(("kind", "distance"), [("difference", 8), ("average", 14), ("perceptual", 14)])
def test_changed_copies_come_together_and_others_stay_apart(kind: Look, distance: int) -> None:
    images = [variant for seed in range(40) for variant in variants(scene(seed))]
    assert near(hashes(images, kind), distance) == [seed for seed in range(40) for _ in range(5)]


def test_the_hashes_are_the_known_ones() -> None:
    for seed in range(30):
        image = scene(seed)
        assert np.array_equal(look(image, "difference"), np.packbits(imagehash.dhash(image).hash.ravel()))
        assert np.array_equal(look(image, "perceptual"), np.packbits(imagehash.phash(image).hash.ravel()))
    cells = np.random.default_rng(1).integers(0, 256, (16, 16), dtype=np.uint8)
    assert np.array_equal(look(Image.fromarray(cells), "average"), np.packbits(cells > cells.mean()))


@pytest.mark.parametrize("distance", [0, 1, 6, 14, 63, 64])
@pytest.mark.parametrize("width", [8, 32])
def test_clusters_are_the_connected_components(width: int, distance: int) -> None:
    dice = np.random.default_rng(distance)
    centres = dice.integers(0, 256, (25, width), dtype=np.uint8)
    found = np.repeat(centres, 6, axis=0)
    for row in found:  # some near, some beyond, chains among them
        for bit in dice.integers(0, 8 * width, dice.integers(0, max(2, distance + 3))):
            row[bit // 8] ^= np.uint8(128 >> (bit % 8))
    found = found[dice.permutation(len(found))]
    parent = list(range(len(found)))

    def root(one: int) -> int:
        while parent[one] != one:
            one = parent[one]
        return one

    apart = np.unpackbits(found[:, np.newaxis] ^ found[np.newaxis], axis=2).sum(axis=2)
    for one, other in zip(*np.nonzero(apart <= distance), strict=True):
        parent[max(root(one), root(other))] = min(root(one), root(other))
    names: dict[int, int] = {}
    assert near(found, distance) == [names.setdefault(root(one), len(names)) for one in range(len(found))]


def test_many_hashes_take_little_memory() -> None:
    dice = np.random.default_rng(2)
    found = dice.integers(0, 256, (2000, 32), dtype=np.uint8)
    found[:, :24] = 0  # three quarters of every picture are black
    found[1000:] = found[:1000]
    found[1000:, 31] ^= 1
    tracemalloc.start()
    labels = near(found, 1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert labels == [*range(1000), *range(1000)] and peak < 24 << 20


def test_the_edges_of_the_question() -> None:
    assert near(np.zeros((0, 8), np.uint8), 4) == []
    assert near(hashes([scene(1)]), 0) == [0]
    assert near(hashes([scene(1), scene(2), scene(3)]), 64) == [0, 0, 0]
    with pytest.raises(ValueError, match="distance"):
        near(hashes([scene(1)]), 65)


def test_a_split_keeps_patients_and_copies_whole() -> None:
    patients = ["a", "a", "b", None, None, "c"]
    clusters = [0, 1, 1, 2, 3, 3]
    assert units(patients, clusters) == [0, 0, 0, 1, 2, 2]
    assert units() == [] and units([None, None]) == [0, 1]
    with pytest.raises(ValueError, match="every item"):
        units(patients, [1])


def test_clusters_with_two_labels_are_named() -> None:
    assert mixed([0, 0, 1, 1, 2], ["yes", "no", "yes", "yes", "no"]) == [0]


def test_an_object_is_the_same_in_every_transfer_syntax_and_another_when_it_says_something_else() -> None:
    original = dcmread(str(get_testdata_file("CT_small.dcm")))
    first = read(write(original))
    again = []
    for syntax in (ImplicitVRLittleEndian, ExplicitVRLittleEndian):
        one = copy.deepcopy(original)
        one.file_meta.TransferSyntaxUID = syntax
        again.append(read(write(one)))
    packed = copy.deepcopy(original)
    packed.compress(RLELossless, generate_instance_uid=False)
    again.append(read(write(packed)))
    assert {same_object(one) for one in again} == {same_object(first)}
    assert len({exact(write(one)) for one in again}) == 3
    changed = copy.deepcopy(first)
    changed.PatientName = "Somebody^Else"
    brighter = copy.deepcopy(first)
    brighter.PixelData = bytes(len(first.PixelData))
    assert len({same_object(one) for one in (first, changed, brighter)}) == 3
    assert same_pixels(changed.pixel_array) == same_pixels(first.pixel_array)


def test_the_same_pixels_are_the_same_however_they_lie() -> None:
    values = np.arange(12, dtype=np.int16).reshape(3, 4)
    assert same_pixels(values) == same_pixels(np.asfortranarray(values)) == same_pixels(values.astype(">i2"))
    assert len({same_pixels(one) for one in (values, values.T, values.reshape(4, 3), values.astype(np.int32), values + 1)}) == 5
