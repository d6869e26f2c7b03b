"""Hospital systems without mutual TLS sign in with a private-key JWT (RFC 7523 §3, as in OpenID Connect's `private_key_jwt`).

The system signs who it is with a key whose public half was registered; the assertion is for this platform alone, lives five
minutes at most and counts once. Ed25519 (EdDSA) or P-256 (ES256): the algorithm follows from the registered key, never from
the header.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from medmesh.contracts.message import new_id
from medmesh.errors import Problem
from medmesh.security.tokens import LEEWAY

AUDIENCE = "medmesh-token"
LONGEST = timedelta(minutes=5)
PublicKey = Ed25519PublicKey | EllipticCurvePublicKey
PrivateKey = Ed25519PrivateKey | EllipticCurvePrivateKey


@dataclass(frozen=True, slots=True)
class Assertion:
    """A verified one: `id` counts once, and may be forgotten after `ends`."""

    id: str
    ends: datetime


def read_key(pem: str) -> PublicKey:
    """A public key of a kind we take. Raises `Problem`."""
    try:
        key = load_pem_public_key(pem.encode())
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise Problem("security.system_key", reason="not a public key in PEM") from None
    if isinstance(key, Ed25519PublicKey) or (isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1)):
        return key
    raise Problem("security.system_key", reason="neither Ed25519 nor P-256")


def sign(key: PrivateKey, system: str, *, now: datetime | None = None, seconds: float = 60) -> str:
    """An assertion of `system`."""
    start = now or datetime.now(UTC)
    claims = {
        "iss": system,
        "sub": system,
        "aud": AUDIENCE,
        "jti": new_id(),
        "iat": int(start.timestamp()),
        "exp": int((start + timedelta(seconds=seconds)).timestamp()),
    }
    return jwt.encode(claims, key, algorithm="EdDSA" if isinstance(key, Ed25519PrivateKey) else "ES256")


def claimed(assertion: str) -> str:
    """Whose it says it is; not believed before `verify`. Raises `Problem`."""
    try:
        return str(jwt.decode(assertion, options={"verify_signature": False})["sub"])
    except (jwt.PyJWTError, KeyError, ValueError, RecursionError):
        raise Problem("security.assertion_refused", reason="malformed") from None


def verify(assertion: str, key: PublicKey, system: str, now: datetime) -> Assertion:
    """Raise a `Problem` unless `key` signed this assertion of `system` for us, and for now."""
    algorithm = "EdDSA" if isinstance(key, Ed25519PublicKey) else "ES256"
    options = {"require": ["iss", "sub", "aud", "exp", "jti"], "verify_exp": False, "verify_iat": False}
    try:
        claims = jwt.decode(assertion, key, algorithms=[algorithm], audience=AUDIENCE, options=options)  # type: ignore[arg-type]
        ends = datetime.fromtimestamp(int(claims["exp"]), UTC)
    except jwt.InvalidAudienceError:
        raise Problem("security.assertion_refused", reason="audience") from None
    except (jwt.PyJWTError, ValueError, TypeError, OverflowError, OSError, RecursionError):
        raise Problem("security.assertion_refused", reason="signature") from None
    if claims["iss"] != system or claims["sub"] != system or not 8 <= len(str(claims["jti"])) <= 128:
        raise Problem("security.assertion_refused", reason="claims")
    if now > ends + LEEWAY:
        raise Problem("security.assertion_refused", reason="expired")
    if ends - now > LONGEST + LEEWAY:
        raise Problem("security.assertion_refused", reason="longer than five minutes")
    return Assertion(str(claims["jti"]), ends + LEEWAY)
