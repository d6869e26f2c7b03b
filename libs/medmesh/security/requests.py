"""Requests signed by a hospital's node, so that they are proven even where an inspecting firewall breaks mutual TLS.

Signed are method, target, time, nonce and the digest of the body; a mutating request is good once (RFC 9421 does the same
in general; a node and the gateway need only this one form).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import secrets
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from medmesh.errors import Problem

HEADER = "medmesh-signature"
WINDOW = timedelta(minutes=5)


_NONCE = re.compile(r"[0-9a-f]{32}").fullmatch


def _text(method: str, target: str, stamp: str, nonce: str, body_sha256: str) -> bytes:
    return f"medmesh-request-v1\n{method}\n{target}\n{stamp}\n{nonce}\n{body_sha256}\n".encode()


def sign_request(
    key: ec.EllipticCurvePrivateKey, method: str, target: str, body: bytes, *, digest: str | None = None, now: datetime | None = None
) -> str:
    """The header's value: `time,nonce,signature`. `target` is path and query as sent; `digest` the body's SHA-256 where it is known."""
    stamp, nonce = str(int((now or datetime.now(UTC)).timestamp())), secrets.token_hex(16)
    signature = key.sign(_text(method, target, stamp, nonce, digest or hashlib.sha256(body).hexdigest()), ec.ECDSA(hashes.SHA256()))
    return f"{stamp},{nonce},{base64.b64encode(signature).decode()}"


def verify_request(certificate: x509.Certificate, method: str, target: str, body_sha256: str, header: str, *, now: datetime) -> str:
    """The nonce of a request this node signed within five minutes. Raises `Problem`; the caller remembers nonces."""
    stamp, nonce, signature = signed(header, now)
    key = certificate.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    try:
        key.verify(signature, _text(method, target, stamp, nonce, body_sha256), ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        raise Problem("security.request_unsigned") from None
    return nonce


def signed(header: str, now: datetime) -> tuple[str, str, bytes]:
    """(time, nonce, signature) of a request that says it was signed within five minutes, as known before its body. Raises `Problem`."""
    try:
        stamp, nonce, encoded = header.split(",")
        if not _NONCE(nonce):
            raise ValueError
        signature = base64.b64decode(encoded, validate=True)
        made = datetime.fromtimestamp(int(stamp), UTC)
    except (ValueError, binascii.Error, OverflowError, OSError):
        raise Problem("security.request_unsigned") from None
    if abs(now - made) > WINDOW:
        raise Problem("security.clock", theirs=made.isoformat(), ours=now.isoformat(timespec="seconds"))
    return stamp, nonce, signature
