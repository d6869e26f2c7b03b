"""One key in memory, in the shape of a provider: for keys that are themselves wrapped by another."""

from __future__ import annotations

import os

from cryptography.exceptions import InvalidTag

from medmesh.errors import Problem
from medmesh.security import suites
from medmesh.security.keyring.port import Kind, Wrapped


class MemoryKey:
    """See `medmesh.security.keyring.port.KeyProvider`: one label with one version, which wraps."""

    def __init__(self, label: str, suite: str, key: bytes, version: int = 1) -> None:
        self._suite = suites.suite(suite)
        self._cipher = self._suite.aead(key)
        self._label = label
        self._version = version

    def wrap(self, label: str, secret: bytes, bound: bytes) -> str:
        nonce = os.urandom(suites.NONCE)
        shape = Wrapped(self._suite.name, label, self._version, b"")
        sealed = nonce + self._cipher.encrypt(nonce, secret, shape.associated(bound))
        return str(Wrapped(self._suite.name, label, self._version, sealed))

    def unwrap(self, label: str, wrapped: str, bound: bytes) -> bytes:
        found = Wrapped.parse(wrapped)
        if (found.label, found.suite, found.version) != (label, self._suite.name, self._version) or label != self._label:
            raise Problem("keyring.refused", label=label)
        try:
            return self._cipher.decrypt(found.sealed[: suites.NONCE], found.sealed[suites.NONCE :], found.associated(bound))
        except (InvalidTag, ValueError):
            raise Problem("keyring.refused", label=label) from None

    def versions(self, label: str) -> list[int]:
        return [self._version]

    def create(self, label: str, kind: Kind, suite: str) -> int:
        raise Problem("keyring.read_only")

    def destroy(self, label: str, version: int) -> None:
        raise Problem("keyring.read_only")

    def sign(self, label: str, data: bytes) -> str:
        raise Problem("keyring.kind", label=label)

    def public(self, label: str) -> tuple[str, bytes]:
        raise Problem("keyring.kind", label=label)
