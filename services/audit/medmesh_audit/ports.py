"""What audit's handlers and routes share."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from medmesh.bus.declarations import Handlers
from medmesh_audit.queries import Upper

if TYPE_CHECKING:
    from medmesh.security.tokens import TrustBundle
    from medmesh.service.runtime import Runtime
    from medmesh.store.objects.open import Stores
    from medmesh_audit.anomalies import Anomalies
    from medmesh_audit.sequencer import Sequencer
    from medmesh_audit.settings import Settings
    from medmesh_audit.witnesses import Witnesses

HANDLERS = Handlers("audit")


@dataclass
class Ports:
    """Built by the composition root."""

    settings: Settings
    sequencer: Sequencer
    runtime: Runtime
    stores: Stores
    anomalies: Anomalies
    witnesses: Witnesses
    upper: Upper = field(default_factory=Upper)
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    """An export was approved."""
    prune: asyncio.Event = field(default_factory=asyncio.Event)
    """A pruning was approved."""

    def trust(self) -> TrustBundle:
        """Whose signatures are believed."""
        return self.runtime.trust()
