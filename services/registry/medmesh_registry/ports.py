"""What the handlers of the registry need beside the database."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from medmesh.bus.declarations import Handlers
from medmesh.security.keys import Identity
from medmesh.security.roster import Roster
from medmesh.security.tokens import TrustBundle
from medmesh.service.labels import labelled
from medmesh.store.objects.open import Stores
from medmesh_registry.settings import Settings

HANDLERS = labelled(Handlers("registry"), "model", "release")


@dataclass(frozen=True, slots=True)
class Ports:
    """Built by the composition root. `release` is the key that signs manifests, not the service's identity on the bus."""

    settings: Settings
    release: Identity
    stores: Stores
    trust: Callable[[], TrustBundle]
    roster: Callable[[], Roster]
