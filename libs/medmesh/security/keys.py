"""Identities: one Ed25519 key each, kept as an NKEY seed (https://docs.nats.io, ADR-1), which opens the bus and signs tokens."""

from __future__ import annotations

import os
import stat
from functools import cached_property
from pathlib import Path

import nkeys
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from medmesh.errors import Problem


def write_secret(path: Path, content: bytes) -> None:
    """Create a file 0600 in one step; an existing one is never overwritten."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(descriptor, content)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_secret(path: Path) -> bytes:
    """Read a secret file; refuses one that others may read."""
    try:
        mode = path.stat().st_mode
        content = path.read_bytes()
    except OSError as error:
        raise Problem("security.key_unreadable", file=path.name, reason=error.strerror or "") from None
    if stat.S_IMODE(mode) & 0o077:
        raise Problem("security.key_exposed", file=path.name, mode=f"{stat.S_IMODE(mode):o}")
    return content


class Identity:
    """A private key; `public` is its NKEY public string (`U...`)."""

    def __init__(self, seed: bytes) -> None:
        self._pair = nkeys.from_seed(seed)

    @classmethod
    def create(cls, path: Path) -> Identity:
        """A new key in a new file."""
        seed = nkeys.encode_seed(os.urandom(32), nkeys.PREFIX_BYTE_USER)
        write_secret(path, bytes(seed))
        return cls(bytes(seed))

    @classmethod
    def load(cls, path: Path) -> Identity:
        """The key in a file."""
        try:
            return cls(read_secret(path).strip())
        except nkeys.NkeysError:
            raise Problem("security.key_unreadable", file=path.name, reason="not an NKEY seed") from None

    @classmethod
    def ensure(cls, path: Path) -> Identity:
        """The key in a file, made when there is none."""
        try:
            return cls.create(path)
        except FileExistsError:
            return cls.load(path)

    @cached_property
    def public(self) -> str:
        """The public key as an NKEY string."""
        return bytes(self._pair.public_key).decode()

    @cached_property
    def private_key(self) -> Ed25519PrivateKey:
        """The key for the `cryptography` package."""
        _, raw = nkeys.decode_seed(self._pair.seed)
        return Ed25519PrivateKey.from_private_bytes(bytes(raw))

    def sign(self, data: bytes) -> bytes:
        """An Ed25519 signature, 64 bytes."""
        return self.private_key.sign(data)


def public_key(public: str) -> Ed25519PublicKey:
    """The key an NKEY public string encodes: base32 of prefix byte, 32 key bytes, CRC-16."""
    import base64

    try:
        raw = base64.b32decode(public + "=" * (-len(public) % 8))
    except ValueError:
        raise Problem("security.key_unreadable", file="NKEY", reason="not base32") from None
    if len(raw) != 35 or nkeys.crc16(bytearray(raw[:-2])) != int.from_bytes(raw[-2:], "little"):
        raise Problem("security.key_unreadable", file="NKEY", reason="wrong checksum")
    return Ed25519PublicKey.from_public_bytes(raw[1:33])


def verify(public: str, data: bytes, signature: bytes) -> bool:
    """Whether `signature` over `data` was made by the key `public`."""
    try:
        public_key(public).verify(signature, data)
    except InvalidSignature:
        return False
    return True
