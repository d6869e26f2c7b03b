"""From a delivery to a committed effect: decode, verify the actor, begin, inbox, handler, outbox, audit, commit, acknowledge.

A Problem is permanent. A command's Problem is its answer (`OperationFinished` with the problem, and an audit record of the
refusal); a fact's is a dead letter. Anything else is transient: the message comes again after the declared back-off and is
dead after the last.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from time import perf_counter
from typing import Any, Generic, TypeVar

from opentelemetry.trace import SpanKind

from medmesh.bus.declarations import Consumer
from medmesh.bus.port import Delivery
from medmesh.contracts.message import Command, Envelope, Message, decode
from medmesh.errors import Problem
from medmesh.security.roles import Decision
from medmesh.security.tokens import Actor, TrustBundle
from medmesh.service.answers import identify, must_be_accounted, refused, require, succeeded
from medmesh.service.dead import bury
from medmesh.service.emission import Emission
from medmesh.service.guard import Access, Guard, Refusal, finished
from medmesh.store.database import Database
from medmesh.store.unit import AuditEntry, Context, UnitOfWork
from medmesh.telemetry import current_traceparent, log, metrics, span

Ports = TypeVar("Ports")


@dataclass
class Work(Generic[Ports]):
    """What a slow handler gets: transactions of its own on the way, and exactly one that finishes the message."""

    database: Database
    context: Context
    ports: Ports
    consumer: str
    event_id: str
    finished: bool = False
    result: dict[str, Any] | None = field(default=None)
    accounted: int = 0
    access: Access | None = None
    same: bool = False

    @property
    def actor(self) -> Actor:
        """The verified actor of the message."""
        actor: Actor = self.context.actor
        return actor

    def unchanged(self) -> None:
        """As `UnitOfWork.unchanged`, where the message is finished without a transaction of its handler's."""
        self.same = True
        self.accounted += 1

    @asynccontextmanager
    async def unit(self) -> AsyncIterator[UnitOfWork[Ports]]:
        """A transaction on the way; what it does must be safe to do again."""
        async with self.database.unit(self.context, self.ports) as uow:
            uow.access = self.access
            yield uow
        self.accounted += uow.accounted
        self.same |= uow.same

    @asynccontextmanager
    async def finish(self) -> AsyncIterator[UnitOfWork[Ports]]:
        """The last transaction: it marks the message as handled together with its effect."""
        async with self.database.unit(self.context, self.ports) as uow:
            if not await uow.journal.remember(self.consumer, self.event_id, uow.now):
                raise _Duplicate
            uow.access = self.access
            yield uow
            if isinstance(self.context.cause, Envelope) and isinstance(self.context.cause.data, Command):
                must_be_accounted(self.context, self.accounted + uow.accounted)
                if self.access is not None:
                    finished(self.context.cause.data, self.access, self.same or uow.same)
                uow.emit(succeeded(self.context, self.result))
        self.finished = True


class _Duplicate(Exception):
    """The message was handled before."""


@dataclass
class Dispatcher:
    """Runs one declared consumer. `ports` is what its handlers see as `uow.ports`."""

    consumer: Consumer
    database: Database
    trust: Callable[[], TrustBundle]
    ports: Any
    guard: Guard
    emission: Emission = field(default_factory=Emission)

    def __post_init__(self) -> None:
        self._types = {message.subject(): message for message in self.consumer.messages}
        labels = (self.consumer.service, self.consumer.durable)
        self._seconds = metrics.HANDLER_SECONDS.labels(*labels)
        self._age = metrics.AGE_SECONDS.labels(*labels)
        self._outcomes = {
            (subject, outcome): metrics.CONSUMED.labels(*labels, message.TYPE, outcome)
            for subject, message in self._types.items()
            for outcome in ("ok", "retry", "dead", "duplicate", "refused")
        }
        self._wildcard = next((m for m in self.consumer.messages if "*" in m.subject()), None)
        self._batcher = _Batcher(self) if self.consumer.batch > 1 else None

    def _type(self, subject: str) -> type[Message]:
        found = self._types.get(subject) or self._wildcard
        if found is None:
            raise Problem("message.invalid", type=subject, where="not a type this consumer declared")
        return found

    def _count(self, subject: str, outcome: str) -> None:
        key = (subject if subject in self._types else (self._wildcard.subject() if self._wildcard else ""), outcome)
        if counter := self._outcomes.get(key):
            counter.inc()

    async def deliver(self, delivery: Delivery) -> None:
        """Handle one delivery and say so to the bus; never raises but for cancellation."""
        if self._batcher is not None and delivery.attempt == 1:
            await self._batcher.add(delivery)
        else:
            await self.single(delivery)

    async def single(self, delivery: Delivery) -> None:
        """One message in a transaction of its own."""
        started = perf_counter()
        message: Envelope[Any] | None = None
        try:
            message = decode(delivery.body, self._type(delivery.subject))
            self._age.observe(max(0.0, (datetime.now(UTC) - message.time).total_seconds()))
            with self._span(message, again=delivery.attempt > 1):
                outcome = await self._insist(message, delivery)
            await delivery.ack()
        except asyncio.CancelledError:
            raise
        except Problem as problem:
            outcome = await self._give_up(delivery, message, problem)
        except Exception as error:
            outcome = await self._again(delivery, message, error)
        self._seconds.observe(perf_counter() - started)
        self._count(delivery.subject, outcome)

    def _span(self, message: Envelope[Any], *, again: bool = False) -> AbstractContextManager[None]:
        attributes = {
            "messaging.system": "nats",
            "messaging.destination.name": message.data.subject(),
            "messaging.message.id": message.id,
            "messaging.consumer.group.name": self.consumer.durable,
        }
        name = f"process {message.data.subject()}"
        return span(name, parent=message.traceparent, kind=SpanKind.CONSUMER, link=again, attributes=attributes)

    async def _insist(self, message: Envelope[Any], delivery: Delivery) -> str:
        """Handle a message; what fails because the database is away is handled when it is back, and is not held against the message."""
        while True:
            try:
                return await self._handle(message, delivery)
            except Problem:
                raise
            except Exception as error:
                if not await self._was_away():
                    raise
                log("handler.waited", level=logging.WARNING, error=error, consumer=self.consumer.durable, type=message.data.TYPE)

    async def _was_away(self) -> bool:
        """Return when the database answers; whether it did not at once."""
        away = False
        while True:
            try:
                async with asyncio.timeout(5):
                    await self.database.ready()
                return away
            except Exception:
                away = True
                await asyncio.sleep(0.5)

    async def _handle(self, message: Envelope[Any], delivery: Delivery) -> str:
        command = isinstance(message.data, Command)
        trace = current_traceparent() or message.traceparent
        context = Context(self.consumer.service, message, None, message.actor, trace, delivery.body)
        try:
            actor, decision = self._identify(message)
            # Before the refusal, so that its record says who was refused, and by which rule.
            context = replace(context, actor=actor, decision=decision)
            self.admit(message, actor, decision)
            if self.consumer.slow:
                return await self._slow(message, context)
            ahead = await self._before(message, actor)
            async with self.database.unit(context, self.ports) as uow:
                uow.ahead = ahead
                if not await uow.journal.remember(self.consumer.durable, message.id, uow.now):
                    return "duplicate"
                access = await self._let_in(message, uow)
                result = await self.consumer.handler(message, uow)
                if command:
                    must_be_accounted(uow.context, uow.accounted)
                    finished(message.data, access, uow.same)
                    uow.emit(succeeded(uow.context, result))
            return "ok"
        except _Duplicate:
            return "duplicate"
        except Problem as problem:
            if not command:
                raise
            await self._refuse(message, context, problem)
            return "refused"

    async def _before(self, message: Envelope[Any], actor: Actor | None) -> Any:
        before = self.consumer.before
        return None if before is None else await before(message, actor, self.database.look, self.ports)

    def _identify(self, message: Envelope[Any]) -> tuple[Actor | None, Decision | None]:
        if isinstance(message.data, Command):
            return identify(message, self.trust(), message.data.ACTION, self.guard.rules())
        return None, None

    async def _let_in(self, message: Envelope[Any], uow: UnitOfWork[Any]) -> Access:
        """The guard's decision about the objects of a message, in the handler's own transaction. Raises `Refusal`."""
        access = self.guard.open(uow.actor, getattr(message.data, "ACTION", None), message.time)
        uow.access = access
        if (counts := await self.guard.admit(access, message.data, uow)) is not None:
            uow.context = replace(uow.context, decision=counts)
        return access

    def admit(self, message: Envelope[Any], actor: Actor | None, decision: Decision | None) -> None:
        """Raises `Problem` for a command that is not allowed, or whose record could not reach the log now."""
        if isinstance(message.data, Command):
            require(actor, decision, message.data.ACTION)
            self.emission.check(message.data.ACTION, emergency=actor is not None and actor.emergency is not None)

    async def _slow(self, message: Envelope[Any], context: Context) -> str:
        async with self.database.unit(context, self.ports) as uow:
            access = await self._let_in(message, uow)
            context = uow.context
        work: Work[Any] = Work(self.database, context, self.ports, self.consumer.durable, message.id, access=access)
        work.result = await self.consumer.handler(message, work)
        if not work.finished:
            async with work.finish():
                pass
        return "ok"

    async def _refuse(self, message: Envelope[Any], context: Context, problem: Problem) -> None:
        """Answer a command with its problem: nothing of the handler's transaction is left, only the refusal is kept."""
        log("command.refused", type=message.data.TYPE, operation=message.id, code=problem.code)
        entry = AuditEntry(verb=message.data.ACTION, action="E", outcome=4, why=problem.code)
        if isinstance(problem, Refusal):
            entry, context = problem.entry, replace(context, decision=problem.decision)
        async with self.database.unit(context, self.ports) as uow:
            if await uow.journal.remember(self.consumer.durable, message.id, uow.now):
                uow.emit(refused(context, problem))
                uow.audit(entry)

    async def _give_up(self, delivery: Delivery, message: Envelope[Any] | None, problem: Problem) -> str:
        try:
            await bury(self.database, self.consumer, delivery, message, problem)
        except Exception as error:
            return await self._again(delivery, message, error)
        await delivery.terminate(problem.code)
        return "dead"

    async def _again(self, delivery: Delivery, message: Envelope[Any] | None, error: Exception) -> str:
        attempt = delivery.attempt
        name = message.data.TYPE if message else delivery.subject
        log("handler.failed", level=logging.WARNING, error=error, consumer=self.consumer.durable, type=name, attempt=attempt)
        if attempt <= len(self.consumer.retry):
            await delivery.retry(self.consumer.retry[attempt - 1])
            return "retry"
        problem = Problem("bus.poison", attempts=attempt, error=type(error).__name__)
        try:
            if message is not None and isinstance(message.data, Command):
                context = Context(self.consumer.service, message, None, message.actor, message.traceparent)
                await self._refuse(message, context, problem)
            await bury(self.database, self.consumer, delivery, message, problem)
        except Exception as failure:
            # The database is away: the server's advisory in DEAD still tells of the message.
            log("dead.unwritten", level=logging.ERROR, error=failure, consumer=self.consumer.durable)
        await delivery.terminate(problem.code)
        return "dead"


class _Batcher:
    """Up to `batch` messages in one transaction; when one of them fails nothing of it is kept and each is handled alone."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self._waiting: list[tuple[Delivery, asyncio.Future[None]]] = []
        self._running = False

    async def add(self, delivery: Delivery) -> None:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((delivery, done))
        if not self._running:
            self._running = True
            try:
                await asyncio.sleep(0)  # those that came in the same moment wait to add themselves
                while self._waiting:
                    size = self._dispatcher.consumer.batch
                    batch, self._waiting = self._waiting[:size], self._waiting[size:]
                    await self._run([delivery for delivery, _ in batch])
                    for _, future in batch:
                        future.set_result(None)
            finally:
                self._running = False
        await done

    async def _run(self, deliveries: Sequence[Delivery]) -> None:
        dispatcher, started = self._dispatcher, perf_counter()
        try:
            new = await self._together(deliveries)
        except Exception:
            # Whose fault it was shows when each is handled alone, and there it is logged.
            for delivery in deliveries:
                await dispatcher.single(delivery)
            return
        for delivery, is_new in zip(deliveries, new, strict=True):
            await delivery.ack()
            dispatcher._count(delivery.subject, "ok" if is_new else "duplicate")
        dispatcher._seconds.observe(perf_counter() - started)

    async def _together(self, deliveries: Sequence[Delivery]) -> list[bool]:
        """One transaction; answers which messages were new. What refuses a command is raised like any other failure."""
        dispatcher, service = self._dispatcher, self._dispatcher.consumer.service
        messages = [decode(delivery.body, dispatcher._type(delivery.subject)) for delivery in deliveries]
        known = [dispatcher._identify(message) for message in messages]
        for message, (actor, decision) in zip(messages, known, strict=True):
            dispatcher.admit(message, actor, decision)
        ahead_of = [dispatcher._before(message, actor) for message, (actor, _) in zip(messages, known, strict=True)]
        found = await asyncio.gather(*ahead_of) if len(ahead_of) > 1 else [await ahead_of[0]]
        new: list[bool] = []
        async with dispatcher.database.unit(Context(service), dispatcher.ports) as uow:
            left = await uow.journal.remember_all(dispatcher.consumer.durable, [message.id for message in messages], uow.now)
            for message, delivery, (actor, decision), ahead in zip(messages, deliveries, known, found, strict=True):
                new.append(message.id in left)
                if not new[-1]:
                    continue
                left.discard(message.id)  # it may be here twice
                dispatcher._age.observe(max(0.0, (uow.now - message.time).total_seconds()))
                before, uow.same, uow.ahead = uow.accounted, False, ahead
                with dispatcher._span(message):
                    trace = current_traceparent() or message.traceparent
                    uow.context = Context(service, message, actor, message.actor, trace, delivery.body, decision)
                    access = await dispatcher._let_in(message, uow)
                    result = await dispatcher.consumer.handler(message, uow)
                if isinstance(message.data, Command):
                    must_be_accounted(uow.context, uow.accounted - before)
                    finished(message.data, access, uow.same)
                    uow.emit(succeeded(uow.context, result))
        return new
