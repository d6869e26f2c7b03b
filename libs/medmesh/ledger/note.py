"""C2SP signed-note v1.0.0 with Ed25519 keys (type 0x01), and tlog-checkpoint v1.0.0."""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from medmesh.errors import Problem

_ED25519 = b"\x01"


def _key_id(name: str, public: bytes) -> bytes:
    return hashlib.sha256(name.encode() + b"\n" + _ED25519 + public).digest()[:4]


def verifier_key(name: str, key: Ed25519PublicKey) -> str:
    """The vkey `name+id+key` by which others know a signer."""
    public = key.public_bytes(Encoding.Raw, PublicFormat.Raw)
    return f"{name}+{_key_id(name, public).hex()}+{base64.b64encode(_ED25519 + public).decode()}"


def sign(text: str, name: str, key: Ed25519PrivateKey) -> str:
    """The note: text, blank line, one signature line. `text` ends with a newline."""
    if not text.endswith("\n"):
        raise ValueError("the text of a note ends with a newline")
    public = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    signature = base64.b64encode(_key_id(name, public) + key.sign(text.encode())).decode()
    return f"{text}\n— {name} {signature}\n"


def verify(note: str, vkey: str) -> str:
    """The text of a note whose signature by `vkey` verifies; lines of unknown keys are ignored. Raises `Problem`."""
    try:
        name, wanted, encoded = vkey.split("+", 2)
        key = base64.b64decode(encoded, validate=True)
        if key[:1] != _ED25519 or _key_id(name, key[1:]).hex() != wanted:
            raise ValueError
    except (ValueError, binascii.Error):
        raise Problem("ledger.key") from None
    text, divider, signatures = note.rpartition("\n\n")
    if not divider:
        raise Problem("ledger.note", reason="it has no signature")
    text += "\n"
    verified = False
    for line in signatures.splitlines():
        parts = line.split(" ")
        if len(parts) != 3 or parts[0] != "—":
            raise Problem("ledger.note", reason="a signature line is malformed")
        if parts[1] != name:
            continue
        try:
            raw = base64.b64decode(parts[2], validate=True)
        except binascii.Error:
            raise Problem("ledger.note", reason="a signature is not base64") from None
        if raw[:4].hex() != wanted:
            continue
        try:
            Ed25519PublicKey.from_public_bytes(key[1:]).verify(raw[4:], text.encode())
        except InvalidSignature:
            raise Problem("ledger.note", reason=f"the signature of {name} does not verify") from None
        verified = True
    if not verified:
        raise Problem("ledger.note", reason=f"it is not signed by {name}")
    return text


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a log commits to: its origin, how many leaves, and the root over them (32 bytes)."""

    origin: str
    size: int
    root: bytes

    def text(self) -> str:
        """The body that gets signed."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"


def parse_checkpoint(text: str) -> Checkpoint:
    """Raises `Problem`."""
    lines = text.split("\n")
    try:
        origin, size, root = lines[0], int(lines[1]), base64.b64decode(lines[2], validate=True)
        if not origin or size < 0 or len(root) != 32 or str(size) != lines[1]:
            raise ValueError
    except (ValueError, IndexError, binascii.Error):
        raise Problem("ledger.note", reason="it is not a checkpoint") from None
    return Checkpoint(origin, size, root)
