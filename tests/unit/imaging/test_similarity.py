"""Near-duplicates: copies that were changed a little come together, others stay apart; against another implementation."""

from __future__ import annotations

import imagehash
import numpy as np
import pytest
from PIL import Image, ImageEnhance

from medmesh.imaging.similarity import BITS, cluster, difference_hash


def scene(seed: int, size: int = 96) -> Image.Image:
    """Smooth blobs, as different from each other as two people's slices."""
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 7), dtype=np.uint8)
    return Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)


def variants(image: Image.Image) -> list[Image.Image]:
    return [image, image.resize((150, 130)), ImageEnhance.Brightness(image).enhance(0.85), image.convert("RGB"), image.crop((1, 1, 95, 95))]


def test_changed_copies_come_together_and_others_stay_apart() -> None:
    images = [variant for seed in range(40) for variant in variants(scene(seed))]
    labels = cluster(images, 8)
    assert labels == [seed for seed in range(40) for _ in range(5)]


def test_labels_follow_the_images_not_their_order() -> None:
    images = [variant for seed in range(12) for variant in variants(scene(seed))]
    order = np.random.default_rng(5).permutation(len(images))
    straight, shuffled = cluster(images, 8), cluster([images[i] for i in order], 8)
    assert shuffled[0] == 0 and max(shuffled) == 11
    pairs = {(straight[i], label) for i, label in zip(order, shuffled, strict=True)}
    assert len(pairs) == 12


def test_the_hash_is_the_known_one() -> None:
    for seed in range(30):
        assert (difference_hash(scene(seed)) == imagehash.dhash(scene(seed)).hash.ravel()).all()


@pytest.mark.parametrize("distance", [0, 6, 14])
def test_clusters_are_the_connected_components(distance: int) -> None:
    noise = [Image.fromarray(np.random.default_rng(i).integers(0, 256, (9, 8), dtype=np.uint8)).rotate(i % 3) for i in range(60)]
    images = noise + [variant for seed in range(10) for variant in variants(scene(seed))]
    hashes = [imagehash.dhash(image) for image in images]
    parent = list(range(len(images)))

    def root(i: int) -> int:
        while parent[i] != i:
            i = parent[i]
        return i

    for i in range(len(images)):
        for j in range(i):
            if hashes[i] - hashes[j] <= distance:
                parent[max(root(i), root(j))] = min(root(i), root(j))
    names = {name: label for label, name in enumerate(dict.fromkeys(root(i) for i in range(len(images))))}
    assert cluster(images, distance) == [names[root(i)] for i in range(len(images))]


def test_the_edges_of_the_question() -> None:
    assert cluster([], 4) == []
    assert cluster([scene(1)], 0) == [0]
    assert cluster([scene(1), scene(2), scene(3)], BITS) == [0, 0, 0]
    with pytest.raises(ValueError, match="distance"):
        cluster([scene(1)], 65)
