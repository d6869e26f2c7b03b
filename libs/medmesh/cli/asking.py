"""Asking for an approval from the command line: signed with one's own key where the keepers of the roster want that."""

from __future__ import annotations

from typing import Any

from medmesh.cli import key as keys
from medmesh.client.approvals import ask
from medmesh.client.gateway import Gateway


async def request_approval(gateway: Gateway, wanted: dict[str, Any]) -> dict[str, Any]:
    """The approval of `wanted` (action, target, digest, summary), asked for. The passphrase is asked for when a signature is needed."""
    return await ask(gateway, wanted, lambda: keys.unlock(keys.place()))
