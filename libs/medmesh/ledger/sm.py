"""The second tree (`medmesh[sm]`): the same leaves under SM3 (GM/T 0004), its checkpoint signed with SM2 (GM/T 0003, GM/T 0009).

For assessments that count Chinese algorithms only. Its origin is `<origin>-sm3` and its signatures are of the type that signed-note keeps
for others (0xff, followed by our identifier), so that neither tree, key nor checkpoint passes for one of the first: verifiers of the first
ignore these lines, and these functions refuse its keys.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import gmssl_pyx
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from medmesh.errors import Problem
from medmesh.ledger import tree
from medmesh.ledger.edge import Edge
from medmesh.ledger.note import Checkpoint, decode64, open_note, parse_checkpoint, signature_line, valid_name
from medmesh.ledger.tiles import Tiles

SUFFIX = "-sm3"
TYPE = b"\xffmedmesh/sm2-sm3/v1"
_SM3 = functools.partial(hashlib.new, "sm3")


def sm3(data: bytes) -> bytes:
    """32 bytes."""
    return _SM3(data).digest()


EMPTY = sm3(b"")


def leaf_hash(data: bytes) -> bytes:
    """SM3(0x00 || data)."""
    return _SM3(b"\0" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """SM3(0x01 || left || right)."""
    return _SM3(b"\1" + left + right).digest()


def edge() -> Edge:
    """The right edge of an SM3 tree; tiles have the same layout."""
    return Edge(node_hash, EMPTY)


def resume(size: int, read: Tiles) -> Edge:
    """As `Edge.resume`."""
    return Edge.resume(size, read, node_hash, EMPTY)


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> bool:
    """As `medmesh.ledger.tree.verify_inclusion`; `leaf` is a `leaf_hash` of this module."""
    return tree.verify_inclusion(leaf, index, size, proof, root, node_hash)


def verify_consistency(old: int, new: int, old_root: bytes, new_root: bytes, proof: Sequence[bytes]) -> bool:
    """As `medmesh.ledger.tree.verify_consistency`."""
    return tree.verify_consistency(old, new, old_root, new_root, proof, node_hash, EMPTY)


@dataclass(frozen=True, slots=True)
class Sm2Key:
    """Who signs: the origin with its suffix, and the public point (64 bytes, x and y)."""

    name: str
    public: bytes

    @property
    def id(self) -> bytes:
        """As signed-note recommends it, over type, identifier and key."""
        return hashlib.sha256(self.name.encode() + b"\n" + TYPE + self.public).digest()[:4]

    def __str__(self) -> str:
        return f"{self.name}+{self.id.hex()}+{base64.b64encode(TYPE + self.public).decode()}"

    def check(self, text: str, signature: bytes) -> None:
        """SM2 over the text with the default identifier of GM/T 0009, in its one DER spelling. Raises `InvalidSignature`."""
        try:
            canonical = encode_dss_signature(*decode_dss_signature(signature)) == signature
        except ValueError:
            canonical = False
        if not canonical or not gmssl_pyx.sm2_verify(self.public, text.encode(), signature):
            raise InvalidSignature


def generate(origin: str) -> tuple[Sm2Key, bytes]:
    """A new key for the second tree of a log, and its private half (32 bytes, to be kept 0600)."""
    public, private = gmssl_pyx.sm2_key_generate()
    return Sm2Key(origin + SUFFIX, public), private


def parse_key(vkey: str) -> Sm2Key:
    """Raises `Problem` (`ledger.key`), also for keys of the first tree."""
    try:
        name, identifier, encoded = vkey.strip().split("+", 2)
        material = decode64(encoded)
        key = Sm2Key(name, material[len(TYPE) :])
        if not material.startswith(TYPE) or len(key.public) != 64 or not valid_name(name) or not name.endswith(SUFFIX):
            raise ValueError
        gmssl_pyx.normalize_sm2_public_key(key.public)
        if key.id.hex() != identifier:
            raise ValueError
    except (ValueError, gmssl_pyx.InvalidValueError):
        raise Problem("ledger.key") from None
    return key


def sign(size: int, root: bytes, *keys: tuple[Sm2Key, bytes]) -> str:
    """The signed checkpoint of the second tree, a line of each key: while one takes over from another both sign."""
    text = Checkpoint(keys[0][0].name, size, root).text()
    lines = (signature_line(key, gmssl_pyx.sm2_sign(private, key.public, text.encode())) for key, private in keys)
    return "\n".join([text, "".join(lines)])


def verify(note: str | bytes, vkeys: Sequence[str]) -> Checkpoint:
    """The checkpoint in a note that one of these keys signed. Raises `Problem`."""
    keys = [parse_key(vkey) for vkey in vkeys]
    found = parse_checkpoint(open_note(note, keys).text)
    if found.origin not in {key.name for key in keys}:
        raise Problem("ledger.origin", wanted=keys[0].name, got=found.origin)
    return found


def write_key(file: Path, origin: str) -> Sm2Key:
    """Make a key and keep both halves in a new file 0600. Raises `FileExistsError`: a key is made once."""
    key, private = generate(origin)
    text = json.dumps({"key": str(key), "private": private.hex()})
    with open(file, "x", opener=lambda path, flags: os.open(path, flags, 0o600), encoding="utf-8") as opened:
        opened.write(text)
    return key


def read_key(content: bytes) -> tuple[Sm2Key, bytes]:
    """Both halves from such a file. Raises `Problem` (`ledger.key`)."""
    try:
        parts = json.loads(content)
        key, private = parse_key(parts["key"]), bytes.fromhex(parts["private"])
        key.check("proof", gmssl_pyx.sm2_sign(private, key.public, b"proof"))
    except (ValueError, KeyError, TypeError, InvalidSignature):
        raise Problem("ledger.key") from None
    return key, private
