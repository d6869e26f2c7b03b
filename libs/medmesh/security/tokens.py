"""Actor tokens: who is behind a message, signed, verified by every receiver at the message's own time.

A person's is signed by governance, a service's by the service, a hospital's by its node (with the certificate it was
enrolled with). They are for envelopes and die in minutes; the gateway's own bearer is an opaque session, so that what
stands in a stream opens no door.
"""

from __future__ import annotations

import base64
import json
import os
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import jwt
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from medmesh.contracts.message import new_id
from medmesh.errors import Problem
from medmesh.security.authority import hospital_of, verify_trusted, verify_valid
from medmesh.security.emergency import Emergency
from medmesh.security.keys import Identity, public_key
from medmesh.security.labels import EVERYTHING, NOTHING, Label, level, of_hospital
from medmesh.security.possession import thumbprint

Kind = Literal["person", "service", "hospital", "system"]
LEEWAY = timedelta(seconds=60)
AUDIENCE = "medmesh"


@dataclass(frozen=True, slots=True)
class Actor:
    """Somebody a token vouches for. `organisation` is the hospital, or the platform."""

    kind: Kind
    id: str
    organisation: str
    roles: frozenset[str] = frozenset()
    method: str = ""
    """How a person signed in: `pwd`, or `pwd+otp` with a second factor (RFC 8176)."""
    strong_at: datetime | None = None
    """When a person last showed the second factor (RFC 9470 `auth_time`)."""
    emergency: Emergency | None = None
    """The emergency access this person has open in this session."""
    certificate: str = ""
    """SHA-256 of the client certificate the session belongs to (RFC 8705 `x5t#S256`, in hexadecimal)."""
    clearance: Label = NOTHING
    """What they may read: of people and systems as the security administrator set it, of services and hospitals by rule."""
    key: str = ""
    """Thumbprint (RFC 7638) of the key that must be proven beside the token (RFC 9449 `jkt`); a hospital's is its certificate's."""

    @property
    def text(self) -> str:
        """For people and logs, e.g. `person:wang@platform`."""
        return f"{self.kind}:{self.id}@{self.organisation}"


@dataclass
class TrustBundle:
    """The public keys a process believes; a JSON file that `medmesh topology apply` and enrolment write."""

    platform: str
    services: dict[str, str] = field(default_factory=dict)
    """Service name to NKEY public key."""
    release_key: str = ""
    """NKEY public key of the registry's release key."""
    log_key: str = ""
    """Verifier key of the audit log (C2SP signed note vkey)."""
    sm_log_key: str = ""
    """That of its second tree (SM3, SM2), where there is one."""
    ca_pem: str = ""
    revoked: list[str] = field(default_factory=list)
    """Serial numbers (hexadecimal) of revoked node certificates."""

    @property
    def governance(self) -> str:
        """The key that signs people's tokens and approvals."""
        return self.services.get("governance", "")

    @classmethod
    def load(cls, path: Path) -> TrustBundle:
        """Read a bundle."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return dict(self.__dict__)

    def save(self, path: Path) -> None:
        """Write it atomically."""
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps(self.document(), indent=1, sort_keys=True), encoding="utf-8")
        os.replace(temporary, path)


def _claims(issuer: str, subject: str, audience: str, minutes: float, extra: dict[str, Any], now: datetime | None) -> dict[str, Any]:
    start = now or datetime.now(UTC)
    times = {"iat": int(start.timestamp()), "exp": int((start + timedelta(minutes=minutes)).timestamp())}
    return {"iss": issuer, "sub": subject, "aud": audience, "jti": new_id(), **times, **extra}


def person_token(governance: Identity, actor: Actor, *, audience: str = AUDIENCE, minutes: float = 10, now: datetime | None = None) -> str:
    """A person's token, or that of a hospital's system, signed by governance."""
    extra: dict[str, Any] = {"knd": actor.kind, "org": actor.organisation, "rol": sorted(actor.roles), "mth": actor.method}
    extra |= {"lvl": actor.clearance.level.text, "cmp": sorted(actor.clearance.compartments)}
    if actor.strong_at is not None:
        extra["stp"] = int(actor.strong_at.timestamp())
    if bound := {name: value for name, value in (("x5t#S256", actor.certificate), ("jkt", actor.key)) if value}:
        extra["cnf"] = bound
    if (open_now := actor.emergency) is not None:
        extra["emg"] = {"id": open_now.id, "org": open_now.organisation, "exp": open_now.until.timestamp()}
    claims = _claims("service:governance", actor.id, audience, minutes, extra, now)
    return jwt.encode(claims, governance.private_key, algorithm="EdDSA", headers={"kid": governance.public})


def service_token(identity: Identity, name: str, *, audience: str = AUDIENCE, now: datetime | None = None) -> str:
    """A service's token, good for ten minutes and made anew after five."""
    if now is not None:
        return _service_token(identity, name, audience, now)
    return _cached_service_token(identity, name, audience, int(datetime.now(UTC).timestamp()) // 300)


@lru_cache(maxsize=8)
def _cached_service_token(identity: Identity, name: str, audience: str, _window: int) -> str:
    return _service_token(identity, name, audience, datetime.now(UTC))


def _service_token(identity: Identity, name: str, audience: str, now: datetime) -> str:
    claims = _claims(f"service:{name}", name, audience, 10, {"knd": "service", "org": "platform", "rol": []}, now)
    return jwt.encode(claims, identity.private_key, algorithm="EdDSA", headers={"kid": identity.public})


def hospital_token(
    key: EllipticCurvePrivateKey,
    certificate: x509.Certificate,
    *,
    audience: str = AUDIENCE,
    minutes: float = 10,
    now: datetime | None = None,
) -> str:
    """A hospital's token, signed by its node; carries the node's certificate (RFC 7515 §4.1.6 `x5c`)."""
    hospital, node = hospital_of(certificate)
    claims = _claims(f"hospital:{hospital}", hospital, audience, minutes, {"knd": "hospital", "org": hospital, "nod": node}, now)
    chain = [base64.b64encode(certificate.public_bytes(Encoding.DER)).decode()]
    return jwt.encode(claims, key, algorithm="ES256", headers={"x5c": chain})


@dataclass(frozen=True, slots=True)
class _Proven:
    """A token whose signature was verified: what does not depend on the time it is asked for."""

    actor: Actor
    made: datetime
    ends: datetime
    certificate: x509.Certificate | None


def verify_actor(token: str, trust: TrustBundle, at: datetime, *, audience: str = AUDIENCE) -> Actor:
    """The actor a token vouches for at the time `at`. Raises `Problem` (`security.token_*`)."""
    proven = _proven(token, audience, tuple(trust.services.items()), trust.ca_pem, tuple(trust.revoked))
    if proven.certificate is not None:
        verify_valid(proven.certificate, at)
    if at < proven.made - LEEWAY:
        raise Problem("security.token_early")
    if at > proven.ends + LEEWAY:
        raise Problem("security.token_expired")
    return proven.actor


@lru_cache(maxsize=2048)
def _proven(token: str, audience: str, services: tuple[tuple[str, str], ...], ca_pem: str, revoked: tuple[str, ...]) -> _Proven:
    """A token comes with many messages while it is good: what was believed once is remembered, by the keys it was believed by; what is not
    believed raises, and is not."""
    certificate: x509.Certificate | None = None
    try:
        header = jwt.get_unverified_header(token)
        claims = jwt.decode(token, options={"verify_signature": False})
        kind, issuer = str(claims["knd"]), str(claims["iss"])
    except (jwt.PyJWTError, KeyError, ValueError, RecursionError):
        raise Problem("security.token_malformed") from None
    if kind == "hospital":
        certificate = _node_certificate(header, ca_pem, frozenset(revoked))
        if claims.get("sub") != hospital_of(certificate)[0] or claims.get("org") != claims.get("sub"):
            raise Problem("security.token_issuer", issuer=issuer)
        key, algorithm = certificate.public_key(), "ES256"
    elif kind in ("person", "service", "system"):
        name = issuer.removeprefix("service:")
        known = dict(services).get(name)
        if known is None or (kind in ("person", "system") and name != "governance") or (kind == "service" and claims.get("sub") != name):
            raise Problem("security.token_issuer", issuer=issuer)
        key, algorithm = public_key(known), "EdDSA"
    else:
        raise Problem("security.token_malformed")
    try:
        # The times are checked against the message's, not against now.
        options = {"require": ["iss", "sub", "aud", "exp", "iat", "jti"], "verify_exp": False, "verify_iat": False}
        claims = jwt.decode(token, key, algorithms=[algorithm], audience=audience, options=options)  # type: ignore[arg-type]
    except jwt.InvalidAudienceError:
        raise Problem("security.token_audience", audience=audience) from None
    except (jwt.PyJWTError, RecursionError):
        raise Problem("security.token_signature") from None
    try:  # a node signs what it likes
        made, ends = (datetime.fromtimestamp(int(claims[name]), UTC) for name in ("iat", "exp"))
    except (ValueError, TypeError, OverflowError, OSError):
        raise Problem("security.token_malformed") from None
    roles = frozenset(("hospital",)) if kind == "hospital" else frozenset(map(str, claims.get("rol", ())))
    if kind == "service":
        roles = frozenset(("service", f"service:{claims['sub']}"))
    strong = datetime.fromtimestamp(int(claims["stp"]), UTC) if kind == "person" and "stp" in claims else None
    shown = str(claims.get("cnf", {}).get("x5t#S256", "")) if kind == "person" else ""
    bound = thumbprint(key) if kind == "hospital" else str(claims.get("cnf", {}).get("jkt", ""))  # type: ignore[arg-type]
    opened = _emergency(claims["emg"]) if kind == "person" and "emg" in claims else None
    method, clearance = str(claims.get("mth", "")), _clearance(kind, claims)
    actor = Actor(kind, str(claims["sub"]), str(claims["org"]), roles, method, strong, opened, shown, clearance, bound)  # type: ignore[arg-type]
    return _Proven(actor, made, ends, certificate)


def _clearance(kind: str, claims: dict[str, Any]) -> Label:
    """A token that says nothing of it clears for nothing."""
    if kind == "service":
        return EVERYTHING
    if kind == "hospital":
        return of_hospital(str(claims["sub"]))
    return Label(level(str(claims.get("lvl", NOTHING.level.text))), frozenset(map(str, claims.get("cmp", ()))))


def _emergency(claim: dict[str, Any]) -> Emergency:
    return Emergency(str(claim["id"]), str(claim["org"]), datetime.fromtimestamp(claim["exp"], UTC))


def _node_certificate(header: dict[str, Any], ca_pem: str, revoked: frozenset[str]) -> x509.Certificate:
    try:
        certificate = x509.load_der_x509_certificate(base64.b64decode(header["x5c"][0], validate=True))
    except (KeyError, IndexError, TypeError, ValueError, x509.InvalidVersion, UnsupportedAlgorithm):
        raise Problem("security.token_malformed") from None
    verify_trusted(certificate, x509.load_pem_x509_certificate(ca_pem.encode()), revoked)
    return certificate
