"""Duplicates: 3,000 slices counted beside the published figures, and 100,000 hashes clustered beside comparing all of a part of them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import perf_counter

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medmesh.demo.source import folder
from medmesh.duplicates.clusters import mixed, near
from medmesh.duplicates.hashes import exact, look
from tests.bench.common import Measure

BR35H = {"exact_pairs": 1, "groups": 411, "grouped": 1179, "clusters": 1134, "largest": 389, "both_labels": 10}
"""As published for these images: 16 x 16 average hash, groups of equal hashes, chains of at most 6 of 256 bits."""
MANY, ALL = 100_000, 10_000


def measure(names: Sequence[str]) -> list[Measure]:
    """Counts must be the published ones; the time of many is compared with all pairs of a tenth, times a hundred."""
    if names and not any(name.startswith("dup") for name in names):
        return []
    paths = [(path, label) for label in ("no", "yes") for path in sorted((folder() / label).iterdir())]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        seen = list(pool.map(_hashes, [path for path, _ in paths]))
    hashes = np.array([one for _, one in seen])
    groups = [size for size in Counter(map(bytes, hashes)).values() if size > 1]
    clusters = near(hashes, 6)
    counted = {
        "exact_pairs": sum(size > 1 for size in Counter(digest for digest, _ in seen).values()),
        "groups": len(groups),
        "grouped": sum(groups),
        "clusters": len(set(clusters)),
        "largest": max(Counter(clusters).values()),
        "both_labels": len(mixed(clusters, [label for _, label in paths])),
    }
    made = [Measure(f"dup.br35h_{name}", value, "", peer="published", peer_value=BR35H[name]) for name, value in counted.items()]
    many = _many()
    began = perf_counter()
    near(many, 6)
    took = perf_counter() - began
    began = perf_counter()
    _all_pairs(many[:ALL])
    every = (perf_counter() - began) * (MANY / ALL) ** 2
    return [*made, Measure("dup.near_100k", took, "s", peer="all pairs", peer_value=every, goal=every / 5)]


def _hashes(path: Path) -> tuple[str, NDArray[np.uint8]]:
    with Image.open(path) as image:
        return exact(path.read_bytes()), look(image, "average")


def _many() -> NDArray[np.uint8]:
    """Half of them one bit away from the other half."""
    dice = np.random.default_rng(1)
    made = dice.integers(0, 256, (MANY, 32), dtype=np.uint8)
    made[MANY // 2 :] = made[: MANY // 2]
    made[np.arange(MANY // 2, MANY), dice.integers(0, 32, MANY // 2)] ^= np.uint8(1) << dice.integers(0, 8, MANY // 2).astype(np.uint8)
    return made


def _all_pairs(hashes: NDArray[np.uint8]) -> int:
    signs = np.unpackbits(hashes, axis=1).astype(np.float32) * 2 - 1
    return sum(int((signs[start : start + 1024] @ signs.T >= 256 - 12).sum()) for start in range(0, len(signs), 1024))
