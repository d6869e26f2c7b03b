"""What names become under a project's key. Apart from what reads DICOM: whoever only needs a name loads none of that."""

from __future__ import annotations

import hmac

_LETTERS = str.maketrans("0123456789abcdef", "BCDFGHJKLMNPQRST")  # no vowels, no digits: never a name, never a number


def pseudonym(patient: str, key: bytes) -> str:
    """Who a patient ID becomes under the project's key."""
    return mac(key, "patient", patient.strip()).hex()[:20].translate(_LETTERS)


def shift_days(patient: str, key: bytes) -> int:
    """By how many whole days everything of a patient is moved back under the project's key: 1 to 10 years (CID 7050 code 113107), the same
    for images and for whatever else is known of the patient, so that one axis of time holds all of it."""
    return 365 + int.from_bytes(mac(key, "days", patient.strip())[:4], "big") % 3287


def replaced_uid(uid: str, key: bytes) -> str:
    """What a UID becomes: 2.25.<128 bits> (PS3.5 §B.2)."""
    return f"2.25.{int.from_bytes(mac(key, 'uid', uid)[:16], 'big')}"


def mac(key: bytes, purpose: str, value: str) -> bytes:
    """HMAC-SHA256 (RFC 2104) of a value for one purpose, 32 bytes."""
    return hmac.digest(key, f"{purpose}\0{value}".encode(), "sha256")
