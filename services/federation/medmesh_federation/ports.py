"""What federation's handlers and its coordinator share."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol, TypeVar

from medmesh.bus.declarations import Handlers
from medmesh.contracts.federation import ProgressView
from medmesh.contracts.message import Query, Record
from medmesh.security.roster import Roster
from medmesh.security.tokens import TrustBundle
from medmesh.service.labels import labelled
from medmesh.store.objects.open import Stores
from medmesh.store.objects.port import ObjectStore
from medmesh_federation.copies import Copies

if TYPE_CHECKING:
    from medmesh_federation.settings import Settings

_MOST_PROGRESS = 10_000
R = TypeVar("R", bound=Record)
HANDLERS = labelled(Handlers("federation"), "federation")


@dataclass
class Leases:
    """Which hospitals hold their connection; in memory, because after a restart everybody has one lease's time to be heard."""

    _heard: dict[str, float] = field(default_factory=dict)
    _began: float = field(default_factory=time.monotonic)

    def renew(self, hospital: str) -> bool:
        """A sign of life; whether it is the first for a while."""
        now = time.monotonic()
        before = self._heard.get(hospital)
        self._heard[hospital] = now
        return before is None or now - before > 5

    def online(self, hospital: str, seconds: float) -> bool:
        """Heard within its lease."""
        return time.monotonic() - self._heard.get(hospital, float("-inf")) < seconds

    def lapsed(self, hospital: str, seconds: float) -> bool:
        """Not heard for a lease, counted from our own start at the earliest."""
        return time.monotonic() - max(self._heard.get(hospital, float("-inf")), self._began) >= seconds


@dataclass
class Newest:
    """What hospitals said last of their progress, while this process lives; a hint for people."""

    _said: OrderedDict[tuple[str, str], ProgressView] = field(default_factory=OrderedDict)

    def say(self, federation: str, hospital: str, progress: ProgressView) -> None:
        """Keep it, and forget the oldest."""
        self._said[federation, hospital] = progress
        self._said.move_to_end((federation, hospital))
        while len(self._said) > _MOST_PROGRESS:
            self._said.popitem(last=False)

    def of(self, federation: str, hospital: str) -> ProgressView | None:
        """What it said, if anything."""
        return self._said.get((federation, hospital))


class Ask(Protocol):
    """Asks another service as this one."""

    async def __call__(self, query: Query, reply: type[R]) -> R:
        """The answer. Raises the `Problem` it is answered with."""


@dataclass
class Ports:
    """Built by the composition root. `models` holds committed models durably until they are in the kept store."""

    settings: Settings
    stores: Stores
    models: ObjectStore
    trust: Callable[[], TrustBundle]
    roster: Callable[[], Roster]
    ask: Ask
    copies: Copies
    leases: Leases = field(default_factory=Leases)
    progress: Newest = field(default_factory=Newest)
    beside: dict[str, int] = field(default_factory=dict)
    """Federation to how many bytes of a model its updates are looked at with: see `handlers.examine`."""
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    committed: asyncio.Event = field(default_factory=asyncio.Event)
    """A round was: its model waits to be stored for good; or it came to nothing, and its updates to be deleted."""
    discarded: dict[str, float] = field(default_factory=dict)
    """Waits to be deleted, and until when."""

    def discard(self, sha256: str, after: float = 0.0) -> None:
        """What a hospital sent counts nowhere, and is of no use `after` so many seconds."""
        self.discarded[sha256] = time.monotonic() + after
        self.committed.set()

    @contextmanager
    def holding(self) -> Iterator[Ports]:
        """With these, copies of objects stay until the block ends."""
        with self.copies.held() as copies:
            yield replace(self, copies=copies)
