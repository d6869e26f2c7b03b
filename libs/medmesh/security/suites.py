"""Suites of algorithms: everything that is stored as a digest, a signature or a ciphertext names the one it was made with.

    intl-1   SHA-256 (FIPS 180-4)      Ed25519 (RFC 8032)     AES-256-GCM (SP 800-38D)
    sm-1     SM3 (GB/T 32905)          SM2 (GB/T 32918)       SM4-GCM (GB/T 32907), of the extra `medmesh[sm]`

A verifier says which suites it accepts; what an artefact says of itself only chooses among those.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Protocol

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher as _Cipher
from cryptography.hazmat.primitives.ciphers import algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from medmesh.errors import Problem

NONCE = 12
TAG = 16
DEFAULT = "intl-1"
ALL = frozenset(("intl-1", "sm-1"))


class Aead(Protocol):
    """Authenticated encryption under one key, as `cryptography` shapes it. `decrypt` raises `InvalidTag`."""

    def encrypt(self, nonce: bytes, data: bytes | bytearray, associated_data: bytes | None) -> bytes:
        """The ciphertext and its tag of 16 bytes."""

    def decrypt(self, nonce: bytes, data: bytes, associated_data: bytes | None) -> bytes:
        """The data."""


class Sm4Gcm:
    """SM4-GCM in the shape of `AESGCM`."""

    def __init__(self, key: bytes) -> None:
        self._algorithm = algorithms.SM4(key)

    def encrypt(self, nonce: bytes, data: bytes | bytearray, associated_data: bytes | None) -> bytes:
        """See `Aead`."""
        made = _Cipher(self._algorithm, modes.GCM(nonce)).encryptor()
        made.authenticate_additional_data(associated_data or b"")
        return made.update(data) + made.finalize() + made.tag

    def decrypt(self, nonce: bytes, data: bytes, associated_data: bytes | None) -> bytes:
        """See `Aead`."""
        if len(data) < TAG:
            raise InvalidTag
        made = _Cipher(self._algorithm, modes.GCM(nonce, data[-TAG:])).decryptor()
        made.authenticate_additional_data(associated_data or b"")
        return made.update(data[:-TAG]) + made.finalize()


@dataclass(frozen=True, slots=True)
class Pair:
    """A key pair in its shortest spelling; the private half is for files 0600 and providers only."""

    private: bytes
    public: bytes


@dataclass(frozen=True, slots=True)
class Suite:
    """One row of the table above; all keys and values are bytes."""

    name: str
    hash: str
    """As `hashlib` and our texts spell it: `sha256`, `sm3`."""
    key_bytes: int
    """Of the cipher's key."""
    aead: Callable[[bytes], Aead]
    generate: Callable[[], Pair]
    sign: Callable[[Pair, bytes], bytes]
    verify: Callable[[bytes, bytes, bytes], bool]
    """(public key, data, signature) -> whether it holds."""

    def digest(self, data: bytes) -> str:
        """Such as `sha256:9f86…`."""
        return f"{self.hash}:{hashlib.new(self.hash, data).hexdigest()}"

    def new_key(self) -> bytes:
        """A random key for `aead`."""
        return os.urandom(self.key_bytes)


def suite(name: str, allowed: Collection[str] = ALL) -> Suite:
    """The suite of that name. Raises `Problem` (`security.suite`) unless it is among `allowed`, and there."""
    found = _SUITES.get(name) if name in allowed else None
    if found is None:
        raise Problem("security.suite", suite=name[:32])
    return found


def matches(digest: str, data: bytes, allowed: Collection[str]) -> bool:
    """Whether `digest` (`sha256:…`) is that of `data`. Raises `Problem` for one whose suite is not allowed."""
    algorithm = digest.partition(":")[0]
    for name in allowed:
        if _SUITES[name].hash == algorithm:
            return _SUITES[name].digest(data) == digest
    raise Problem("security.suite", suite=algorithm[:32])


def signed(name: str, pair: Pair, data: bytes) -> str:
    """A signature as it is stored: `intl-1:` and Base64."""
    return f"{name}:{base64.b64encode(suite(name).sign(pair, data)).decode()}"


def holds(signature: str, public: bytes, data: bytes, allowed: Collection[str]) -> bool:
    """Whether a stored signature over `data` is `public`'s. Raises `Problem` for a suite that is not allowed."""
    name, _, encoded = signature.partition(":")
    chosen = suite(name, allowed)
    try:
        raw = base64.b64decode(encoded, validate=True)
    except ValueError:
        return False
    return chosen.verify(public, data, raw)


def _ed25519_generate() -> Pair:
    key = Ed25519PrivateKey.generate()
    return Pair(key.private_bytes_raw(), key.public_key().public_bytes_raw())


def _ed25519_sign(pair: Pair, data: bytes) -> bytes:
    return Ed25519PrivateKey.from_private_bytes(pair.private).sign(data)


def _ed25519_verify(public: bytes, data: bytes, signature: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, data)
    except (InvalidSignature, ValueError):
        return False
    return True


def _sm2() -> ModuleOfSm2:
    try:
        import gmssl_pyx
    except ImportError:
        raise Problem("security.suite_absent", suite="sm-1", extra="medmesh[sm]") from None
    module: ModuleOfSm2 = gmssl_pyx
    return module


class ModuleOfSm2(Protocol):
    """What is used of gmssl-pyx."""

    InvalidValueError: type[Exception]

    def sm2_key_generate(self) -> tuple[bytes, bytes]:
        """Public point (64 bytes) and private scalar (32)."""

    def sm2_sign(self, private: bytes, public: bytes, data: bytes) -> bytes:
        """DER."""

    def sm2_verify(self, public: bytes, data: bytes, signature: bytes) -> bool:
        """Whether it holds."""


def _sm2_generate() -> Pair:
    public, private = _sm2().sm2_key_generate()
    return Pair(private, public)


def _sm2_sign(pair: Pair, data: bytes) -> bytes:
    return _sm2().sm2_sign(pair.private, pair.public, data)


def _sm2_verify(public: bytes, data: bytes, signature: bytes) -> bool:
    module = _sm2()
    try:
        return bool(module.sm2_verify(public, data, signature))
    except (module.InvalidValueError, ValueError):
        return False


_SUITES = {
    "intl-1": Suite("intl-1", "sha256", 32, AESGCM, _ed25519_generate, _ed25519_sign, _ed25519_verify),
    "sm-1": Suite("sm-1", "sm3", 16, Sm4Gcm, _sm2_generate, _sm2_sign, _sm2_verify),
}
