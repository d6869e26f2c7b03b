"""What all parties to one secure sum agree on before it begins, and how keys are derived from what they exchange."""

from __future__ import annotations

from dataclasses import dataclass

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from medmesh.canonical import spell
from medmesh.errors import Problem

LEAST = 3
"""Contributors to a sum at the least: of two, each could take its own away and read the other's."""


@dataclass(frozen=True, slots=True)
class Session:
    """One attempt at one round. `contributors` are the plan's hospitals, known by their own keys in the roster."""

    federation: str
    plan: str
    round: int
    attempt: int
    contributors: tuple[str, ...]
    threshold: int

    def __post_init__(self) -> None:
        count = len(self.contributors)
        if tuple(sorted(set(self.contributors))) != self.contributors:
            raise Problem("secure.contributors", reason="contributors are sorted, and none is named twice")
        if count < LEAST or not max(LEAST, 2 * count // 3 + 1) <= self.threshold <= count:
            raise Problem("secure.contributors", reason=f"at least {LEAST} contributors, and a threshold of more than two thirds of them")

    def context(self, use: str, *parties: str) -> bytes:
        """Binds a key or a ciphertext to this attempt, to what it is for, and to its parties."""
        about = [self.federation, self.plan, self.round, self.attempt, list(self.contributors), self.threshold, use, list(parties)]
        return spell(about).encode()

    def point(self, hospital: str) -> int:
        """Where a hospital's shares lie."""
        return self.contributors.index(hospital) + 1


def agreed(session: Session, use: str, mine: tuple[str, X25519PrivateKey], theirs: tuple[str, str]) -> bytes:
    """32 bytes that two hospitals share: X25519 (RFC 7748) through HKDF-SHA256 (RFC 5869). Raises `Problem` (`secure.key`)."""
    (me, private), (other, public) = mine, theirs
    try:
        secret = private.exchange(X25519PublicKey.from_public_bytes(bytes.fromhex(public)))
    except ValueError:  # not 32 bytes, or a point of small order
        raise Problem("secure.key", hospital=other) from None
    return HKDF(hashes.SHA256(), 32, None, session.context(use, *sorted((me, other)))).derive(secret)
