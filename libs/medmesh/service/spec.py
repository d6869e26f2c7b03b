"""A service as its composition root declares it, and how services are found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import MetaData

from medmesh.bus.declarations import Handlers
from medmesh.contracts.labels import LabelChanged
from medmesh.contracts.message import Command, Event, Message, OperationFinished, Query, Signal

if TYPE_CHECKING:
    from medmesh.service.runtime import Runtime
    from medmesh.service.settings import ServiceSettings


@dataclass(frozen=True)
class ServiceSpec:
    """Everything the platform knows about a service without starting it.

    `open` builds the service's ports when it starts (object stores, caches, background tasks) and takes them down when
    it stops; what it yields is `uow.ports` in the handlers.
    """

    name: str
    purpose: str
    handlers: Handlers
    settings: type[ServiceSettings]
    metadata: MetaData
    migrations: Path
    open: Callable[[Runtime], AbstractAsyncContextManager[Any]]
    emits: Sequence[type[Event]] = ()
    sends: Sequence[type[Command]] = ()
    asks: Sequence[type[Query]] = ()
    signals: Sequence[type[Signal]] = ()
    audits_as: Sequence[str] = ()
    """Further emitters whose audit records it hands in: the gateway those of the hospitals (`edge`)."""
    extra_subscriptions: Sequence[str] = ()
    """Subjects it answers that are no declared query: only the audit service has some."""
    http: bool = False
    """Whether it runs an HTTP application of its own on the listening address."""

    @property
    def writes(self) -> frozenset[type[Message]]:
        """Every class its units of work may emit."""
        of_labels = (LabelChanged,) if self.handlers.labelled else ()
        return frozenset((*self.emits, *self.sends, OperationFinished, *of_labels))

    @property
    def commands(self) -> tuple[type[Command], ...]:
        """The commands it fulfils."""
        found = {m for c in self.handlers.consumers for m in c.messages if issubclass(m, Command)}
        return tuple(sorted(found, key=lambda m: m.TYPE))


@cache
def services() -> dict[str, ServiceSpec]:
    """Every installed service by its name, found through the entry points `medmesh.services`."""
    found = {entry.name: entry.load() for entry in entry_points(group="medmesh.services")}
    return dict(sorted(found.items()))


def service(name: str) -> ServiceSpec:
    """One service, importing only that one. Raises `KeyError`."""
    for entry in entry_points(group="medmesh.services", name=name):
        spec: ServiceSpec = entry.load()
        return spec
    raise KeyError(name)
