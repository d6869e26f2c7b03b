"""What the gateway's handlers and routes share."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from medmesh.bus.declarations import Handlers
from medmesh.store.objects.compare import Comparing
from medmesh.store.objects.open import Stores
from medmesh.store.objects.upload import Uploads
from medmesh_gateway.inbox import Doorbells

if TYPE_CHECKING:
    from medmesh_gateway.auth import Door
    from medmesh_gateway.settings import Settings

HANDLERS = Handlers("gateway")


@dataclass
class Waiting:
    """Requests that hold until their operation is finished."""

    _futures: dict[str, asyncio.Event] = field(default_factory=dict)

    def expect(self, operation: str) -> asyncio.Event:
        """Set when the operation's answer is in the table."""
        return self._futures.setdefault(operation, asyncio.Event())

    def finished(self, operation: str) -> None:
        """The answer is there."""
        if event := self._futures.pop(operation, None):
            event.set()

    def forget(self, operation: str) -> None:
        """Nobody waits any more."""
        self._futures.pop(operation, None)


@dataclass
class Ports:
    """Built by the composition root."""

    settings: Settings
    stores: Stores
    uploads: Uploads
    door: Door
    comparing: Comparing
    doorbells: Doorbells = field(default_factory=Doorbells)
    waiting: Waiting = field(default_factory=Waiting)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
