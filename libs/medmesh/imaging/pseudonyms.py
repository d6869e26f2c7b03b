"""What names become under a project's key. Apart from what reads DICOM: whoever only needs a name loads none of that."""

from __future__ import annotations

import hmac

_LETTERS = str.maketrans("0123456789abcdef", "BCDFGHJKLMNPQRST")  # no vowels, no digits: never a name, never a number


def pseudonym(patient: str, key: bytes) -> str:
    """Who a patient ID becomes under the project's key."""
    return mac(key, "patient", patient.strip()).hex()[:20].translate(_LETTERS)


def mac(key: bytes, purpose: str, value: str) -> bytes:
    """HMAC-SHA256 (RFC 2104) of a value for one purpose, 32 bytes."""
    return hmac.digest(key, f"{purpose}\0{value}".encode(), "sha256")
