"""One-time links by which an invitation reaches a hospital's people: `FEDERATION/SECRET`.

A link shows who holds it the plan, at the node of the hospital that it was made for, once. It is no consent. The platform is given a digest
over the secret, the hospital and the plan, and the secret itself when the link is opened and worth nothing any more.
"""

from __future__ import annotations

import secrets

from medmesh.canonical import digest
from medmesh.errors import Problem

_BYTES = 24
"""192 bits: nobody guesses it, and no slow hash is needed."""


def link_digest(federation: str, hospital: str, plan_hash: str, secret: str) -> str:
    """SHA-256: of another hospital, or of another plan, the same secret has another."""
    return digest({"link": 1, "federation": federation, "hospital": hospital, "plan": plan_hash, "secret": secret})


def new_secret() -> str:
    """192 random bits."""
    return secrets.token_urlsafe(_BYTES)


def link_of(federation: str, secret: str) -> str:
    """As it is handed over."""
    return f"{federation}/{secret}"


def parts(link: str) -> tuple[str, str]:
    """(federation, secret). Raises `Problem` (`federation.link`)."""
    federation, _, secret = link.strip().partition("/")
    if not federation or not secret or len(federation) > 36 or len(secret) > 100 or not federation.replace("-", "").isalnum():
        raise Problem("federation.link", reason="it is none; a link is FEDERATION/SECRET")
    return federation, secret
