"""Who is asking: a person by session, or a hospital's node by certificate, token and signature."""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, cast

import jwt
from cryptography import x509
from fastapi import Request
from sqlalchemy import ARRAY, String, bindparam, delete, func, select
from sqlalchemy.dialects.postgresql import insert
from starlette.types import ASGIApp, Receive, Scope, Send

from medmesh.contracts.governance import ActorToken, ResolveSession
from medmesh.errors import Problem
from medmesh.security import possession
from medmesh.security.access import decide
from medmesh.security.asgi_tls import client_certificate
from medmesh.security.authority import fingerprint, subject_of
from medmesh.security.codes import bearer_hash
from medmesh.security.requests import HEADER, WINDOW, signed, verify_request
from medmesh.security.roles import STEP_UP
from medmesh.security.tokens import Actor, TrustBundle, verify_actor
from medmesh.service.bearer import proven
from medmesh.service.runtime import Runtime
from medmesh.store.prepared import Prepared
from medmesh.store.types import Timestamp
from medmesh.store.unit import AuditEntry, Context, UnitOfWork
from medmesh_gateway.bodies import Unread, hung_up
from medmesh_gateway.settings import Settings
from medmesh_gateway.tables import nonces

NODE = "medmesh-node"
_MOST_SESSIONS = 10_000
# In order, so that two that share requests wait for each other instead of dead-locking.
_COME = select(func.unnest(bindparam("come", type_=ARRAY(String))).label("nonce"), bindparam("until", type_=Timestamp)).order_by("nonce")
_SEE = Prepared(insert(nonces).from_select(["nonce", "until"], _COME).on_conflict_do_nothing().returning(nonces.c.nonce))


class Door:
    """Authenticates requests. Sessions are exchanged at governance and remembered for seconds, never for longer."""

    def __init__(self, runtime: Runtime, settings: Settings) -> None:
        self._runtime = runtime
        self._settings = settings
        self._sessions: OrderedDict[str, tuple[str, float, str | None]] = OrderedDict()
        self._nodes: OrderedDict[str, tuple[Actor, x509.Certificate, TrustBundle, float]] = OrderedDict()

    async def known(self, request: Request) -> None:
        """Raise `Unread` unless what is known before the body stands for somebody: a session, or a node's token with the certificate of its
        connection and a signature of now. Of nobody else is a body taken; that the signature is over it, `actor` sees."""
        async with self._runtime.doorstep.proving(request):
            try:
                await self._known(request)
            except Problem as problem:
                raise Unread(problem.code, **problem.params) from None

    async def _known(self, request: Request) -> None:
        scheme, credential = _credential(request)
        if scheme == "bearer" and credential:
            await self.exchange(credential, shown_with(request))
        elif scheme == NODE and credential:
            now = datetime.now(UTC)
            self._shown(request, credential, now)
            signed(request.headers.get(HEADER, ""), now)
        else:
            raise Problem("actor.missing", type=request.url.path)

    async def actor(self, request: Request, body_sha256: str, action: str | None = None, *, again: bool = False) -> tuple[Actor, str]:
        """(actor, token) of a request. `again`: whoever replays it does no harm, or `unseen` is asked in the transaction that it leads to.
        Raises `Problem`; that nobody was proven is recorded."""
        async with self._runtime.doorstep.proving(request):
            return await self._actor(request, body_sha256, action, again)

    async def _actor(self, request: Request, body_sha256: str, action: str | None, again: bool) -> tuple[Actor, str]:
        scheme, credential = _credential(request)
        if scheme == "bearer" and credential:
            if action in STEP_UP:
                self.forget(credential)  # the second factor may have been shown a moment ago, at another gateway
            token = await self.exchange(credential, shown_with(request))
            actor = verify_actor(token, self._runtime.trust(), datetime.now(UTC))
            await self._runtime.doorstep.placed(request, self._runtime.context(actor=actor), actor)
            return actor, token
        if scheme == NODE and credential:
            return await self._node(request, credential, body_sha256, again), credential
        raise Problem("actor.missing", type=request.url.path)

    async def exchange(self, session: str, certificate: str | None) -> str:
        """The actor token of a session, which may belong to the certificate that is shown with it."""
        key = bearer_hash(session)
        known = self._sessions.get(key)
        if known and known[1] > time.monotonic() and known[2] == certificate:
            return known[0]
        answer = await self._runtime.ask(ResolveSession(session=session, certificate=certificate), ActorToken)
        self._sessions[key] = (answer.token, time.monotonic() + self._settings.session_cache_seconds, certificate)
        while len(self._sessions) > _MOST_SESSIONS:
            self._sessions.popitem(last=False)
        return answer.token

    def forget(self, session: str) -> None:
        """The session was closed."""
        self._sessions.pop(bearer_hash(session), None)

    async def _node(self, request: Request, token: str, body_sha256: str, again: bool) -> Actor:
        now = datetime.now(UTC)
        actor, named = self._shown(request, token, now)
        target = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        request.state.nonce = verify_request(named, request.method, target, body_sha256, request.headers.get(HEADER, ""), now=now)
        if request.method not in ("GET", "HEAD") and not again:
            async with self._runtime.unit() as uow:
                (fresh,) = await self.unseen(uow, [(self._runtime.context(actor=actor), request)])
            if not fresh:
                raise Problem("security.request_replayed")
        return actor

    def _shown(self, request: Request, token: str, now: datetime) -> tuple[Actor, x509.Certificate]:
        """Whose token it is, and its certificate, which is the one of the connection. Raises `Problem`."""
        actor, named = self._believed(token, now)
        shown = client_certificate(request.scope)
        if shown is None and self._settings.require_client_certificate:
            raise Problem("security.certificate_needed")
        if shown is not None and shown != named:
            raise Problem("security.certificate_foreign")
        return actor, named

    def _believed(self, token: str, now: datetime) -> tuple[Actor, x509.Certificate]:
        """Whose token it is, and the certificate in it; verified once in a while, and anew when the trusted keys changed."""
        trust, clock = self._runtime.trust(), time.monotonic()
        known = self._nodes.get(token)
        if known is not None and known[2] is trust and clock < known[3]:
            return known[0], known[1]
        actor = verify_actor(token, trust, now)
        if actor.kind != "hospital":
            raise Problem("security.token_malformed")
        named = certificate_of(token)
        self._nodes[token] = (actor, named, trust, clock + self._settings.session_cache_seconds)
        while len(self._nodes) > _MOST_SESSIONS:
            self._nodes.popitem(last=False)
        return actor, named

    async def unseen(self, uow: UnitOfWork[Any], requests: Sequence[tuple[Context, Request]]) -> list[bool]:
        """Whether each of these, signed by nodes, comes for the first time; that it does not is recorded. Whoever came with a session is
        not asked."""
        come = [getattr(request.state, "nonce", None) for _, request in requests]
        signed = [nonce for nonce in come if nonce is not None]
        new = {row.nonce for row in await uow.rows(_SEE, come=signed, until=uow.now + 2 * WINDOW)} if signed else set()
        fresh = []
        for (context, _), nonce in zip(requests, come, strict=True):
            fresh.append(nonce is None or nonce in new)
            new.discard(nonce)  # it may be here twice
            if not fresh[-1]:
                uow.context = context
                uow.audit(AuditEntry("request.replayed", "E", outcome=8, why="security.request_replayed"))
        return fresh

    async def permit(self, actor: Actor, action: str | None) -> None:
        """Raise unless it is allowed as far as can be said before the object is known; the refusal is recorded. The owner of the message
        decides again."""
        rules = self._runtime.policies.rules
        if action is None or (decision := decide(actor, action, datetime.now(UTC), rules=rules)).allowed:
            return
        await self._runtime.doorstep.denied(self._runtime.context(actor=actor, decision=decision), actor, action, decision)

    async def prune(self) -> None:
        """Forget nonces nobody can use any more."""
        async with self._runtime.unit() as uow:
            await uow.execute(delete(nonces).where(nonces.c.until < uow.now))


class Barred:
    """ASGI: who connects with a revoked certificate gets no answer but that it is, whatever was asked for, and has to hang up."""

    def __init__(self, app: ASGIApp, runtime: Runtime) -> None:
        self._app = app
        self._runtime = runtime

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        shown = client_certificate(scope) if scope["type"] == "http" else None
        if shown is not None and revoked(self._runtime, shown):
            problem = Problem("security.certificate_revoked", hospital=subject_of(shown))
            await self._runtime.doorstep.unproven(Request(scope), problem)
            await hung_up(problem, Request(scope))(scope, receive, send)
            return
        await self._app(scope, receive, send)


def _credential(request: Request) -> tuple[str, str]:
    """(scheme, credential) a request came with."""
    scheme, _, credential = request.headers.get("authorization", "").partition(" ")
    return scheme.lower(), credential


def revoked(runtime: Runtime, certificate: x509.Certificate) -> bool:
    """Whether a certificate, a node's or a person's, is believed no longer."""
    return f"{certificate.serial_number:x}" in runtime.trust().revoked


def shown_with(request: Request) -> str | None:
    """SHA-256 of the client certificate the connection was proven with."""
    shown = client_certificate(request.scope)
    return fingerprint(shown) if shown is not None else None


def proven_key(request: Request) -> str | None:
    """Thumbprint of the key with which a request that asks for a token was signed (RFC 9449 §5). Raises `Problem`."""
    return proven(request).key if possession.HEADER in request.headers else None


def certificate_of(token: str) -> x509.Certificate:
    """The certificate in a token that was verified before."""
    import base64

    chain = cast(list[str], jwt.get_unverified_header(token)["x5c"])
    return x509.load_der_x509_certificate(base64.b64decode(chain[0]))


def body_digest(body: bytes) -> str:
    """SHA-256 of a request's body, hexadecimal."""
    return hashlib.sha256(body).hexdigest()
