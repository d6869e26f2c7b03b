"""What inference's handlers and routes share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from medmesh.bus.declarations import Handlers
from medmesh.security.roster import Roster
from medmesh.security.tokens import TrustBundle
from medmesh.service.labels import copied
from medmesh.serving.repository import Repository
from medmesh.store.objects.port import ObjectStore

HANDLERS = copied(Handlers("inference"), "model")


@dataclass(frozen=True)
class Ports:
    """Built by the composition root."""

    repository: Repository
    kept: ObjectStore
    trust: Callable[[], TrustBundle]
    roster: Callable[[], Roster]
    incoming: Path
    """A folder for files on their way into the repository."""
    changing: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Held while the repository and the tables change together."""
