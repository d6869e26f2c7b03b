"""What the handlers and the runner of training need beside the database."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medmesh.bus.declarations import Handlers
from medmesh.contracts.data import ItemSchema
from medmesh.service.labels import labelled
from medmesh.store.objects.open import Stores
from medmesh_training.domain import Item
from medmesh_training.settings import Settings

HANDLERS = labelled(Handlers("training"), "job")

WriteSamples = Callable[[Sequence[Item], ItemSchema, Stores, Path], Awaitable[None]]
"""Writes labelled items, in their order, as the schema wants them. Raises `Problem`."""


@dataclass(frozen=True, slots=True)
class Ports:
    """Built by the composition root."""

    settings: Settings
    stores: Stores
    write_samples: WriteSamples
    rehearsing: dict[str, str] = field(default_factory=dict)
    """Package to the stage of its rehearsal that runs here: a hint for people."""
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a job was submitted or cancelled here: a hint to look at once, never something that must happen."""
