"""The edge of a growing tree against the tree computed from all of its leaves."""

from __future__ import annotations

import hashlib

import pytest

from medmesh.ledger import tiles
from medmesh.ledger.edge import Edge, FullTile, split
from medmesh.ledger.tree import EMPTY, fold

LEAVES = [hashlib.sha256(str(n).encode()).digest() for n in range(256 * 256 + 600)]


def test_every_root_is_that_of_the_whole_tree_and_every_tile_that_of_its_leaves() -> None:
    edge, full = Edge(), list[FullTile]()
    assert edge.root() == EMPTY
    for n, leaf in enumerate(LEAVES):
        full += edge.add([leaf])
        if n < 520 or n % 8191 == 0 or n > len(LEAVES) - 3:
            assert edge.root() == fold(LEAVES[: n + 1])
    assert [(t.level, t.number) for t in full if t.level == 0] == [(0, n) for n in range(len(LEAVES) // 256)]
    assert [(t.level, t.number) for t in full if t.level == 1] == [(1, 0)]
    for tile in full:
        assert fold(split(tile.hashes)) == tile.root
    for tile in full[::37]:
        if tile.level == 0:
            assert split(tile.hashes) == LEAVES[tile.number * 256 : tile.number * 256 + 256]


@pytest.mark.parametrize("size", [0, 1, 2, 255, 256, 257, 511, 65_535, 65_536, 65_537, 66_000])
def test_resumed_it_goes_on_as_if_it_had_never_stopped(size: int) -> None:
    whole = Edge()
    for leaf in LEAVES[:size]:
        whole.add([leaf])
    levels = [LEAVES[:size]]
    while levels[-1]:
        below = levels[-1]
        levels.append([fold(below[i : i + 256]) for i in range(0, len(below) - 255, 256)])

    def partial(level: int, number: int, width: int) -> bytes:
        return b"".join(levels[level][number * tiles.WIDTH : number * tiles.WIDTH + width])

    resumed = Edge.resume(size, partial)
    assert resumed.root() == whole.root() == fold(LEAVES[:size])
    kept = resumed.copy()
    for leaf in LEAVES[size : size + 300]:
        assert whole.add([leaf]) == resumed.add([leaf])
    assert resumed.root() == whole.root() == fold(LEAVES[: size + 300])
    assert kept.root() == fold(LEAVES[:size]), "a copy stays where it was"


@pytest.mark.parametrize("step", [1, 7, 255, 256, 257, 3000, 66_136])
def test_in_what_portions_leaves_come_makes_no_difference(step: int) -> None:
    one, full = Edge(), list[FullTile]()
    for begin in range(0, len(LEAVES), step):
        if begin % 8191 < step and len(LEAVES[begin : begin + 1]) + one.size % 256 < 256:
            assert one.root(LEAVES[begin : begin + 1]) == fold(LEAVES[: begin + 1])
        full += one.add(LEAVES[begin : begin + step])
    other = Edge()
    assert full == other.add(LEAVES)
    assert (one.size, one.root(), list(one.partial())) == (other.size, other.root(), list(other.partial()))


def test_a_tile_that_is_too_short_is_refused() -> None:
    with pytest.raises(ValueError, match="tile 0/0"):
        Edge.resume(3, lambda level, number, width: b"\0" * 32)
