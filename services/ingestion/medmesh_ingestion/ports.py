"""What the handlers of ingestion need beside the database."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from medmesh.bus.declarations import Handlers
from medmesh.security.roster import Roster
from medmesh.security.tokens import TrustBundle
from medmesh.service.labels import labelled
from medmesh.store.objects.open import Stores
from medmesh_ingestion.settings import Settings

HANDLERS = labelled(Handlers("ingestion"), "dataset", "descriptor")


@dataclass(frozen=True, slots=True)
class Ports:
    """Built by the composition root."""

    settings: Settings
    stores: Stores
    key: bytes = field(repr=False)
    folder: Path
    """Private; holds originals while they are being cleaned."""
    trust: Callable[[], TrustBundle]
    roster: Callable[[], Roster]
