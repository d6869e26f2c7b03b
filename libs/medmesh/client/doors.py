"""The doors beside the gateway: the auditors' and inference's, each with a token of its own that is bound to a key made here and now."""

from __future__ import annotations

from typing import Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from medmesh.client.credentials import Bound
from medmesh.client.gateway import Gateway
from medmesh.security import possession

Audience = Literal["audit", "inference"]


async def bound_token(gateway: Gateway, audience: Audience, url: str) -> Bound:
    """Credentials for the door at `url`, good for ten minutes and together with their key only. Raises `Problem`."""
    key, path = Ed25519PrivateKey.generate(), f"/v1/tokens/{audience}"
    proof = possession.prove(key, "POST", gateway.url.rstrip("/") + path)
    answer = await gateway.request("POST", path, headers={"DPoP": proof})
    return Bound(url, answer["token"], key)


async def open_door(gateway: Gateway, audience: Audience, url: str) -> Gateway:
    """A client of the door at `url` for the signed-in person or system; the caller closes it. Raises `Problem`."""
    return gateway.at(url, await bound_token(gateway, audience, url))
