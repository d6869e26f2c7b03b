"""What medmesh asks of whoever keeps keys, in the shape of PKCS#11: by label, never by value. Providers pass one contract suite.

A label names a line of versions; the newest wraps and signs, older ones only unwrap, until they are destroyed. What was wrapped
is a line of text that names suite, label and version, so that whoever reads it knows which key it waits for:

    intl-1.objects.2.<Base64 of nonce and ciphertext>
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from medmesh.errors import Problem

Kind = Literal["wrap", "sign"]
LABEL = re.compile(r"[a-z][a-z0-9-]{0,31}")


class KeyProvider(Protocol):
    """Calls are short and block: use a thread where that matters. All raise `Problem` `keyring.*`."""

    def create(self, label: str, kind: Kind, suite: str) -> int:
        """A new version of a label; answers its number. A label keeps its kind."""

    def versions(self, label: str) -> list[int]:
        """Those that are there, the newest last; none when the label is unknown."""

    def wrap(self, label: str, secret: bytes, bound: bytes) -> str:
        """Encrypt under the newest version; `bound` says what it belongs to, and is needed to unwrap it."""

    def unwrap(self, label: str, wrapped: str, bound: bytes) -> bytes:
        """The secret. `keyring.refused` when it was altered, belongs elsewhere or is another label's; `keyring.gone` when its key
        was destroyed."""

    def sign(self, label: str, data: bytes) -> str:
        """A signature by the newest version, as `medmesh.security.suites.holds` reads it."""

    def public(self, label: str) -> tuple[str, bytes]:
        """Suite and public key of the newest version that signs."""

    def destroy(self, label: str, version: int) -> None:
        """Make what that version wrapped unreadable for ever; harmless when it is gone already."""


@dataclass(frozen=True, slots=True)
class Wrapped:
    """The parts of a wrapped secret."""

    suite: str
    label: str
    version: int
    sealed: bytes
    """Nonce and ciphertext."""

    @classmethod
    def parse(cls, text: str) -> Wrapped:
        """Raises `Problem` (`keyring.refused`)."""
        parts = text.split(".")
        try:
            suite, label, version, sealed = parts
            return cls(suite, label, int(version), base64.b64decode(sealed, validate=True))
        except ValueError:
            raise Problem("keyring.refused", label="?") from None

    def __str__(self) -> str:
        return f"{self.suite}.{self.label}.{self.version}.{base64.b64encode(self.sealed).decode()}"

    def associated(self, bound: bytes) -> bytes:
        """What the cipher authenticates beside the secret."""
        return f"medmesh-wrap\0{self.suite}\0{self.label}\0{self.version}\0".encode() + bound


def valid(label: str) -> str:
    """The label itself. Raises `Problem` (`keyring.label`)."""
    if not LABEL.fullmatch(label):
        raise Problem("keyring.label", label=label[:32])
    return label


def open_keys(where: str | Path) -> KeyProvider:
    """The provider at `where`: `unix:/path/of/socket` for a keeper, else a folder of key files."""
    from medmesh.security.keyring.file import FileKeys
    from medmesh.security.keyring.keeper import KeeperKeys

    text = str(where)
    return KeeperKeys(Path(text.removeprefix("unix:"))) if text.startswith("unix:") else FileKeys(Path(text))
