"""The tree against the reference vectors of Certificate Transparency and against a naive recursion of RFC 6962 §2.1."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medmesh.ledger import tiles
from medmesh.ledger.tree import (
    EMPTY,
    consistency_proof,
    fold,
    inclusion_proof,
    leaf_hash,
    root,
    verify_consistency,
    verify_inclusion,
)

LEAVES = [bytes.fromhex(h) for h in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")]
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


def naive(leaves: list[bytes]) -> bytes:
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\0" + leaves[0]).digest()
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return hashlib.sha256(b"\1" + naive(leaves[:k]) + naive(leaves[k:])).digest()


def stored(leaves: list[bytes]) -> tiles.Tiles:
    """Tiles as a log would serve them."""
    levels = [[leaf_hash(leaf) for leaf in leaves]]
    while len(levels[-1]) >= 256:
        below = levels[-1]
        levels.append([fold(below[i : i + 256]) for i in range(0, len(below) - 255, 256)])
    return lambda level, number, width: b"".join(levels[level][number * 256 : number * 256 + width])


def test_reference_vectors() -> None:
    assert root(lambda level, index: b"", 0) == EMPTY
    for size, expected in enumerate(ROOTS, start=1):
        assert fold([leaf_hash(leaf) for leaf in LEAVES[:size]]).hex() == expected


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 1200), st.data())
def test_proofs_from_tiles_verify_and_altered_ones_do_not(size: int, data: st.DataObject) -> None:
    leaves = [str(n).encode() for n in range(size)]
    node = tiles.nodes(stored(leaves), size)
    top = root(node, size)
    assert top == naive(leaves)
    index = data.draw(st.integers(0, size - 1))
    proof = inclusion_proof(node, index, size)
    assert verify_inclusion(leaf_hash(leaves[index]), index, size, proof, top)
    assert not verify_inclusion(leaf_hash(b"other"), index, size, proof, top)
    if size > 1:
        assert not verify_inclusion(leaf_hash(leaves[index]), (index + 1) % size, size, proof, top)
        assert not verify_inclusion(leaf_hash(leaves[index]), index, size, proof[:-1], top)
    old = data.draw(st.integers(0, size))
    before = naive(leaves[:old])
    path = consistency_proof(node, old, size)
    assert verify_consistency(old, size, before, top, path)
    if 0 < old < size:
        assert not verify_consistency(old, size, hashlib.sha256(b"x").digest(), top, path)
        assert not verify_consistency(old, size, before, top, [*path[:-1], bytes(32)])


def test_paths_of_the_specification() -> None:
    assert tiles.path(0, 1234067) == "tile/0/x001/x234/067"
    assert tiles.path("entries", 273, 112) == "tile/entries/273.p/112"
    assert tiles.parse(["x001", "x234", "067"]) == (1234067, 256)
    assert tiles.parse(["273.p", "112"]) == (273, 112)
    # The example of C2SP tlog-tiles: 70,000 leaves.
    shape = list(tiles.shape(70_000))
    assert [(level, width) for level, _, width in shape if width < 256] == [(0, 112), (1, 17), (2, 1)]
    assert sum(1 for level, _, width in shape if (level, width) == (0, 256)) == 273
    for bad in (["1"], ["x12", "003"], ["001.p", "256"], ["001.p", "0"], ["a", "b"]):
        with pytest.raises(ValueError):
            tiles.parse(bad)
