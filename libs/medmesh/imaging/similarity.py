"""Near-duplicate images by perceptual hash, so that one picture and its copies never stand on both sides of a split."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

BITS = 64


def difference_hash(image: Image.Image) -> NDArray[np.bool_]:
    """dHash: bool [64], whether each of 8 x 8 cells is darker than its right neighbour (N. Krawetz, "Kind of Like That", 2013)."""
    grey = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.LANCZOS))
    return (grey[:, 1:] > grey[:, :-1]).ravel()


def cluster(images: Sequence[Image.Image], distance: int) -> list[int]:
    """The cluster of each image, numbered from 0 by first appearance.

    Two images share a cluster when a chain of images leads from one to the other with at most `distance` (0..64) differing hash
    bits a step. Time grows with the square of the number of images: some 3,000 take a second after hashing.
    """
    if not 0 <= distance <= BITS:
        raise ValueError(f"distance must be 0..{BITS}")
    hashes = np.array([difference_hash(image) for image in images], dtype=bool).reshape(-1, BITS)
    # Copies first: equal hashes are one node, which keeps the graph small where many images are the same.
    nodes, member = np.unique(hashes, axis=0, return_inverse=True)
    labels = _components(nodes, distance)[member.reshape(-1)]
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    order = np.argsort(np.argsort(first))
    return [int(label) for label in order[inverse]]


def _components(nodes: NDArray[np.bool_], distance: int) -> NDArray[np.int64]:
    """Connected components, breadth first: each node meets all the unvisited ones once.

    With bits as +1 and -1, a dot product is 64 - 2 x (Hamming distance), exact in float32.
    """
    signs = np.where(nodes, np.float32(1), np.float32(-1))
    labels = np.full(len(nodes), -1, dtype=np.int64)
    unvisited = np.arange(len(nodes))
    label = 0
    while unvisited.size:
        frontier, unvisited = unvisited[:1], unvisited[1:]
        while frontier.size:
            labels[frontier] = label
            near = np.zeros(unvisited.size, dtype=bool)
            for start in range(0, frontier.size, 1024):  # bounds the memory
                products = signs[frontier[start : start + 1024]] @ signs[unvisited].T
                near |= (products >= BITS - 2 * distance).any(axis=0)
            frontier, unvisited = unvisited[near], unvisited[~near]
        label += 1
    return labels
