"""How a node proves that a request for a new certificate is its own: a signature with the key of the old one.

It is checked by governance itself, so whoever stands between can neither ask in a node's name nor exchange the request.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from medmesh.errors import Problem
from medmesh.security.requests import WINDOW

RENEW_AFTER = 2 / 3
"""The share of a certificate's life after which its node asks for the next one."""


def due(certificate: x509.Certificate, now: datetime) -> bool:
    """Whether it is time to renew."""
    life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    return now > certificate.not_valid_before_utc + life * RENEW_AFTER


def prove(key: ec.EllipticCurvePrivateKey, csr_pem: str, now: datetime) -> str:
    """`time,signature` over the request."""
    stamp = str(int(now.timestamp()))
    return f"{stamp},{base64.b64encode(key.sign(_text(csr_pem, stamp), ec.ECDSA(hashes.SHA256()))).decode()}"


def check(certificate: x509.Certificate, csr_pem: str, proof: str, now: datetime) -> None:
    """Raise a `Problem` unless the key of `certificate` signed this request within five minutes."""
    try:
        stamp, encoded = proof.split(",")
        signature, made = base64.b64decode(encoded, validate=True), datetime.fromtimestamp(int(stamp), UTC)
    except (ValueError, binascii.Error, OverflowError):
        raise Problem("security.request_unsigned") from None
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise Problem("security.request_unsigned")
    try:
        key.verify(signature, _text(csr_pem, stamp), ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        raise Problem("security.request_unsigned") from None
    if abs(now - made) > WINDOW:
        raise Problem("security.clock", theirs=made.isoformat(), ours=now.isoformat(timespec="seconds"))


def check_age(certificate: x509.Certificate, now: datetime, dark_days: int) -> bool:
    """Whether the certificate is still good; False when it expired, but not so long ago that only a new enrolment helps.

    Raises `Problem` (`security.certificate_dark`).
    """
    end = certificate.not_valid_after_utc
    if now - end > timedelta(days=dark_days):
        raise Problem("security.certificate_dark", end=end.isoformat(), days=dark_days)
    return now <= end


def _text(csr_pem: str, stamp: str) -> bytes:
    return f"medmesh-renewal-v1\n{hashlib.sha256(csr_pem.encode()).hexdigest()}\n{stamp}\n".encode()
