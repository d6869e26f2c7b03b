"""A running service: everything its declaration asks for, started in order and drained in reverse."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, TypeVar

from opentelemetry.trace import SpanKind

import medmesh
from medmesh import telemetry
from medmesh.bus.declarations import Listener, Responder
from medmesh.bus.nats_bus import NatsBus
from medmesh.bus.port import Bus, Subscription
from medmesh.bus.topology import POLICY_HEARD, REVOCATIONS_HEARD
from medmesh.contracts.message import Envelope, Exchange, Query, Record, Signal, decode, encode, envelope
from medmesh.contracts.system import DeadLetters, ListDeadLetters, ReplayDeadLetter, Replayed
from medmesh.errors import Problem
from medmesh.security.keys import Identity
from medmesh.security.roles import Decision
from medmesh.security.tokens import Actor, service_token
from medmesh.service import dead
from medmesh.service.answers import identify, must_be_accounted, require
from medmesh.service.bearer import Bearer
from medmesh.service.dispatch import Dispatcher
from medmesh.service.doorstep import Doorstep
from medmesh.service.emission import Emission
from medmesh.service.followers import Follower
from medmesh.service.gathering import Gathering
from medmesh.service.guard import Guard, Refusal, finished, with_label
from medmesh.service.listener import listen
from medmesh.service.policies import Policies
from medmesh.service.programs import TICK_SECONDS, Verification
from medmesh.service.proofs import EVERY_SECONDS, Proofs
from medmesh.service.recording import recorder
from medmesh.service.relays import AuditRelay, OutboxRelay
from medmesh.service.roster import beside
from medmesh.service.settings import ServiceSettings
from medmesh.service.spec import ServiceSpec
from medmesh.service.trust import Trust
from medmesh.store.database import Database
from medmesh.store.unit import AuditEntry, Context, Entity, UnitOfWork
from medmesh.tasks import end
from medmesh.telemetry import current_traceparent, log, metrics, span

R = TypeVar("R", bound=Record)

KEEP_DAYS = 30
_LONGEST_PAUSE = 10.0


class Runtime:
    """What a service's `open` builds its ports from."""

    def __init__(
        self,
        spec: ServiceSpec,
        settings: ServiceSettings,
        bus: Bus,
        database: Database,
        identity: Identity,
        trust: Trust,
        policies: Policies,
    ) -> None:
        self.spec = spec
        self.settings = settings
        self.bus = bus
        self.database = database
        self.identity = identity
        self.trust = trust
        self.roster = beside(settings.trust)
        """Whose own signatures count. Called, it answers the newest version or raises `Problem`."""
        self.policies = policies
        self.guard = Guard(spec.handlers, lambda: policies.rules, trust, lambda query: self.ask(query, query.Reply), self.roster)
        self.outbox = OutboxRelay(service=spec.name, database=database, bus=bus)
        self.emission = Emission(spec.name, settings.audit_lag_seconds, settings.audit_quota_bytes, settings.audit_quota_days * 86_400)
        self.audits = AuditRelay(service=spec.name, database=database, bus=bus, emission=self.emission)
        self.doorstep = Doorstep(self.unit, settings.administrator_networks, settings.administrators_elsewhere == "refuse")
        self.gathering = Gathering(self.unit)
        self.proofs = Proofs(self.database)
        self.bearer = Bearer(trust, self.doorstep, spec.name, self.proofs, unbound=settings.unbound_tokens)
        self.programs = Verification(settings.trust, self.roster, self.unit, required=settings.require_programs)
        self.ports: Any = None
        self._tasks: list[asyncio.Task[None]] = []
        self.checks: dict[str, Callable[[], Awaitable[None]]] = {"bus": bus.ready, "database": database.ready}

    def token(self) -> str:
        """The signed token of this service."""
        return service_token(self.identity, self.spec.name)

    def context(self, *, actor: Actor | None = None, token: str | None = None, decision: Decision | None = None) -> Context:
        """The context of a transaction that no message caused: a timer, a start, an HTTP request."""
        return Context(self.spec.name, None, actor, token or self.token(), current_traceparent(), decision=decision)

    def unit(self, context: Context | None = None) -> AbstractAsyncContextManager[UnitOfWork[Any]]:
        """A transaction on this service's database."""
        return self.database.unit(context or self.context(), self.ports)

    async def ask(self, query: Query, reply: type[R], *, token: str | None = None, timeout: float = 10.0) -> R:
        """Ask another service on behalf of `token` (this service by default). Raises the `Problem` it answers with."""
        with span(f"ask {query.TYPE}", kind=SpanKind.CLIENT):
            asked = envelope(query, source=self.spec.name, actor=token or self.token(), traceparent=current_traceparent())
            try:
                answer = await self.bus.request(query.address(), encode(asked), timeout=timeout)
            except TimeoutError:
                raise Problem("bus.no_responder", subject=query.address()) from None
        return unwrap(answer, reply)

    async def signal(self, signal: Signal) -> None:
        """Tell whoever listens."""
        await self.bus.signal(signal.address(), encode(envelope(signal, source=self.spec.name)))

    def background(self, run: Callable[[], Awaitable[None]], name: str, *, every: float | None = None) -> None:
        """Keep `run` going, restarted with back-off when it fails; with `every`, called again after that many seconds."""

        async def keep() -> None:
            failures = 0
            while True:
                began = time.monotonic()
                try:
                    await run()
                    failures = 0
                except asyncio.CancelledError:
                    raise
                except Exception as error:
                    # One that went well for long does not pay for what ended it a month ago.
                    failures = 1 if time.monotonic() - began > _LONGEST_PAUSE else failures + 1
                    log("background.failed", level=40, error=error, task=name, failures=failures)
                    await asyncio.sleep(min(0.2 * 2**failures, _LONGEST_PAUSE))
                if every is None and failures == 0:
                    return
                await asyncio.sleep(every or 0)

        self._tasks.append(asyncio.create_task(keep(), name=name))

    async def ready(self) -> dict[str, str]:
        """What is not ready, by name; empty when everything is."""
        failures = {}
        for name, check in self.checks.items():
            try:
                async with asyncio.timeout(3):
                    await check()
            except Exception as error:
                failures[name] = str(error) if isinstance(error, Problem) else type(error).__name__
        return failures

    async def _prune(self) -> None:
        pending, oldest = await self.database.outbox_backlog()
        metrics.OUTBOX_PENDING.labels(self.spec.name).set(pending)
        metrics.OUTBOX_OLDEST.labels(self.spec.name).set(oldest)
        await self.database.prune(datetime.now(UTC) - timedelta(days=KEEP_DAYS))

    async def cancel_background(self) -> None:
        """End the background tasks."""
        await end(*self._tasks)


def unwrap(answer: bytes, reply: type[R]) -> R:
    """The reply in an answer's bytes; raises the problem that stands there instead."""
    if answer.startswith(b"!"):
        import json

        raise Problem.from_document(json.loads(answer[1:]))
    return reply.model_validate_json(answer, extra="ignore")


def _responder(runtime: Runtime, declared: Responder) -> Callable[[bytes], Awaitable[bytes]]:
    name = declared.query.TYPE
    counters = {o: metrics.ANSWERED.labels(runtime.spec.name, name, o) for o in ("ok", "refused", "failed")}

    async def answer(body: bytes) -> bytes:
        query: Envelope[Any] | None = None
        actor: Actor | None = None
        decision: Decision | None = None
        try:
            query = decode(body, declared.query)
            with span(f"answer {name}", parent=query.traceparent, kind=SpanKind.SERVER):
                actor, decision = identify(query, runtime.trust(), declared.query.ACTION, runtime.policies.rules)
                require(actor, decision, declared.query.ACTION)
                runtime.emission.check(declared.query.ACTION, emergency=actor is not None and actor.emergency is not None)
                context = Context(runtime.spec.name, query, actor, query.actor, current_traceparent(), decision=decision)
                async with runtime.database.unit(context, runtime.ports) as uow:
                    access = uow.access = runtime.guard.open(actor, declared.query.ACTION, query.time)
                    if (counts := await runtime.guard.admit(access, query.data, uow)) is not None:
                        uow.context = replace(context, decision=counts)
                    result = await declared.handler(query, uow)
                    if isinstance(query.data, Exchange):
                        must_be_accounted(context, uow.accounted)
                    finished(query.data, access, uow.same)
            if isinstance(result, Problem):  # answered, not raised: what the handler wrote stays, its record of the refusal too
                counters["refused"].inc()
                return _problem(result)
            counters["ok"].inc()
            result = with_label(result, access)
            return bytes(result.__pydantic_serializer__.to_json(result))
        except Problem as problem:
            counters["refused"].inc()
            try:
                if query is not None:
                    await _record_refusal(runtime, query, actor, decision, problem)
            except Exception as error:
                # Nothing was done and nothing is told: a refusal that cannot be recorded is no answer yet.
                log("query.failed", level=40, error=error, query=name)
                return _problem(Problem("query.failed", query=name))
            return _problem(problem)
        except Exception as error:
            counters["failed"].inc()
            log("query.failed", level=40, error=error, query=name)
            return _problem(Problem("query.failed", query=name))

    return answer


def _problem(problem: Problem) -> bytes:
    import json

    return b"!" + json.dumps(problem.document(), ensure_ascii=False).encode()


async def _record_refusal(runtime: Runtime, query: Envelope[Any], actor: Actor | None, decision: Decision | None, problem: Problem) -> None:
    """Refused access, and secrets that did not fit: what was asked for is recorded although nothing was done."""
    denied = problem.code in ("access.denied", "security.step_up")
    if not denied and not isinstance(query.data, Exchange) and not isinstance(problem, Refusal):
        return
    if isinstance(problem, Refusal):
        decision = problem.decision
    context = Context(runtime.spec.name, query, actor, query.actor, current_traceparent(), decision=decision)
    asked = query.data.ACTION or query.data.TYPE.rpartition(".")[0]  # a command's refusal is named by its action, too
    async with runtime.database.unit(context, runtime.ports) as uow:
        if isinstance(problem, Refusal):
            uow.audit(problem.entry)
        elif denied:
            uow.audit(AuditEntry("access.denied", "E", outcome=8, why=problem.code, detail={"action": asked}))
        else:
            uow.audit(AuditEntry(asked, "E", outcome=4, why=problem.code))


def _listener(runtime: Runtime, declared: Listener) -> Callable[[str, bytes], Awaitable[None]]:
    async def heard(_subject: str, body: bytes) -> None:
        try:
            await declared.handler(decode(body, declared.signal), runtime.ports)
        except Exception as error:
            log("signal.failed", level=30, error=error, signal=declared.signal.TYPE)

    return heard


def _system_responders(runtime: Runtime, dispatchers: dict[str, Dispatcher]) -> list[Responder]:
    """Every service answers for its own dead letters."""

    async def list_letters(query: Any, uow: UnitOfWork[Any]) -> DeadLetters:
        if query.data.event:  # with its body, which is read by a person
            uow.audit(AuditEntry("dead.read", "R", entities=(Entity("message", query.data.event),)))
        return await dead.listed(query.data, uow)

    async def replay(query: Any, uow: UnitOfWork[Any]) -> Replayed:
        wanted: ReplayDeadLetter = query.data
        found = await dead.exhume(runtime.database, runtime.spec.name, wanted.consumer, wanted.event)
        dispatcher = dispatchers.get(wanted.consumer)
        if found is None or dispatcher is None:
            raise Problem("request.not_found", kind="dead letter", id=wanted.event)
        await dispatcher.single(found)
        if found.handled:
            await dead.forget(runtime.database, runtime.spec.name, wanted.consumer, wanted.event)
        about = (Entity("message", wanted.event),)
        outcome, why = (0, "") if found.handled else (4, "bus.poison")
        uow.audit(AuditEntry("dead.replay", "E", outcome, why, about, detail={"consumer": wanted.consumer}))
        return Replayed(replayed=found.handled)

    return [Responder(runtime.spec.name, ListDeadLetters, list_letters), Responder(runtime.spec.name, ReplayDeadLetter, replay)]


@asynccontextmanager
async def running(
    spec: ServiceSpec, settings: ServiceSettings, *, bus: Bus | None = None, store: Callable[..., Database] | None = None
) -> AsyncIterator[Runtime]:
    """Start a service and stop it when the block ends: first it takes nothing new, then it finishes, then it leaves. `bus` and `store`
    (which gets what `Database` does) stand in for the servers of the settings; whoever gives the store made its tables."""
    identity = Identity.load(settings.identity)
    trust = Trust(settings.trust, settings.state)
    policies = Policies(settings.state)
    instance = f"{socket.gethostname()}-{os.getpid()}"
    database = (store or _postgres(spec, settings))(
        emits=spec.writes,
        recorder=recorder(service=spec.name, instance=instance, organisation=settings.platform, version=_version(), bundle=policies.digest),
    )
    async with AsyncExitStack() as stack:
        stack.push_async_callback(database.close)
        await database.waited()
        if bus is None:
            bus = await NatsBus.connect(settings.nats_url, name=spec.name, seed=settings.identity)
            stack.push_async_callback(bus.close)
            bus.refused = lambda operation, subject: _refused(spec.name, operation, subject)
        runtime = Runtime(spec, settings, bus, database, identity, trust, policies)
        database.on_sent, database.on_audited = runtime.outbox.hand, runtime.audits.wake
        runtime.outbox.start()
        stack.push_async_callback(runtime.outbox.stop)
        runtime.audits.start()
        stack.push_async_callback(runtime.audits.stop)
        stack.push_async_callback(runtime.cancel_background)
        runtime.background(runtime._prune, "housekeeping", every=15)
        runtime.background(runtime.doorstep.tell, "doorstep", every=5)
        if "proofs_seen" in spec.metadata.tables:
            runtime.background(runtime.proofs.forget, "proofs", every=EVERY_SECONDS)
        await runtime.programs.admit()
        runtime.background(runtime.programs.tick, "programs", every=TICK_SECONDS)
        runtime.ports = await stack.enter_async_context(spec.open(runtime))

        taken: list[Subscription] = []

        async def stop_taking() -> None:
            await asyncio.gather(*(subscription.stop() for subscription in taken))

        stack.push_async_callback(stop_taking)
        dispatchers = {
            c.durable: Dispatcher(c, database, trust, runtime.ports, runtime.guard, runtime.emission) for c in spec.handlers.consumers
        }
        for declared in (*spec.handlers.responders, *_system_responders(runtime, dispatchers)):
            taken.append(await bus.serve(declared.subject, _responder(runtime, declared), queue=spec.name))
        for listener in spec.handlers.listeners:
            taken.append(await bus.listen(listener.signal.subject(), _listener(runtime, listener)))
        follows = (
            (Follower("trust", lambda: trust.renew(runtime.ask)), REVOCATIONS_HEARD),
            (Follower("policy", lambda: policies.renew(runtime.ask)), POLICY_HEARD),
        )
        for follower, heard in follows:
            for event in heard:
                taken.append(await bus.listen(event.subject(), follower.heard))
            runtime.background(follower.run, "follower")
        for dispatcher in dispatchers.values():
            consumer = dispatcher.consumer
            taken.append(await bus.consume(consumer.spec(), dispatcher.deliver, concurrency=max(consumer.concurrency, consumer.batch)))
        if not spec.http:
            server = await listen(settings.host, settings.port, runtime.ready)
            stack.callback(server.close)
        log("service.started", instance=instance)
        yield runtime
        log("service.stopping")


def _postgres(spec: ServiceSpec, settings: ServiceSettings) -> Callable[..., Database]:
    url, name = settings.database_url, f"medmesh-{spec.name}"
    return partial(Database.postgres, url, password=settings.password(), application=name, pool_size=settings.pool_size)


def _refused(service: str, operation: str, subject: str) -> None:
    metrics.REFUSED.labels(service).inc()
    log("bus.permission_denied", level=40, operation=operation, subject=subject)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    with suppress(PackageNotFoundError):
        return version(medmesh.__name__)
    return "0"


async def run(spec: ServiceSpec, settings: ServiceSettings) -> None:
    """Run until SIGTERM or SIGINT; a second one ends at once."""
    import signal

    telemetry.start(
        spec.name, folder=settings.telemetry, otlp_endpoint=settings.otlp_endpoint, level=settings.log_level, ratio=settings.trace_ratio
    )
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lambda: os._exit(1) if stop.is_set() else stop.set())
    async with running(spec, settings):
        gc.collect()
        gc.freeze()  # what a start leaves behind stays: looking through it for cycles would hold everything up for a tenth of a second
        await stop.wait()
    telemetry.traces.shutdown()
