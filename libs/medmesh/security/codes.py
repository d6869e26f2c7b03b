"""One-time codes and session bearers: random, shown once, kept only as a hash."""

from __future__ import annotations

import hashlib
import hmac
import secrets

_ALPHABET = "ABCDEFGHJKLMNPQRSTUVWXYZ23456789"  # 32 signs without 0/O and 1/I, so that a code can be read out


def new_code() -> str:
    """120 bits in six groups of four, e.g. `K7QM-...`."""
    return "-".join("".join(secrets.choice(_ALPHABET) for _ in range(4)) for _ in range(6))


def new_bearer() -> str:
    """256 bits for a session."""
    return secrets.token_urlsafe(32)


def code_hash(code: str) -> str:
    """What is stored. A code has more than 100 random bits, so a plain SHA-256 cannot be guessed back."""
    return hashlib.sha256(code.strip().upper().encode()).hexdigest()


def bearer_hash(bearer: str) -> str:
    """What is stored of a session."""
    return hashlib.sha256(bearer.encode()).hexdigest()


def same(left: str, right: str) -> bool:
    """Compare in constant time."""
    return hmac.compare_digest(left.encode(), right.encode())
