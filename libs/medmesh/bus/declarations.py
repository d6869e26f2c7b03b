"""What a service declares about its messages: from these declarations come its consumers, its permissions, its
schema entries, its metrics and its tests.

    handlers = Handlers("federation")

    @handlers.on(ModelRegistered)                      # a fact of another service
    async def registered(event: Envelope[ModelRegistered], uow: UnitOfWork[Ports]) -> None: ...

    @handlers.on(CreateFederation)                     # a command; what it returns is the operation's result
    async def create(command: Envelope[CreateFederation], uow: UnitOfWork[Ports]) -> dict[str, Any]: ...

    @handlers.slow(ConvertModel)                       # minutes of work outside a transaction
    async def convert(command: Envelope[ConvertModel], work: Work[Ports]) -> dict[str, Any]: ...

    @handlers.answers(GetFederation)                   # a query
    async def get(query: Envelope[GetFederation], uow: UnitOfWork[Ports]) -> FederationView: ...

    @handlers.hears(HospitalAlive)                     # a signal; at most once, no transaction
    async def alive(signal: Envelope[HospitalAlive], ports: Ports) -> None: ...
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from medmesh.bus.port import ConsumerSpec
from medmesh.contracts.message import Command, Event, Message, Query, Signal

F = TypeVar("F", bound=Callable[..., Awaitable[Any]])

FAST_RETRY = (0.2, 1.0, 5.0, 15.0, 60.0)
SLOW_RETRY = (1.0, 5.0, 30.0)
FAST_SILENCE, SLOW_SILENCE = 2.0, 30.0
"""Seconds after which what a dead process held comes to the next one; a slow handler may also hold up its own loop for a while."""
FAST_SILENCES = 12
"""How many deaths a message may meet beside its tries: processes that die in a row for another reason do not make it a dead letter."""


@dataclass(frozen=True, slots=True)
class Consumer:
    """A declared handler of facts or commands."""

    service: str
    messages: tuple[type[Message], ...]
    durable: str
    handler: Callable[..., Awaitable[Any]]
    retry: tuple[float, ...]
    concurrency: int
    batch: int
    """How many messages may share one transaction; 1 gives each its own. What objects they name is looked up once: none may label one."""
    slow: bool
    before: Callable[..., Awaitable[Any]] | None = None
    """What is looked at before the transaction, of several messages at once: `(message, actor, look, ports)`, where `look` runs a prepared
    query. Its answer is the handler's `uow.ahead`; nothing may depend on it that the transaction does not look at again."""

    @property
    def stream(self) -> str:
        """The stream it reads."""
        return f"WORK_{self.service}" if issubclass(self.messages[0], Command) else "EVENTS"

    def spec(self) -> ConsumerSpec:
        """The durable consumer this handler needs."""
        # One at a time means one in flight: what was prefetched when a process dies comes again only after what follows it.
        ahead = 1 if self.slow or self.concurrency == self.batch == 1 else max(8, 2 * self.batch)
        return ConsumerSpec(
            stream=self.stream,
            durable=self.durable,
            subjects=tuple(message.subject() for message in self.messages),
            backoff=self.retry,
            ack_wait=SLOW_SILENCE if self.slow else FAST_SILENCE,
            silences=0 if self.slow else FAST_SILENCES,
            max_in_flight=self.concurrency * ahead,
        )


@dataclass(frozen=True, slots=True)
class Responder:
    """A declared answer to a query."""

    service: str
    query: type[Query]
    handler: Callable[..., Awaitable[Any]]

    @property
    def subject(self) -> str:
        """Where it is asked."""
        return self.query.subject().replace("*", self.service)


@dataclass(frozen=True, slots=True)
class Listener:
    """A declared ear for a signal."""

    signal: type[Signal]
    handler: Callable[..., Awaitable[Any]]


@dataclass
class Handlers:
    """The declarations of one service, collected by decorators."""

    service: str
    consumers: list[Consumer] = field(default_factory=list)
    responders: list[Responder] = field(default_factory=list)
    listeners: list[Listener] = field(default_factory=list)
    labelled: frozenset[str] = frozenset()
    """The kinds of objects this service owns that carry a security label (`medmesh.service.labels`)."""
    copied: frozenset[str] = frozenset()
    """Kinds of other services' objects of which it keeps copies with their labels."""
    facts: dict[str, Callable[..., Awaitable[Any]]] = field(default_factory=dict)
    """By kind of object: what decides about it beside its label."""

    def knows(self, kind: str) -> Callable[[F], F]:
        """Declare how objects of a kind are looked up: `(id, uow) -> medmesh.security.access.Object`, or None when there is none."""

        def declare(look: F) -> F:
            self.facts[kind] = look
            return look

        return declare

    def on(
        self,
        *messages: type[Event] | type[Command],
        durable: str | None = None,
        retry: tuple[float, ...] = FAST_RETRY,
        concurrency: int = 4,
        batch: int = 1,
        before: Callable[..., Awaitable[Any]] | None = None,
    ) -> Callable[[F], F]:
        """Handle facts or commands, each in one transaction, or up to `batch` of those that wait together. Use `concurrency=1` where one
        message must follow another."""
        return self._consumer(messages, durable, retry, concurrency, batch, slow=False, before=before)

    def slow(
        self,
        message: type[Event] | type[Command],
        *,
        durable: str | None = None,
        retry: tuple[float, ...] = SLOW_RETRY,
        concurrency: int = 1,
    ) -> Callable[[F], F]:
        """Handle messages that take long, outside a transaction; see `medmesh.service.dispatch.Work`."""
        return self._consumer((message,), durable, retry, concurrency, 1, slow=True)

    def _consumer(
        self,
        messages: tuple[type[Message], ...],
        durable: str | None,
        retry: tuple[float, ...],
        concurrency: int,
        batch: int,
        *,
        slow: bool,
        before: Callable[..., Awaitable[Any]] | None = None,
    ) -> Callable[[F], F]:
        def declare(handler: F) -> F:
            name = f"{self.service}-{durable or handler.__name__.replace('_', '-')}"
            if any(consumer.durable == name for consumer in self.consumers):
                raise ValueError(f"two handlers are called {name}")
            self.consumers.append(Consumer(self.service, messages, name, handler, retry, concurrency, batch, slow, before))
            return handler

        return declare

    def answers(self, query: type[Query]) -> Callable[[F], F]:
        """Answer a query."""

        def declare(handler: F) -> F:
            self.responders.append(Responder(self.service, query, handler))
            return handler

        return declare

    def hears(self, signal: type[Signal]) -> Callable[[F], F]:
        """Hear a signal of the hospitals."""

        def declare(handler: F) -> F:
            self.listeners.append(Listener(signal, handler))
            return handler

        return declare
