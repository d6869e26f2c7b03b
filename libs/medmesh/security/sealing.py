"""Secrets a service must be able to read again, such as those of authenticators, encrypted in its tables.

The key lies with a key provider, never in the database: a copy of the tables opens nothing. What a secret belongs to is bound to it,
so that rows cannot be swapped. What is stored names the key's version: after a new one, rows are brought under it one by one.
"""

from __future__ import annotations

from medmesh.errors import Problem
from medmesh.security.keyring.port import KeyProvider, Wrapped

LABEL = "seal"


class Seal:
    """Closes and opens with one label of a provider."""

    def __init__(self, keys: KeyProvider, label: str = LABEL) -> None:
        self._keys = keys
        self._label = label

    def close(self, secret: bytes, owner: str) -> bytes:
        """What is stored; `owner` says whose it is, and is needed to open it."""
        return self._keys.wrap(self._label, secret, owner.encode()).encode()

    def open(self, sealed: bytes, owner: str) -> bytes:
        """The secret. Raises `Problem` when it was altered or is somebody else's."""
        try:
            return self._keys.unwrap(self._label, sealed.decode(errors="replace"), owner.encode())
        except Problem as problem:
            if problem.code != "keyring.refused":
                raise
            raise Problem("security.sealed_unreadable", owner=owner) from None

    def is_old(self, sealed: bytes) -> bool:
        """Whether it lies under a version that is not the newest."""
        return Wrapped.parse(sealed.decode(errors="replace")).version != self._keys.versions(self._label)[-1]
