"""Proofs made with hashes that are kept between them, against proofs made from the tiles alone, while the log grows."""

from __future__ import annotations

import hashlib
import random
from functools import partial
from typing import Any

import pytest

from medmesh.ledger import tiles, tree
from medmesh.ledger.tree import consistency_proof, fold, inclusion_proof, verify_consistency, verify_inclusion
from medmesh_audit import queries
from medmesh_audit.queries import Upper

LEAVES = [hashlib.sha256(str(n).encode()).digest() for n in range(256 * 300 + 7)]
LEVELS = [LEAVES]
while len(LEVELS[-1]) >= 256:
    LEVELS.append([fold(LEVELS[-1][i : i + 256]) for i in range(0, len(LEVELS[-1]) - 255, 256)])


def read(level: int, number: int, width: int) -> bytes:
    return b"".join(LEVELS[level][number * 256 : number * 256 + width])


@pytest.mark.parametrize("most", [1, 300, 5_000])
async def test_kept_hashes_make_the_same_proofs_and_spare_reading(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Also where more is asked for than is kept: what is forgotten while a proof is made does not spoil it."""
    dice, upper, tiles_read = random.Random(3), Upper(most), 0

    async def stored(_uow: Any, wanted: list[tuple[int, int, int]]) -> dict[tuple[int, int, int], bytes]:
        nonlocal tiles_read
        tiles_read += len(wanted)
        return {place: read(*place) for place in wanted}

    monkeypatch.setattr(queries, "_tiles", stored)
    unit: Any = None  # nothing is read from a database here
    for size in sorted(dice.sample(range(1, len(LEAVES)), 60)) + [len(LEAVES)] * 60:
        index, old = dice.randrange(size), dice.randrange(1, size + 1)
        plain = tiles.nodes(read, size)
        inclusion = await queries._prove(unit, size, partial(inclusion_proof, index=index, size=size), upper)
        consistency = await queries._prove(unit, size, partial(consistency_proof, old=old, new=size), upper)
        assert [inclusion, consistency] == [inclusion_proof(plain, index, size), consistency_proof(plain, old, size)]
        root = tree.root(plain, size)
        assert verify_inclusion(LEAVES[index], index, size, inclusion, root)
        assert verify_consistency(old, size, tree.root(tiles.nodes(read, old), old), root, consistency)
        assert len(upper._known) <= most
    if most == 5_000:
        assert tiles_read < 120 * 4, "most of what lies above is known"
    upper.forget()
    assert upper._known == {}
