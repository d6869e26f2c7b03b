"""Streams, consumers and permissions, derived from the services' declarations and from nothing else.

Only `medmesh topology apply`, with an identity of its own, creates them; a service has exactly the subjects it declared.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Protocol

from medmesh.bus.declarations import Handlers
from medmesh.bus.port import ConsumerSpec, StreamSpec, TopologyBus
from medmesh.contracts.audit import RecordMaintenance, record_subject
from medmesh.contracts.governance import CertificateRevoked, GetPolicy, ListRevocations, NodeRevoked, PolicyChanged
from medmesh.contracts.labels import DescribeObject, FindFile
from medmesh.contracts.message import Command, Event, Query


class Declared(Protocol):
    """The part of a `ServiceSpec` the topology is derived from."""

    @property
    def name(self) -> str: ...
    @property
    def handlers(self) -> Handlers: ...
    @property
    def emits(self) -> Any: ...
    @property
    def sends(self) -> Any: ...
    @property
    def asks(self) -> Any: ...
    @property
    def signals(self) -> Any: ...
    @property
    def audits_as(self) -> Any: ...
    @property
    def extra_subscriptions(self) -> Any: ...
    @property
    def commands(self) -> Any: ...


@dataclass(frozen=True, slots=True)
class Permissions:
    """What one identity may publish and subscribe to; `responses` lets it answer what it was asked, and nothing else."""

    identity: str
    publish: tuple[str, ...]
    subscribe: tuple[str, ...]
    responses: bool


EVERY_SERVICE_ASKS: tuple[type[Query], ...] = (ListRevocations, GetPolicy, DescribeObject, FindFile)
REVOCATIONS_HEARD: tuple[type[Event], ...] = (NodeRevoked, CertificateRevoked)
POLICY_HEARD: tuple[type[Event], ...] = (PolicyChanged,)
EVERY_SERVICE_HEARS: tuple[type[Event], ...] = (*REVOCATIONS_HEARD, *POLICY_HEARD)
"""Everybody keeps the list of revoked certificates and the site's policy (`service.followers`); what is heard is a hint, and comes past
the stream."""

OPERATOR = "operator"
OPERATOR_SENDS: tuple[type[Command], ...] = (RecordMaintenance,)
TOPOLOGY = "topology"


def streams(specs: Iterable[Declared]) -> list[StreamSpec]:
    """EVENTS for facts, one work queue a service with commands, DEAD for what the server gave up on."""
    work = [StreamSpec(f"WORK_{s.name}", (f"medmesh.cmd.{s.name}.>",), work=True) for s in specs if s.commands]
    dead = StreamSpec(
        "DEAD",
        ("$JS.EVENT.ADVISORY.CONSUMER.MAX_DELIVERIES.>", "$JS.EVENT.ADVISORY.CONSUMER.MSG_TERMINATED.>"),
        max_age_seconds=90 * 86_400,
    )
    return [StreamSpec("EVENTS", ("medmesh.evt.>",)), *work, dead]


def consumers(specs: Iterable[Declared]) -> list[ConsumerSpec]:
    """Every declared durable consumer."""
    return [consumer.spec() for spec in specs for consumer in spec.handlers.consumers]


async def apply(bus: TopologyBus, specs: Iterable[Declared], replicas: int = 1) -> None:
    """Create or update everything, streams on `replicas` servers each; safe to run again."""
    specs = list(specs)
    for stream in streams(specs):
        await bus.ensure_stream(replace(stream, replicas=replicas))
    for consumer in consumers(specs):
        await bus.ensure_consumer(consumer)


def permissions(spec: Declared) -> Permissions:
    """Exactly what this service declared, its own consumers, its own inbox, and its audit subject."""
    publish = {message.subject() for message in (*spec.emits, *spec.sends, *spec.asks)}
    publish |= {signal.subject() for signal in spec.signals}
    if spec.commands:
        publish.add(f"medmesh.evt.{spec.name}.operation.finished.v1")
    if spec.handlers.labelled:
        publish.add(f"medmesh.evt.{spec.name}.label.changed.v1")
    publish |= {record_subject(emitter) for emitter in (spec.name, *spec.audits_as)}
    subscribe = {f"_INBOX_{spec.name}.>"}
    for consumer in spec.handlers.consumers:
        where = f"{consumer.stream}.{consumer.durable}"
        publish |= {f"$JS.API.CONSUMER.MSG.NEXT.{where}", f"$JS.API.CONSUMER.INFO.{where}", f"$JS.ACK.{where}.>"}
    subscribe |= {responder.subject for responder in spec.handlers.responders}
    subscribe |= {f"medmesh.qry.{spec.name}.{name}.v1" for name in ("dead-letters", "replay-dead-letter")}
    publish |= {query.subject() for query in EVERY_SERVICE_ASKS}
    subscribe |= {event.subject() for event in EVERY_SERVICE_HEARS}
    subscribe |= {listener.signal.subject() for listener in spec.handlers.listeners}
    subscribe |= set(spec.extra_subscriptions)
    return Permissions(spec.name, tuple(sorted(publish)), tuple(sorted(subscribe)), responses=True)


def administrators() -> list[Permissions]:
    """The identity that applies the topology, and the operator's, which looks at dead letters and says what was done on the machine."""
    inbox = "_INBOX_{}.>"
    return [
        Permissions(
            TOPOLOGY,
            ("$JS.API.CONSUMER.CREATE.>", "$JS.API.CONSUMER.DURABLE.CREATE.>", "$JS.API.STREAM.CREATE.*", "$JS.API.STREAM.UPDATE.*"),
            (inbox.format(TOPOLOGY),),
            responses=False,
        ),
        Permissions(
            OPERATOR,
            (
                "medmesh.qry.*.dead-letters.v1",
                "medmesh.qry.*.replay-dead-letter.v1",
                *(command.subject() for command in OPERATOR_SENDS),
                "$JS.API.STREAM.INFO.*",
                "$JS.API.STREAM.MSG.GET.DEAD",
            ),
            (inbox.format(OPERATOR),),
            responses=False,
        ),
    ]
