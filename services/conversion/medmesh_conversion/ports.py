"""What the handlers of conversion need beside the database."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from medmesh.bus.declarations import Handlers
from medmesh.contracts.message import Query, Record
from medmesh.store.objects.port import ObjectStore
from medmesh_conversion.settings import Settings

HANDLERS = Handlers("conversion")

R = TypeVar("R", bound=Record)


class Ask(Protocol):
    """Asks another service as this one."""

    async def __call__(self, query: Query, reply: type[R]) -> R:
        """The answer. Raises the `Problem` it is answered with."""


@dataclass(frozen=True, slots=True)
class Ports:
    """Built by the composition root. Every conversion gets a folder of its own below `work`."""

    settings: Settings
    kept: ObjectStore
    ask: Ask
    work: Path
