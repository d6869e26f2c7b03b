"""Passwords: argon2id (RFC 9106) and a policy (GB/T 22239-2019 8.1.4.1 a)."""

from __future__ import annotations

from functools import cache

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from medmesh.errors import Problem

MIN_LENGTH = 12
_COMMON = ("password", "medmesh", "hospital", "qwerty", "123456", "111111", "abcdef", "admin", "welcome", "yiyuan")


@cache
def _hasher() -> PasswordHasher:
    return PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)


@cache
def _nobody() -> str:
    return str(_hasher().hash("nobody has this password"))


def check_policy(name: str, password: str) -> None:
    """Raise a `Problem` that says what is missing."""
    lowered = password.lower()
    if len(password) < MIN_LENGTH:
        raise Problem("security.password_weak", reason=f"fewer than {MIN_LENGTH} characters")
    if name.lower() in lowered or len(set(password)) < 5 or any(lowered.count(word) * len(word) * 2 > len(lowered) for word in _COMMON):
        raise Problem("security.password_weak", reason="too easy to guess")
    kinds = (str.islower, str.isupper, str.isdigit, lambda c: not c.isalnum())
    if sum(any(kind(c) for c in password) for kind in kinds) < 3:
        raise Problem("security.password_weak", reason="use three of: lower case, upper case, digits, other signs")


def hash_password(password: str) -> str:
    """The encoded hash to store."""
    return str(_hasher().hash(password))


def verify_password(encoded: str | None, password: str) -> bool:
    """Whether the password fits; takes as long for a user that does not exist (None)."""
    try:
        return _hasher().verify(encoded or _nobody(), password) and encoded is not None
    except (VerificationError, InvalidHashError):
        return False
