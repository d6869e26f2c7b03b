"""The Merkle tree of RFC 6962 §2.1 over SHA-256; proofs are verified as in RFC 9162 §2.1.3.2 and §2.1.4.2."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

EMPTY = hashlib.sha256(b"").digest()

Pair = Callable[[bytes, bytes], bytes]
"""(left, right) -> the hash of their parent. SHA-256 everywhere but in the second tree of `medmesh.ledger.sm`."""
Node = Callable[[int, int], bytes]
"""(level, index) -> the hash of the full subtree of 2^level leaves that begins at leaf index * 2^level."""


def leaf_hash(data: bytes) -> bytes:
    """SHA-256(0x00 || data)."""
    return hashlib.sha256(b"\0" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """SHA-256(0x01 || left || right)."""
    return hashlib.sha256(b"\1" + left + right).digest()


def fold(hashes: Sequence[bytes], pair: Pair = node_hash, empty: bytes = EMPTY) -> bytes:
    """The root over leaf hashes (any number)."""
    if not hashes:
        return empty
    level = list(hashes)
    while len(level) > 1:
        paired = [pair(level[i], level[i + 1]) for i in range(0, len(level) - 1, 2)]
        # RFC 6962 splits at the largest power of two, which carries an odd node up unchanged.
        level = paired + ([level[-1]] if len(level) % 2 else [])
    return level[0]


def subtree(node: Node, begin: int, end: int, pair: Pair = node_hash) -> bytes:
    """The hash over leaves `begin`..`end`, where begin is a multiple of the largest power of two below the width."""
    width = end - begin
    if width & (width - 1) == 0:
        level = width.bit_length() - 1
        return node(level, begin >> level)
    split = 1 << ((width - 1).bit_length() - 1)
    return pair(subtree(node, begin, begin + split, pair), subtree(node, begin + split, end, pair))


def root(node: Node, size: int) -> bytes:
    """The root of the tree of `size` leaves."""
    return subtree(node, 0, size) if size else EMPTY


def inclusion_proof(node: Node, index: int, size: int, pair: Pair = node_hash) -> list[bytes]:
    """The audit path of leaf `index` in the tree of `size` leaves, nearest sibling first."""
    if not 0 <= index < size:
        raise ValueError(f"leaf {index} is not in a tree of {size}")
    proof: list[bytes] = []
    begin, end = 0, size
    while end - begin > 1:
        split = begin + (1 << ((end - begin - 1).bit_length() - 1))
        if index < split:
            proof.append(subtree(node, split, end, pair))
            end = split
        else:
            proof.append(subtree(node, begin, split, pair))
            begin = split
    return proof[::-1]


def consistency_proof(node: Node, old: int, new: int, pair: Pair = node_hash) -> list[bytes]:
    """Proof that the tree of `new` leaves extends that of `old` (RFC 6962 §2.1.2)."""
    if not 0 <= old <= new:
        raise ValueError(f"{old} is not a prefix of {new}")
    if old in (0, new):
        return []

    def part(m: int, begin: int, end: int, whole: bool) -> list[bytes]:
        if m == end - begin:
            return [] if whole else [subtree(node, begin, end, pair)]
        k = 1 << ((end - begin - 1).bit_length() - 1)
        if m <= k:
            return [*part(m, begin, begin + k, whole), subtree(node, begin + k, end, pair)]
        return [*part(m - k, begin + k, end, False), subtree(node, begin, begin + k, pair)]

    return part(old, 0, new, True)


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], expected: bytes, pair: Pair = node_hash) -> bool:
    """Whether the leaf hash `leaf` stands at `index` under the root `expected`."""
    if not 0 <= index < size:
        return False
    fn, sn, r = index, size - 1, leaf
    for p in proof:
        if sn == 0:
            return False
        if fn & 1 or fn == sn:
            r = pair(p, r)
            while fn and not fn & 1:
                fn, sn = fn >> 1, sn >> 1
        else:
            r = pair(r, p)
        fn, sn = fn >> 1, sn >> 1
    return sn == 0 and r == expected


def verify_consistency(
    old: int, new: int, old_root: bytes, new_root: bytes, proof: Sequence[bytes], pair: Pair = node_hash, empty: bytes = EMPTY
) -> bool:
    """Whether the tree `new` extends the tree `old`."""
    if old == new:
        return old_root == new_root and not proof
    if old == 0:
        return not proof and old_root == empty
    if not 0 < old < new or not proof:
        return False
    path = list(proof)
    if old & (old - 1) == 0:
        path.insert(0, old_root)
    fn, sn = old - 1, new - 1
    while fn & 1:
        fn, sn = fn >> 1, sn >> 1
    fr = sr = path[0]
    for c in path[1:]:
        if sn == 0:
            return False
        if fn & 1 or fn == sn:
            fr, sr = pair(c, fr), pair(c, sr)
            while fn and not fn & 1:
                fn, sn = fn >> 1, sn >> 1
        else:
            sr = pair(sr, c)
        fn, sn = fn >> 1, sn >> 1
    return sn == 0 and fr == old_root and sr == new_root
