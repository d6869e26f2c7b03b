"""Which message goes from whom to whom, read from the services' declarations."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pydantic import BaseModel

from medmesh import contracts
from medmesh.bus.topology import EVERY_SERVICE_ASKS, EVERY_SERVICE_HEARS, OPERATOR, OPERATOR_SENDS
from medmesh.contracts.audit import AuditBatch, Receipts
from medmesh.contracts.labels import LabelChanged
from medmesh.contracts.message import Message, OperationFinished, Query, Signal
from medmesh.contracts.system import ListDeadLetters, ReplayDeadLetter
from medmesh.service.spec import ServiceSpec

AUDIT_RECORD = "audit.record.v1"
"""The name of the one request that is no envelope: records on their way to the log."""

DEAD_LETTERS: tuple[type[Query], ...] = (ListDeadLetters, ReplayDeadLetter)


@dataclass(frozen=True)
class Flow:
    """A message as one party sees it. `name` is that of its schema file."""

    name: str
    address: str
    """The subject; what varies in it stands in braces."""
    model: type[BaseModel]
    reply: type[BaseModel] | None = None

    @property
    def kind(self) -> str:
        """What to call it."""
        return {"evt": "event", "cmd": "command", "qry": "query", "edge": "signal", "audit": "records"}[self.name.split(".", 1)[0]]


@dataclass(frozen=True)
class Party:
    """What one identity hears and says."""

    name: str
    purpose: str
    receives: tuple[Flow, ...]
    sends: tuple[Flow, ...]


def messages() -> list[type[Message]]:
    """Every message of the contracts, by kind and type."""
    found: set[type[Message]] = set()
    for module in pkgutil.iter_modules(contracts.__path__, f"{contracts.__name__}."):
        for value in vars(importlib.import_module(module.name)).values():
            if isinstance(value, type) and issubclass(value, Message) and "TYPE" in vars(value):
                found.add(value)
    return sorted(found, key=lambda message: (message.KIND, message.TYPE))


def file_name(message: type[Message]) -> str:
    """`evt.registry.model.released.v1`; a wildcard becomes the word `any`."""
    return f"{message.KIND}.{message.TYPE}".replace("*", "any")


OF_EVERY_SERVICE = frozenset({AUDIT_RECORD, *map(file_name, (*DEAD_LETTERS, *EVERY_SERVICE_ASKS, *EVERY_SERVICE_HEARS))})
"""What every service does alike, by name."""


def flow(message: type[Message]) -> Flow:
    """The message's own flow."""
    varies = "{hospital}" if issubclass(message, Signal) else "{service}"
    reply = message.Reply if issubclass(message, Query) else None
    return Flow(file_name(message), message.subject().replace("*", varies), message, reply)


def audit_flow() -> Flow:
    """A batch of records and its receipts."""
    return Flow(AUDIT_RECORD, "medmesh.audit.{emitter}.record.v1", AuditBatch, Receipts)


def parties(specs: Mapping[str, ServiceSpec]) -> list[Party]:
    """Every service, then the operator."""
    found = [_party(spec) for spec in specs.values()]
    purpose = "Looks at dead letters and has them handled again; says what was done on the machine itself."
    return [*found, Party(OPERATOR, purpose, (), _sorted(map(flow, (*DEAD_LETTERS, *OPERATOR_SENDS))))]


def _party(spec: ServiceSpec) -> Party:
    handlers = spec.handlers
    heard: set[type[Message]] = {message for consumer in handlers.consumers for message in consumer.messages}
    heard |= {responder.query for responder in handlers.responders} | {listener.signal for listener in handlers.listeners}
    heard |= {*DEAD_LETTERS, *EVERY_SERVICE_HEARS}
    said: set[type[Message]] = {*spec.emits, *spec.sends, *spec.asks, *spec.signals, *EVERY_SERVICE_ASKS}
    said |= {OperationFinished} if spec.commands else set()
    said |= {LabelChanged} if handlers.labelled else set()
    takes_records = any(subject.startswith("medmesh.audit.") for subject in spec.extra_subscriptions)
    receives = [*map(flow, heard), *([audit_flow()] if takes_records else [])]
    return Party(spec.name, spec.purpose, _sorted(receives), _sorted([*map(flow, said), audit_flow()]))


def _sorted(flows: Iterable[Flow]) -> tuple[Flow, ...]:
    return tuple(sorted(flows, key=lambda flow: flow.name))
