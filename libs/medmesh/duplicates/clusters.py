"""Which of many hashes belong together, without comparing all of them: the chains of near ones, and the units a split keeps whole.

Two hashes that differ in at most d bits agree wholly in one of any d + 1 parts of them (pigeonhole; Manku, Jain, Das Sarma, "Detecting
Near-Duplicates for Web Crawling", 2007): only hashes that share a part are compared. Memory grows with the hashes alone.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

_BLOCK = 1024
_FEW = 48
_ONES = np.array([one.bit_count() for one in range(256)], dtype=np.uint8)


class Forest:
    """Union-find over 0..count-1 with path halving; the root of a set is its smallest member."""

    def __init__(self, count: int) -> None:
        self.parent = list(range(count))

    def root(self, one: int) -> int:
        """The smallest member of its set."""
        parent = self.parent
        while parent[one] != one:
            parent[one] = parent[parent[one]]
            one = parent[one]
        return one

    def join(self, one: int, other: int) -> None:
        """Make their sets one."""
        first, second = self.root(one), self.root(other)
        self.parent[max(first, second)] = min(first, second)

    def numbered(self) -> list[int]:
        """The set of each member, numbered from 0 by first appearance."""
        names: dict[int, int] = {}
        return [names.setdefault(self.root(one), len(names)) for one in range(len(self.parent))]


def near(hashes: NDArray[np.uint8], distance: int) -> list[int]:
    """The cluster of each of `hashes`, uint8 [count, bytes], numbered from 0 by first appearance.

    Two share a cluster when a chain of hashes leads from one to the other with at most `distance` differing bits a step. Raises
    `ValueError` for a distance that is no number of bits.
    """
    bits = 8 * (hashes.shape[1] if hashes.ndim == 2 else 0)
    if not len(hashes):
        return []
    if not 0 <= distance <= bits:
        raise ValueError(f"distance must be 0..{bits}")
    nodes, member = np.unique(hashes, axis=0, return_inverse=True)  # equal ones are one node: they are most of the work otherwise
    member = member.reshape(-1)
    forest = Forest(len(nodes))
    if distance == bits:
        for node in range(1, len(nodes)):
            forest.join(0, node)
    elif distance:
        for part in _parts(nodes, distance + 1):
            _join_part(forest, nodes, part, distance)
    names: dict[int, int] = {}
    return [names.setdefault(forest.root(int(node)), len(names)) for node in member]


def units(*keys: Sequence[Hashable | None]) -> list[int]:
    """What a split must keep whole: items that agree in any of `keys` (patients, clusters, file hashes), and what these agree with.

    Each of `keys` has one value an item; None agrees with nothing. Numbered from 0 by first appearance. Raises `ValueError` for unequal
    lengths.
    """
    count = len(keys[0]) if keys else 0
    if any(len(key) != count for key in keys):
        raise ValueError("every key needs a value for every item")
    forest = Forest(count)
    for key in keys:
        first: dict[Hashable, int] = {}
        for place, value in enumerate(key):
            if value is not None:
                forest.join(first.setdefault(value, place), place)
    return forest.numbered()


def mixed(clusters: Sequence[int], labels: Sequence[Hashable]) -> list[int]:
    """The clusters whose members have different labels: pictures that look alike and are said to be unlike, for a person to look at."""
    seen: dict[int, Hashable] = {}
    found = set()
    for cluster, label in zip(clusters, labels, strict=True):
        if seen.setdefault(cluster, label) != label:
            found.add(cluster)
    return sorted(found)


def _parts(nodes: NDArray[np.uint8], count: int) -> Iterable[NDArray[np.uint8]]:
    """`count` disjoint selections of all bits, packed; every count-th bit, for neighbours say the same (the dark corners of an image)."""
    unpacked = np.unpackbits(nodes, axis=1)
    for start in range(min(count, unpacked.shape[1])):
        yield np.packbits(unpacked[:, start::count], axis=1)


def _join_part(forest: Forest, nodes: NDArray[np.uint8], part: NDArray[np.uint8], distance: int) -> None:
    """Join the near ones among the nodes that agree in a part: few at a time all together, many as a matrix."""
    _, bucket = np.unique(part, axis=0, return_inverse=True)
    bucket = bucket.reshape(-1)
    order = np.argsort(bucket, kind="stable")
    edges = np.flatnonzero(np.diff(bucket[order])) + 1
    sizes = np.diff(np.concatenate([[0], edges, [len(order)]]))
    for start, size in zip(np.concatenate([[0], edges])[sizes > _FEW], sizes[sizes > _FEW], strict=True):
        _join_near(forest, nodes, order[start : start + size], distance)
    few = np.repeat((sizes > 1) & (sizes <= _FEW), sizes)
    order, bucket = order[few], bucket[order][few]
    for step in range(1, _FEW):
        together = bucket[step:] == bucket[:-step]
        if not together.any():
            break
        one, other = order[:-step][together], order[step:][together]
        close = _ONES[nodes[one] ^ nodes[other]].sum(axis=1, dtype=np.int64) <= distance
        for first, second in zip(one[close].tolist(), other[close].tolist(), strict=True):
            forest.join(first, second)


def _join_near(forest: Forest, nodes: NDArray[np.uint8], bucket: NDArray[np.int64], distance: int) -> None:
    """With bits as +1 and -1 a dot product is bits - 2 x (Hamming distance), exact in float32."""
    signs = np.unpackbits(nodes[bucket], axis=1).astype(np.float32) * 2 - 1
    least = signs.shape[1] - 2 * distance
    for start in range(0, len(bucket), _BLOCK):
        roots = np.array([forest.root(int(node)) for node in bucket])
        rows = slice(start, start + _BLOCK)
        for low in range(start, len(bucket), _BLOCK):
            columns = slice(low, low + _BLOCK)
            close = signs[rows] @ signs[columns].T >= least
            close &= roots[rows][:, np.newaxis] != roots[columns]
            for row in np.flatnonzero(close.any(axis=1)):
                for root in np.unique(roots[columns][close[row]]):
                    forest.join(int(bucket[start + row]), int(root))
