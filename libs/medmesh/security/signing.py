"""Signing keys of people, hospitals and keepers: made on their own machine, never sent, known to others by a C2SP verifier key.

What they sign are signed notes (`medmesh.ledger.note`), so that programs which are not ours verify them too. A person's or keeper's
private key lies encrypted under a passphrase: Argon2id (RFC 9106) and AES-256-GCM, bound to the public key.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

from argon2.low_level import Type, hash_secret_raw
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from medmesh.errors import Problem
from medmesh.ledger import note
from medmesh.security.keys import read_secret, write_secret

FORM = "signing-key-1"
MIN_PASSPHRASE = 12
_GROUPS, _DIGITS = 8, 5


@dataclass(frozen=True, slots=True)
class Signer:
    """A private key and whose it is, for example `person:wu@platform`, `hospital:renji`, `keeper:zhao`."""

    name: str
    key: Ed25519PrivateKey

    @classmethod
    def create(cls, name: str) -> Signer:
        """A new key. Raises `Problem` for a name that no note can have."""
        if not note.valid_name(name):
            raise Problem("signing.name", name=name)
        return cls(name, Ed25519PrivateKey.generate())

    @property
    def vkey(self) -> str:
        """What others know it by."""
        return note.verifier_key(self.name, self.key.public_key())

    def sign(self, text: str) -> str:
        """The signed note."""
        return note.sign(text, self.name, self.key)


def read_aloud(content: bytes) -> str:
    """The fingerprint that people read to each other: eight groups of five digits, 132 bits of SHA-256.

    Digits, because they are the same words for everybody who reads Chinese or English aloud, and no letters are mixed up.
    """
    number = int.from_bytes(hashlib.sha256(content).digest(), "big") % 10 ** (_GROUPS * _DIGITS)
    digits = f"{number:0{_GROUPS * _DIGITS}d}"
    return " ".join(digits[i : i + _DIGITS] for i in range(0, len(digits), _DIGITS))


def same_fingerprint(left: str, right: str) -> bool:
    """Whether two of them are the same, however they were spaced."""
    return "".join(left.split()) == "".join(right.split())


def key_fingerprint(vkey: str) -> str:
    """Of a verifier key, name included: a known key under another name is another one. Raises `Problem` (`ledger.key`)."""
    return read_aloud(str(note.parse_key(vkey)).encode())


def save(path: Path, signer: Signer, passphrase: str | None) -> None:
    """Write a new file 0600; without a passphrase (a node must sign by itself) the key is in the clear. Raises `Problem`."""
    document = {"form": FORM, "key": signer.vkey}
    seed = signer.key.private_bytes_raw()
    if passphrase is None:
        document["seed"] = base64.b64encode(seed).decode()
    else:
        if len(passphrase) < MIN_PASSPHRASE:
            raise Problem("signing.passphrase_short", least=MIN_PASSPHRASE)
        salt, nonce = os.urandom(16), os.urandom(12)
        sealed = nonce + AESGCM(_stretched(passphrase, salt)).encrypt(nonce, seed, signer.vkey.encode())
        document |= {"salt": base64.b64encode(salt).decode(), "sealed": base64.b64encode(sealed).decode()}
    try:
        write_secret(path, json.dumps(document, indent=1).encode())
    except FileExistsError:
        raise Problem("signing.key_exists", file=path) from None


def load(path: Path, passphrase: str | None = None) -> Signer:
    """The key in a file. Raises `Problem` (`signing.passphrase`, `security.key_unreadable`)."""
    document = _read(path)
    try:
        name = note.parse_key(document["key"]).name
        if "seed" in document:
            seed = base64.b64decode(document["seed"], validate=True)
        else:
            sealed, salt = (base64.b64decode(document[part], validate=True) for part in ("sealed", "salt"))
            seed = AESGCM(_stretched(passphrase or "", salt)).decrypt(sealed[:12], sealed[12:], document["key"].encode())
        signer = Signer(name, Ed25519PrivateKey.from_private_bytes(seed))
    except InvalidTag:
        raise Problem("signing.passphrase", file=path.name) from None
    except (KeyError, ValueError):
        raise Problem("security.key_unreadable", file=path.name, reason="not a signing key") from None
    if signer.vkey != document["key"]:
        raise Problem("security.key_unreadable", file=path.name, reason="private and public key differ")
    return signer


def public_of(path: Path) -> str:
    """The verifier key in a file, without its passphrase. Raises `Problem`."""
    try:
        return str(note.parse_key(_read(path)["key"]))
    except KeyError:
        raise Problem("security.key_unreadable", file=path.name, reason="not a signing key") from None


def _read(path: Path) -> dict[str, str]:
    try:
        document = json.loads(read_secret(path))
        if document["form"] != FORM:
            raise ValueError
    except (ValueError, KeyError, TypeError):
        raise Problem("security.key_unreadable", file=path.name, reason="not a signing key") from None
    return {str(name): str(value) for name, value in document.items()}


def _stretched(passphrase: str, salt: bytes) -> bytes:
    return bytes(hash_secret_raw(passphrase.encode(), salt, time_cost=3, memory_cost=64 * 1024, parallelism=1, hash_len=32, type=Type.ID))
