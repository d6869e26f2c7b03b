"""What the handlers of annotation need beside the database."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from medmesh.bus.declarations import Handlers
from medmesh.security.roster import Roster
from medmesh.security.tokens import TrustBundle
from medmesh.service.labels import labelled
from medmesh.store.objects.open import Stores
from medmesh_annotation.settings import Settings

HANDLERS = labelled(Handlers("annotation"), "project")


@dataclass(frozen=True, slots=True)
class Ports:
    """Built by the composition root."""

    settings: Settings
    stores: Stores
    trust: Callable[[], TrustBundle]
    roster: Callable[[], Roster]
