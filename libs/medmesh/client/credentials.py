"""How a request says who sends it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal, Protocol

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

from medmesh.errors import Problem
from medmesh.security import possession
from medmesh.security.requests import HEADER, sign_request
from medmesh.security.tokens import hospital_token


class Credentials(Protocol):
    """Headers for one request."""

    def headers(self, method: str, target: str, body: bytes, digest: str | None = None) -> dict[str, str]:
        """`target` is path and query as they are sent, `digest` the SHA-256 of `body` where it is known already."""


@dataclass(frozen=True)
class Anonymous:
    """Nobody."""

    def headers(self, method: str, target: str, body: bytes, digest: str | None = None) -> dict[str, str]:
        """None."""
        return {}


@dataclass(frozen=True)
class Person:
    """A session; `second_factor` gets a code when one is needed in the middle of something, or the password (`shows`) in a session of
    a client certificate."""

    session: str = field(repr=False)
    second_factor: Callable[[], Awaitable[str]] | None = None
    shows: Literal["code", "password"] = "code"

    def headers(self, method: str, target: str, body: bytes, digest: str | None = None) -> dict[str, str]:
        """The bearer."""
        return {"Authorization": f"Bearer {self.session}"}


@dataclass
class Node:
    """A hospital's node: a token of ten minutes, made anew after five, and a signature over each request."""

    key: EllipticCurvePrivateKey = field(repr=False)
    certificate: x509.Certificate = field(repr=False)
    _token: str = field(default="", repr=False)
    _window: int = -1

    def token(self) -> str:
        """The actor token. Raises `Problem` when the certificate is over or, by this clock, has not begun: TLS would only hang up."""
        now = datetime.now(UTC)
        if now > self.certificate.not_valid_after_utc:
            raise Problem("security.certificate_expired", end=self.certificate.not_valid_after_utc.isoformat())
        if now < self.certificate.not_valid_before_utc:
            raise Problem("security.certificate_early", start=self.certificate.not_valid_before_utc.isoformat())
        window = int(now.timestamp()) // 300
        if window != self._window:
            self._token, self._window = hospital_token(self.key, self.certificate), window
        return self._token

    def headers(self, method: str, target: str, body: bytes, digest: str | None = None) -> dict[str, str]:
        """Token and signature."""
        return {"Authorization": f"Medmesh-Node {self.token()}", HEADER: sign_request(self.key, method, target, body, digest=digest)}


@dataclass(frozen=True)
class Bound:
    """A token for another door, and the key without which it opens nothing (RFC 9449); `url` is that door's address."""

    url: str
    token: str = field(repr=False)
    key: possession.PrivateKey = field(repr=False)

    def headers(self, method: str, target: str, body: bytes, digest: str | None = None) -> dict[str, str]:
        """Token, and the proof for this request."""
        return self.at(self.url.rstrip("/") + target, method)

    def at(self, address: str, method: str = "GET") -> dict[str, str]:
        """The same for a whole address."""
        return {"Authorization": f"DPoP {self.token}", "DPoP": possession.prove(self.key, method, address, self.token)}
