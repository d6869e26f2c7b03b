"""The second tree: SM3 and SM2 against the standards' own examples, proofs, and that the two trees never pass for each other."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from medmesh.errors import Problem
from medmesh.ledger import note, tree

pytest.importorskip("gmssl_pyx", reason="medmesh[sm] is not installed")

from medmesh.ledger import sm

LEAVES = [b"record %d" % i for i in range(600)]
ORIGIN = "log.example/1"


def naive(leaves: list[bytes]) -> bytes:
    """RFC 6962 section 2.1 with SM3, by a program of its own."""

    def sm3(data: bytes) -> bytes:
        digest = hashes.Hash(hashes.SM3())
        digest.update(data)
        return digest.finalize()

    if len(leaves) < 2:
        return sm3(b"\0" + leaves[0]) if leaves else sm3(b"")
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return sm3(b"\1" + naive(leaves[:k]) + naive(leaves[k:]))


def root(size: int) -> bytes:
    edge = sm.edge()
    for begin in range(0, size, 256):
        edge.add([sm.leaf_hash(leaf) for leaf in LEAVES[begin : min(begin + 256, size)]])
    return edge.root()


def node(level: int, index: int) -> bytes:
    return tree.fold([sm.leaf_hash(leaf) for leaf in LEAVES[index << level : (index + 1) << level]], sm.node_hash)


def test_the_examples_of_the_standards() -> None:
    """GM/T 0004-2012 appendix A; GM/T 0003.5-2012 (GB/T 32918.5-2017) appendix A.2."""
    assert sm.sm3(b"abc").hex() == "66c7f0f462eeedd9d1f2d46bdc10e4e24167c4875cf2f7a2297da02b8f4ba8e0"
    assert sm.sm3(b"abcd" * 16).hex() == "debe9ff92275b8a138604889c18e5a4d6fdb70e5387e5765293dcba39c0c5732"
    x, y = (
        "09F9DF311E5421A150DD7D161E4BC5C672179FAD1833FC076BB08FF356F35020",
        "CCEA490CE26775A52DC6EA718CC1AA600AED05FBF35E084A6632F6072DA9AD13",
    )
    r, s = (
        "F5A03B0648D2C4630EEAC513E1BB81A15944DA3827D5B74143AC7EACEEE720B3",
        "B1B6AA29DF212FD8763182BC0D421CA1BB9038FD1F7F42D4840B69C485BBC1AA",
    )
    key = sm.Sm2Key("example-sm3", bytes.fromhex(x + y))
    key.check("message digest", encode_dss_signature(int(r, 16), int(s, 16)))
    for text, signature in (
        ("message Digest", encode_dss_signature(int(r, 16), int(s, 16))),
        ("message digest", encode_dss_signature(int(s, 16), int(r, 16))),
        ("message digest", encode_dss_signature(int(r, 16), int(s, 16)) + b"\0"),
        ("message digest", b"junk"),
    ):
        with pytest.raises(InvalidSignature):
            key.check(text, signature)


def test_roots_and_proofs() -> None:
    for size in (0, 1, 2, 3, 255, 256, 257, 600):
        assert root(size) == naive(LEAVES[:size])
    for size in (1, 7, 257, 600):
        for index in {0, size // 2, size - 1}:
            path = tree.inclusion_proof(node, index, size, sm.node_hash)
            assert sm.verify_inclusion(sm.leaf_hash(LEAVES[index]), index, size, path, root(size))
            assert not sm.verify_inclusion(sm.leaf_hash(b"other"), index, size, path, root(size))
        proof = tree.consistency_proof(node, size, 600, sm.node_hash)
        assert sm.verify_consistency(size, 600, root(size), root(600), proof)
        assert size == 600 or not sm.verify_consistency(size, 600, root(600), root(600), proof)
        # A proof of one tree is none of the other.
        assert size == 600 or not tree.verify_consistency(size, 600, root(size), root(600), proof)


def test_its_checkpoint_is_signed_with_sm2_under_an_origin_of_its_own() -> None:
    key, private = sm.generate(ORIGIN)
    signed = sm.sign(600, root(600), (key, private))
    assert sm.parse_key(str(key)) == key
    assert sm.verify(signed, [str(key)]) == note.Checkpoint("log.example/1-sm3", 600, root(600))
    changes: list[tuple[Callable[[str], str], str]] = [
        (lambda text: text.replace("600", "601"), "ledger.signature"),
        (lambda text: text.replace("-sm3", "-sm4"), "ledger.unsigned"),
        (lambda text: text[:-8] + "\n", "ledger.note"),
    ]
    for change, code in changes:
        with pytest.raises(Problem) as caught:
            sm.verify(change(signed), [str(key)])
        assert caught.value.code == code
    other, _ = sm.generate(ORIGIN)
    with pytest.raises(Problem) as caught:
        sm.verify(signed, [str(other)])
    assert caught.value.code == "ledger.unsigned"


def test_neither_tree_passes_for_the_other() -> None:
    key, private = sm.generate(ORIGIN)
    first = Ed25519PrivateKey.generate()
    vkey = note.verifier_key(ORIGIN, first.public_key())
    for work, argument in ((note.parse_key, str(key)), (sm.parse_key, vkey), (sm.parse_key, str(sm.Sm2Key(ORIGIN, key.public)))):
        with pytest.raises(Problem) as caught:
            work(argument)
        assert caught.value.code == "ledger.key"
    signed = note.sign(note.Checkpoint(ORIGIN, 600, bytes(32)).text(), ORIGIN, first)
    second = sm.sign(600, bytes(32), (key, private))
    # Its line under the first checkpoint is a line of an unknown key to whoever knows the first only.
    assert note.verify(signed + second.split("\n\n")[1], vkey).startswith(ORIGIN)
    for wrong, with_key in ((second, vkey), (signed, None)):
        with pytest.raises(Problem) as caught:
            note.verify(wrong, with_key) if with_key else sm.verify(wrong, [str(key)])
        assert caught.value.code == "ledger.unsigned"
