"""A hospital's consent: its node's signature over the hash of the exact plan."""

from __future__ import annotations

import base64
import binascii

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from medmesh.errors import Problem


def _text(plan_hash: str) -> bytes:
    return f"medmesh-plan-consent-v1\n{plan_hash}\n".encode()


def sign_consent(key: ec.EllipticCurvePrivateKey, plan_hash: str) -> str:
    """Base64 of an ECDSA signature over P-256 with SHA-256."""
    return base64.b64encode(key.sign(_text(plan_hash), ec.ECDSA(hashes.SHA256()))).decode()


def verify_consent(certificate: x509.Certificate, plan_hash: str, signature: str) -> None:
    """Raise a `Problem` (`federation.consent`) unless this node signed this plan."""
    key = certificate.public_key()
    try:
        assert isinstance(key, ec.EllipticCurvePublicKey)
        key.verify(base64.b64decode(signature, validate=True), _text(plan_hash), ec.ECDSA(hashes.SHA256()))
    except (InvalidSignature, binascii.Error, AssertionError):
        raise Problem("federation.consent") from None
