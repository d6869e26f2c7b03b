"""A key in shares for several holders, any k of whom bring it back, and fewer know nothing of it (Shamir, in the form of SLIP-39).

A share is a line of words with a checksum of its own: it can be printed, read out over the telephone and typed. What says which key
it belongs to is a fingerprint that anybody may know.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from medmesh.errors import Problem
from medmesh.security.keys import read_secret, write_secret


@dataclass(frozen=True, slots=True)
class Share:
    """What one holder keeps."""

    key: str
    """Which key it is of, for people: `pseudonyms of xiehe`."""
    fingerprint: str
    holder: str
    needed: int
    shares: int
    made: str
    words: str

    def save(self, folder: Path) -> Path:
        """A file 0600 named after its holder; one that is there is never overwritten. Raises `Problem` (`escrow.exists`)."""
        path = folder / f"{self.holder}.share.json"
        try:
            write_secret(path, json.dumps(asdict(self), indent=1, ensure_ascii=False).encode() + b"\n")
        except FileExistsError:
            raise Problem("escrow.exists", file=path.name) from None
        return path

    @classmethod
    def load(cls, path: Path) -> Self:
        """Raises `Problem` (`escrow.share`)."""
        try:
            return cls(**json.loads(read_secret(path)))
        except (ValueError, TypeError):
            raise Problem("escrow.share", file=path.name, reason="not a share") from None


def fingerprint(secret: bytes) -> str:
    """Tells keys apart and nothing about them: they have 256 random bits."""
    return hashlib.sha256(b"medmesh-escrow\0" + secret).hexdigest()[:32]


def split(secret: bytes, *, key: str, holders: Sequence[str], needed: int) -> list[Share]:
    """A share for each holder. Raises `Problem` (`escrow.numbers`) unless 2 <= needed <= holders <= 16, each named once."""
    from shamir_mnemonic import generate_mnemonics

    plain = all(name and name.replace("-", "").isalnum() for name in holders)
    if not 2 <= needed <= len(holders) <= 16 or len(set(holders)) != len(holders) or not plain:
        raise Problem("escrow.numbers", needed=needed, holders=len(holders))
    words = generate_mnemonics(1, [(needed, len(holders))], secret)[0]
    made = datetime.now(UTC).isoformat(timespec="seconds")
    mark = fingerprint(secret)
    return [Share(key, mark, name, needed, len(holders), made, line) for name, line in zip(holders, words, strict=True)]


def join(shares: Sequence[Share]) -> bytes:
    """The key. Raises `Problem`: `escrow.mixed` for shares of several keys, `escrow.too_few`, `escrow.wrong` for altered ones."""
    from shamir_mnemonic import MnemonicError, combine_mnemonics

    if len({(share.fingerprint, share.needed) for share in shares}) != 1:
        raise Problem("escrow.mixed")
    # Who brings more than are needed, or one of them twice, is fine.
    words = sorted({share.words for share in shares})
    if len(words) < shares[0].needed:
        raise Problem("escrow.too_few", needed=shares[0].needed, found=len(words))
    try:
        secret = bytes(combine_mnemonics(words[: shares[0].needed]))
    except (MnemonicError, ValueError):
        raise Problem("escrow.wrong") from None
    if fingerprint(secret) != shares[0].fingerprint:
        raise Problem("escrow.wrong")
    return secret
