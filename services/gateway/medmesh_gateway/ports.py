"""What the gateway's handlers and routes share."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from medmesh.bus.declarations import Handlers
from medmesh.contracts.message import OperationFinished
from medmesh.store.objects.compare import Comparing
from medmesh.store.objects.open import Stores
from medmesh.store.objects.upload import Uploads
from medmesh_gateway.inbox import Doorbells

if TYPE_CHECKING:
    from medmesh_gateway.auth import Door
    from medmesh_gateway.settings import Settings

HANDLERS = Handlers("gateway")


@dataclass
class Expected:
    """The answer to an operation that requests hold for."""

    told: asyncio.Event = field(default_factory=asyncio.Event)
    answer: OperationFinished | None = None
    holding: int = 0

    async def within(self, seconds: float) -> OperationFinished | None:
        """The answer, or None when it did not come in time; another gateway may have heard it."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.told.wait()
        return self.answer


@dataclass
class Waiting:
    """Requests that hold until their operation is finished."""

    _expected: dict[str, Expected] = field(default_factory=dict)

    def expect(self, operation: str) -> Expected:
        """Told when the operation's answer is in the table."""
        expected = self._expected.setdefault(operation, Expected())
        expected.holding += 1
        return expected

    def finished(self, answer: OperationFinished) -> None:
        """The answer is there."""
        if expected := self._expected.pop(answer.operation, None):
            expected.answer = answer
            expected.told.set()

    def forget(self, operation: str) -> None:
        """One of those that `expect` it waits no more."""
        if expected := self._expected.get(operation):
            expected.holding -= 1
            if not expected.holding:
                del self._expected[operation]


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
