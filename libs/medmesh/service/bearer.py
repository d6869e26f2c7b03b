"""Who shows a token at the door of a service other than the gateway, and proves that it is theirs."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from starlette.requests import Request

from medmesh.errors import Problem
from medmesh.security import possession
from medmesh.security.asgi_tls import client_certificate
from medmesh.security.authority import fingerprint
from medmesh.security.tokens import Actor, TrustBundle, verify_actor
from medmesh.service.doorstep import Doorstep
from medmesh.service.proofs import Proofs


class Bearer:
    """`unbound`: tokens that name no key are taken too, as from clients that can send nothing but a fixed header."""

    def __init__(self, trust: Callable[[], TrustBundle], doorstep: Doorstep, audience: str, proofs: Proofs, *, unbound: bool) -> None:
        self._trust = trust
        self._doorstep = doorstep
        self._audience = audience
        self._unbound = unbound
        self._proofs = proofs

    async def actor(self, request: Request) -> Actor:
        """Raises `Problem` (`actor.missing`, `security.*`), which is recorded."""
        async with self._doorstep.proving(request):
            kind, _, token = request.headers.get("authorization", "").partition(" ")
            if kind.lower() not in ("dpop", "bearer") or not token:
                raise Problem("actor.missing", type=self._audience)
            actor = verify_actor(token, self._trust(), datetime.now(UTC), audience=self._audience)
            await self._prove(request, token, actor)
            return actor

    async def _prove(self, request: Request, token: str, actor: Actor) -> None:
        """By the key the token names (RFC 9449), or by the certificate of its session (RFC 8705)."""
        if actor.key:
            proof = proven(request, token)
            if proof.key != actor.key:
                raise Problem("security.possession", reason="key")
            await self._proofs.once(proof)
        elif actor.certificate:
            certificate = client_certificate(request.scope)
            if certificate is None or fingerprint(certificate) != actor.certificate:
                raise Problem("security.possession", reason="certificate")
        elif not self._unbound:
            raise Problem("security.token_unbound")


def proven(request: Request, token: str = "") -> possession.Proof:
    """The key that signed this request, together with the token it comes with. Raises `Problem`."""
    shown, host = request.headers.get(possession.HEADER, ""), request.headers.get("host", "")
    return possession.verify(shown, request.method, host, request.scope["path"], token, now=datetime.now(UTC))
