"""What audit's handlers and routes share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from medmesh.bus.declarations import Handlers

if TYPE_CHECKING:
    from medmesh_audit.sequencer import Sequencer
    from medmesh_audit.settings import Settings
    from medmesh_audit.witnesses import Witnesses

HANDLERS = Handlers("audit")


@dataclass
class Ports:
    """Built by the composition root."""

    settings: Settings
    sequencer: Sequencer
    witnesses: Witnesses
