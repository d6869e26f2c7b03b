"""What the handlers and the runner of training need beside the database."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from medmesh.bus.declarations import Handlers
from medmesh.learning.package import Manifest
from medmesh.service.labels import labelled
from medmesh.store.objects.open import Stores
from medmesh_training.domain import Item
from medmesh_training.settings import Settings

if TYPE_CHECKING:
    from medmesh.learning.adapter import Samples

HANDLERS = labelled(Handlers("training"), "job")

LoadSamples = Callable[[Sequence[Item], Manifest, Stores], "Awaitable[Samples]"]
"""The images of labelled items, in their order, as the manifest wants them. Raises `Problem`."""


@dataclass(frozen=True, slots=True)
class Ports:
    """Built by the composition root."""

    settings: Settings
    stores: Stores
    load_samples: LoadSamples
    rehearsing: dict[str, str] = field(default_factory=dict)
    """Package to the stage of its rehearsal that runs here: a hint for people."""
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a job was submitted or cancelled here: a hint to look at once, never something that must happen."""
