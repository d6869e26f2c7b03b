"""Time-based one-time codes (RFC 6238): the second factor of people.

SHA-1, six digits and steps of 30 seconds, because that is what every authenticator application computes; HMAC does not rest
on the collision resistance of its hash (RFC 6238 §1.2, RFC 6151). A code counts once: the step it was for is kept.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from datetime import datetime
from urllib.parse import quote, urlencode

from medmesh.security.codes import same

STEP_SECONDS = 30
DIGITS = 6
DRIFT = 1
"""Steps a clock may be off, either way (RFC 6238 §5.2 recommends one)."""


def new_secret() -> bytes:
    """160 bits, the length of the hash (RFC 4226 §4 R6)."""
    return secrets.token_bytes(20)


def step_at(moment: datetime) -> int:
    """The step an instant lies in."""
    return int(moment.timestamp()) // STEP_SECONDS


def code_for(secret: bytes, step: int, *, digits: int = DIGITS, algorithm: str = "sha1") -> str:
    """The code of a step (RFC 4226 §5.3): dynamic truncation of an HMAC over its number."""
    mac = hmac.digest(secret, step.to_bytes(8, "big"), getattr(hashlib, algorithm))
    place = mac[-1] & 0x0F
    number = int.from_bytes(mac[place : place + 4], "big") & 0x7FFFFFFF
    return str(number % 10**digits).zfill(digits)


def accept(secret: bytes, code: str, now: datetime, used: int) -> int | None:
    """The step `code` is for: near `now` and later than the last one used. None when it is wrong, or was used before."""
    given = code.replace(" ", "")
    present = step_at(now)
    fits = [step for step in range(present - DRIFT, present + DRIFT + 1) if same(code_for(secret, step), given)]
    return next((step for step in fits if step > used), None)


def text(secret: bytes) -> str:
    """What is typed where no QR code can be scanned: base32."""
    return base64.b32encode(secret).decode().rstrip("=")


def read(written: str) -> bytes:
    """A secret as it was written down. Raises `ValueError`."""
    clean = written.replace(" ", "").upper()
    return base64.b32decode(clean + "=" * (-len(clean) % 8))


def uri(secret: bytes, name: str, issuer: str) -> str:
    """What an authenticator scans (the key URI format of Google Authenticator, which the others read too)."""
    values = {"secret": text(secret), "issuer": issuer, "algorithm": "SHA1", "digits": DIGITS, "period": STEP_SECONDS}
    return f"otpauth://totp/{quote(issuer)}:{quote(name)}?{urlencode(values)}"
