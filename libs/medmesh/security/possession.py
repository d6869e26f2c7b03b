"""Proof that whoever shows a token holds the key it was given to (RFC 9449, DPoP): a token that was overheard opens nothing.

With each request its holder signs, for this request alone, the method, the address, the time, an id and the token's hash. The token
names the key by its thumbprint (RFC 7638) as `cnf.jkt`. P-256 (ES256), which every browser has (WebCrypto), and Ed25519 (EdDSA).
"""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import unquote, urlsplit

import jwt
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from jwt.algorithms import ECAlgorithm, OKPAlgorithm

from medmesh.contracts.message import new_id
from medmesh.errors import Problem

HEADER = "dpop"
TYPE = "dpop+jwt"
WINDOW = timedelta(minutes=5)
"""How far a hospital's clock may be off; ids are remembered for as long."""
_ALGORITHMS = {"ES256": ("EC", "P-256"), "EdDSA": ("OKP", "Ed25519")}
_MOST_BYTES = 4096
PrivateKey = Ed25519PrivateKey | EllipticCurvePrivateKey
PublicKey = Ed25519PublicKey | EllipticCurvePublicKey


def public_jwk(key: PublicKey) -> dict[str, str]:
    """The key's required members (RFC 7638 §3.2) and nothing else."""
    made: Any = OKPAlgorithm.to_jwk(key) if isinstance(key, Ed25519PublicKey) else ECAlgorithm.to_jwk(key)
    document = json.loads(made)
    return {name: document[name] for name in ("crv", "kty", "x", "y") if name in document}


def thumbprint(key: PublicKey) -> str:
    """RFC 7638, SHA-256, base64url."""
    text = json.dumps(public_jwk(key), sort_keys=True, separators=(",", ":"))
    return _url64(hashlib.sha256(text.encode()).digest())


def prove(key: PrivateKey, method: str, url: str, token: str = "", *, now: datetime | None = None) -> str:
    """The value of the header for one request; `token` is what goes with it, where there is one."""
    claims: dict[str, Any] = {"jti": new_id(), "htm": method, "htu": _plain(url), "iat": int((now or datetime.now(UTC)).timestamp())}
    if token:
        claims["ath"] = _url64(hashlib.sha256(token.encode()).digest())
    algorithm = "EdDSA" if isinstance(key, Ed25519PrivateKey) else "ES256"
    return jwt.encode(claims, key, algorithm=algorithm, headers={"typ": TYPE, "jwk": public_jwk(key.public_key())})


@dataclass(frozen=True, slots=True)
class Proof:
    """One that verifies: the key's thumbprint, and the id that counts once."""

    key: str
    id: str


def verify(header: str, method: str, host: str, path: str, token: str = "", *, now: datetime) -> Proof:
    """Raises `Problem` (`security.possession`, `security.clock`) unless the key in `header` signed exactly this request, now. `host` as the
    request names it, `path` without escapes and query. The scheme may differ: whoever ends TLS before us makes it another one."""
    if not header:
        raise Problem("security.possession", reason="absent")
    try:
        if len(header) > _MOST_BYTES:
            raise ValueError
        head = jwt.get_unverified_header(header)
        algorithm, jwk = str(head["alg"]), head["jwk"]
        kind, curve = _ALGORITHMS[algorithm]
        if head.get("typ") != TYPE or (jwk["kty"], jwk["crv"]) != (kind, curve) or "d" in jwk:
            raise ValueError
        key: Any = jwt.PyJWK(jwk, algorithm).key
        options = {"require": ["jti", "htm", "htu", "iat"], "verify_iat": False, "verify_exp": False, "verify_aud": False}
        claims = jwt.decode(header, key, algorithms=[algorithm], options=options)  # type: ignore[arg-type]
        made = datetime.fromtimestamp(int(claims["iat"]), UTC)
        id_, said, where = str(claims["jti"]), str(claims["htm"]), urlsplit(str(claims["htu"]))
        hashed = str(claims.get("ath", ""))
    except (jwt.PyJWTError, KeyError, TypeError, ValueError, OverflowError, OSError, AttributeError, RecursionError):
        raise Problem("security.possession", reason="form") from None
    if (said, where.netloc.lower(), unquote(where.path)) != (method, host.lower(), path) or not 8 <= len(id_) <= 128:
        raise Problem("security.possession", reason="request")
    if hashed != (_url64(hashlib.sha256(token.encode()).digest()) if token else ""):
        raise Problem("security.possession", reason="token")
    if abs(now - made) > WINDOW:
        raise Problem("security.clock", theirs=made.isoformat(), ours=now.isoformat(timespec="seconds"))
    return Proof(thumbprint(key), id_)


def _plain(url: str) -> str:
    return url.partition("?")[0].partition("#")[0]


def _url64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
