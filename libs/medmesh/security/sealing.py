"""Secrets a service must be able to read again, such as those of authenticators, encrypted in its tables (AES-256-GCM).

The key is a file of that service, never in the database: a copy of the tables opens nothing. What a secret belongs to is
bound to it, so that rows cannot be swapped.
"""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from medmesh.errors import Problem
from medmesh.security.keys import read_secret

_NONCE = 12


class Seal:
    """A key of 32 bytes."""

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key)

    @classmethod
    def load(cls, path: Path) -> Seal:
        """The key in a file 0600. Raises `Problem`."""
        key = read_secret(path)
        if len(key) != 32:
            raise Problem("security.key_unreadable", file=path.name, reason="not 32 bytes")
        return cls(key)

    def close(self, secret: bytes, owner: str) -> bytes:
        """Nonce and ciphertext; `owner` says whose it is, and is needed to open it."""
        nonce = os.urandom(_NONCE)
        return nonce + self._cipher.encrypt(nonce, secret, owner.encode())

    def open(self, sealed: bytes, owner: str) -> bytes:
        """The secret. Raises `Problem` when it was altered or is somebody else's."""
        try:
            return self._cipher.decrypt(sealed[:_NONCE], sealed[_NONCE:], owner.encode())
        except (InvalidTag, ValueError):
            raise Problem("security.sealed_unreadable", owner=owner) from None
