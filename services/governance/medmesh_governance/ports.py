"""What the handlers of governance need beside the database."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from medmesh.bus.declarations import Handlers
from medmesh.security.authority import Authority
from medmesh.security.keys import Identity
from medmesh.security.roster import Roster
from medmesh.security.sealing import Seal
from medmesh.security.tokens import TrustBundle
from medmesh_governance.settings import Settings

HANDLERS = Handlers("governance")


@dataclass(frozen=True, slots=True)
class Ports:
    """Built by the composition root."""

    settings: Settings
    identity: Identity
    authority: Authority
    seal: Seal
    trust: Callable[[], TrustBundle]
    roster: Callable[[], Roster]
    bootstrap_hash: str | None
