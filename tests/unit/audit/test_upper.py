"""Proofs made with hashes that are kept between them, against proofs made from the tiles alone, while the log grows."""

from __future__ import annotations

import hashlib
import random

from medmesh.ledger import tiles, tree
from medmesh.ledger.tree import consistency_proof, fold, inclusion_proof, verify_consistency, verify_inclusion
from medmesh_audit.queries import Upper

LEAVES = [hashlib.sha256(str(n).encode()).digest() for n in range(256 * 300 + 7)]
LEVELS = [LEAVES]
while len(LEVELS[-1]) >= 256:
    LEVELS.append([fold(LEVELS[-1][i : i + 256]) for i in range(0, len(LEVELS[-1]) - 255, 256)])


def read(level: int, number: int, width: int) -> bytes:
    return b"".join(LEVELS[level][number * 256 : number * 256 + width])


def test_kept_hashes_make_the_same_proofs_and_spare_reading() -> None:
    dice, upper, tiles_read = random.Random(3), Upper(most=5_000), 0
    for size in sorted(dice.sample(range(1, len(LEAVES)), 60)) + [len(LEAVES)] * 60:
        index, old = dice.randrange(size), dice.randrange(1, size + 1)

        def both(node: tiles.Node, index: int = index, old: int = old, size: int = size) -> list[list[bytes]]:
            return [inclusion_proof(node, index, size), consistency_proof(node, old, size)]

        wanted = tiles.needed(size, lambda node: both(upper.over(node)))
        tiles_read += len(wanted)
        upper.learn({place: read(*place) for place in wanted})
        inclusion, consistency = both(upper.over(tiles.nodes(read, size)))
        assert [inclusion, consistency] == both(tiles.nodes(read, size))
        root = tree.root(tiles.nodes(read, size), size)
        assert verify_inclusion(LEAVES[index], index, size, inclusion, root)
        assert verify_consistency(old, size, tree.root(tiles.nodes(read, old), old), root, consistency)
        assert len(upper._known) <= 5_000
    assert tiles_read < 120 * 4, "most of what lies above is known"
    upper.forget()
    assert upper._known == {}
