"""What the gateway does for a simulated hospital's node: the same requests by the same routes, answered in the platform's process."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

from medmesh.contracts.audit import AuditBatch
from medmesh.contracts.federation import GetRoundChain, ReportFailure, RoundChain, SubmitUpdate
from medmesh.contracts.message import Command, Message, Signal
from medmesh.errors import Problem
from medmesh.security.tokens import hospital_token
from medmesh.simulation.hub import Hub, holding
from medmesh_gateway.routes import ROUTES

_TOKEN_SECONDS = 300.0
_CHAIN = re.compile(r"/v1/federations/([^/]+)/chain")
_ROUTES = [
    (re.compile(re.sub(r"{(\w+)}", r"(?P<\1>[^/]+)", route.path)), route.message)
    for route in ROUTES
    if route.method == "POST" and issubclass(route.message, Command | Signal)
]


class Link:
    """One hospital's; a `Far` in that one's process asks it. What is refused is refused by the service, with its own problem."""

    def __init__(self, hub: Hub, hospital: str, key: EllipticCurvePrivateKey, certificate: x509.Certificate, clock: Any) -> None:
        self._hub, self._hospital, self._keys, self._clock = hub, hospital, (key, certificate), clock
        self._token, self._until = "", float("-inf")

    def token(self) -> str:
        """As the node would sign it."""
        if self._clock() > self._until:
            self._token, self._until = hospital_token(*self._keys), self._clock() + _TOKEN_SECONDS
        return self._token

    def _message(self, path: str, document: Any) -> Message:
        for pattern, message in _ROUTES:
            if (found := pattern.fullmatch(path)) is not None:
                values = {**document, **found.groupdict(), **({"hospital": self._hospital} if issubclass(message, Signal) else {})}
                return message.model_validate_json(json.dumps(values, default=str))
        raise Problem("request.no_route", path=path)

    async def command(self, enclosed: bytes, path: str, document: Any, key: str | None) -> dict[str, Any]:
        """As `Gateway.command`."""
        message = self._message(path, document or {})
        assert isinstance(message, Command)
        if isinstance(message, ReportFailure):
            self._hub.failures[self._hospital] = message.code
        if enclosed and isinstance(message, SubmitUpdate):
            await self._hub.uploads.whole(message.update, [enclosed], self._hub.stores.scratch)
        return await self._hub.command(message, self.token(), f"{self._hospital}-{key}" if key else None)

    async def request(self, path: str, document: Any, query: dict[str, Any] | None) -> Any:
        """As `Gateway.request`."""
        if path == "/v1/roster":
            return {"versions": list(self._hub.believed.notes)}
        if path == "/v1/audit/records":
            return self._hub.log.take(AuditBatch.model_validate(document)).model_dump()
        if path.startswith("/v1/audit/events"):
            return self._hub.log.prove() if path.endswith("/proof") else self._hub.log.find()
        if found := _CHAIN.fullmatch(path):
            asked = GetRoundChain(federation=found[1], **(query or {}))
            return (await self._hub.ask(asked, RoundChain, self.token())).model_dump(mode="json")
        message = self._message(path, document or {})
        assert isinstance(message, Signal)
        await self._hub.signal(message)
        return None

    async def upload(self, body: bytes, method: str, path: str, query: dict[str, Any] | None, digest: str | None) -> dict[str, str]:
        """Where to go on, and a piece; as `Gateway.raw`, and answered are its headers."""
        sha256, stores, uploads = path.removeprefix("/v1/uploads/"), self._hub.stores, self._hub.uploads
        asked, parts = query or {}, [body]
        if method == "HEAD":
            size = await stores.scratch.size(sha256)
            offset, whole = (size, True) if size is not None else (await uploads.offset(self._hospital, sha256), False)
        else:
            if asked.get("base"):
                store, _ = await holding(stores, asked["base"])
                start = int(asked["offset"])
                parts = [part async for part in store.read(asked["base"], start, start + int(asked["length"]))]
                digest = ""
            offset = await uploads.append(self._hospital, sha256, int(asked["offset"]), int(asked["total"]), parts, digest or "", upto=True)
            if whole := offset == int(asked["total"]):
                await uploads.finish(self._hospital, sha256, stores.scratch)
        return {"Upload-Offset": str(offset), "Upload-Complete": "?1" if whole else "?0"}

    async def read(self, sha256: str, start: int, end: int) -> tuple[int, Sequence[bytes]]:
        """The size of an object, and some of its bytes; as `Gateway.stream`."""
        store, size = await holding(self._hub.stores, sha256)
        return size, [piece async for piece in store.read(sha256, start, min(end, size))]
