"""The bus: how fast it consumes, with and without a transaction, and how soon an idle one answers.

Floors and peers are in `tests.bench.raw`; the server writes every message to disk before it acknowledges, as in production.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

import asyncpg
import uvloop

from medmesh import telemetry
from medmesh.bus.nats_bus import NatsBus
from medmesh.bus.port import ConsumerSpec, Delivery, StreamSpec
from medmesh.bus.topology import apply
from medmesh.contracts.message import decode, encode, envelope
from medmesh.embedded.testing import RunningServers, servers
from medmesh.service.runtime import Runtime, running
from medmesh.service.settings import ServiceSettings
from tests.bench import raw
from tests.bench.common import Measure, medians
from tests.bench.service import BATCH, NAME, SERVICE, Answer, Ask, Happened, HappenedOften

MESSAGES, BYTES = 20_000, 512
EVENTS, OFTEN = 1000, 3000
IDLE, REQUESTS = 100, 1000
PADDING = "x" * 180


@dataclass
class Bench:
    """The servers and what must differ between repetitions."""

    servers: RunningServers
    settings: ServiceSettings
    bus: NatsBus
    numbers: itertools.count[int] = field(default_factory=itertools.count)

    @property
    def url(self) -> str:
        """The NATS server's."""
        return self.servers.nats_url

    def name(self, kind: str) -> str:
        """A name nobody had yet."""
        return f"{kind}{next(self.numbers)}"

    async def consumer(self, stream: str, subject: str, **options: int) -> ConsumerSpec:
        """A new durable consumer from the stream's beginning."""
        spec = ConsumerSpec(stream=stream, durable=self.name("d"), subjects=(subject,), **options)  # type: ignore[arg-type]
        await self.bus.ensure_consumer(spec)
        return spec

    @asynccontextmanager
    async def service(self) -> AsyncIterator[Runtime]:
        """The service with everything that runs in a real one."""
        async with running(SERVICE, self.settings) as runtime:
            yield runtime


def measure(names: Sequence[str] = ()) -> list[Measure]:
    """Run the area under the loop that services run under."""
    return uvloop.run(_measure(names))


async def _measure(names: Sequence[str]) -> list[Measure]:
    cases = {
        "bus.consume": consume,
        "bus.consume_tx": consume_tx,
        "bus.consume_tx_batch": consume_tx_batch,
        "bus.age_p50": age,
        "bus.request_p50": request,
    }
    measures: list[Measure] = []
    with tempfile.TemporaryDirectory(prefix="medmesh-bench-") as place:
        folder = Path(place)
        folder.chmod(0o711)
        telemetry.start("bench", folder=folder / "telemetry", level="warning")
        async with servers(folder / "servers") as up:
            bus = await NatsBus.connect(up.nats_url, name="bench-driver")
            bench = Bench(up, await prepare(up, folder), bus)
            await apply(bus, [SERVICE])
            for name, case in cases.items():
                if not names or name in names:
                    print(f"{name} ...", file=sys.stderr, flush=True)
                    measures += await case(bench)
            await bus.close()
        telemetry.traces.shutdown()
    return measures


async def prepare(up: RunningServers, folder: Path) -> ServiceSettings:
    """The service's database and identity, in a folder only we enter."""
    from tests.bench.service import prepared

    private = folder / "private"
    private.mkdir(mode=0o700)
    return await prepared(up, private)


# --- throughput -----------------------------------------------------------------------------------------------------


async def consume(bench: Bench) -> list[Measure]:
    """Messages a second through `NatsBus.consume`, each acknowledged, none decoded."""
    await bench.bus.ensure_stream(StreamSpec("RAW", ("raw.>",)))
    await raw.fill(bench.url, "raw.x", [b"x" * BYTES] * MESSAGES)

    async def floor() -> float:
        return await raw.continuous(bench.url, "RAW", (await bench.consumer("RAW", "raw.x", max_in_flight=1024)).durable, MESSAGES)

    async def ours() -> float:
        spec, got, done = await bench.consumer("RAW", "raw.x"), 0, asyncio.Event()

        async def deliver(delivery: Delivery) -> None:
            nonlocal got
            await delivery.ack()
            got += 1
            if got == MESSAGES:
                done.set()

        bus = await NatsBus.connect(bench.url, name="bench-consumer")
        began = perf_counter()
        subscription = await bus.consume(spec, deliver)
        await done.wait()
        await bus.ready()
        seconds = perf_counter() - began
        await subscription.stop()
        await bus.close()
        return MESSAGES / seconds

    async def fetch() -> float:
        return await raw.fetched(bench.url, "RAW", (await bench.consumer("RAW", "raw.x", max_in_flight=1024)).durable, MESSAGES, None)

    floor_, value, peer = await medians(floor, ours, fetch)
    goal = max(0.45 * floor_, 2 * peer)
    return [Measure("bus.consume", value, "msg/s", floor_, "nats-py fetch(100)", peer, goal, "more")]


async def consume_tx(bench: Bench) -> list[Measure]:
    """Events a second with inbox, effect and outbox in PostgreSQL, one event a transaction."""
    return [await _transactions(bench, "bus.consume_tx", Happened, EVENTS, batch=1, goal=500)]


async def consume_tx_batch(bench: Bench) -> list[Measure]:
    """The same for a handler that declared that events may share a transaction."""
    return [await _transactions(bench, "bus.consume_tx_batch", HappenedOften, OFTEN, batch=BATCH, goal=1200)]


async def _transactions(bench: Bench, name: str, event: type[Happened], count: int, *, batch: int, goal: float) -> Measure:
    database = bench.settings.database_url

    def bodies() -> list[bytes]:
        return [encode(envelope(event(n=n, padding=PADDING), source=NAME)) for n in range(count)]

    async def floor() -> float:
        return await raw.commits(database, NAME, bench.name("c"), count, connections=4 if batch == 1 else 1, batch=batch, body=bodies()[0])

    async def ours() -> float:
        await raw.fill(bench.url, event.subject(), bodies())
        async with bench.service() as runtime:
            clock = runtime.ports
            clock.wanted = count
            async with asyncio.timeout(120):
                await clock.done.wait()
            return float(count / (clock.last - clock.first))

    async def by_hand() -> float:
        subject = f"medmesh.evt.byhand.in{next(bench.numbers)}"
        consumer = await bench.consumer("EVENTS", subject, max_in_flight=1024)
        await raw.fill(bench.url, subject, bodies())
        sql = await asyncpg.connect(database)
        handle = raw.by_hand(sql, NAME, bench.name("h"), together=batch > 1)
        try:
            return await raw.fetched(bench.url, "EVENTS", consumer.durable, count, handle)
        finally:
            await sql.close()

    floor_, value, peer = await medians(floor, ours, by_hand)
    return Measure(name, value, "events/s", floor_, "fetch(100), asyncpg, publish", peer, goal, "more")


# --- latency --------------------------------------------------------------------------------------------------------


async def age(bench: Bench) -> list[Measure]:
    """Milliseconds from the end of a unit of work, before its commit, to the start of the handler, on an idle system."""
    body = encode(envelope(Happened(n=0, padding=PADDING), source=NAME))

    async def ours() -> float:
        async with bench.service() as runtime:

            async def once() -> float:
                async with runtime.unit() as uow:
                    id_ = uow.emit(Happened(n=0, padding=PADDING))
                    ended = perf_counter()
                while id_ not in runtime.ports.began:
                    await asyncio.sleep(0.0005)
                return float(runtime.ports.began[id_] - ended)

            return await _p50(once)

    async def floor() -> float:
        return await raw.ages(bench.url, bench.settings.database_url, NAME, await _subject(bench), body, _p50, fetch=False)

    async def fetch() -> float:
        return await raw.ages(bench.url, bench.settings.database_url, NAME, await _subject(bench), body, _p50, fetch=True)

    floor_, value, peer = await medians(floor, ours, fetch)
    return [Measure("bus.age_p50", value, "ms", floor_, "commit, publish, fetch(100)", peer, 5.0)]


async def _subject(bench: Bench) -> tuple[str, str]:
    subject = f"medmesh.evt.byhand.in{next(bench.numbers)}"
    return subject, (await bench.consumer("EVENTS", subject)).durable


async def _p50(once: Callable[[], Awaitable[float]], count: int = IDLE, pause: float = 0.01) -> float:
    """The median in milliseconds; the first ten warm up."""
    taken = []
    for _ in range(count + 10):
        taken.append(await once())
        await asyncio.sleep(pause)
    return 1000 * statistics.median(taken[10:])


async def request(bench: Bench) -> list[Measure]:
    """Milliseconds of one question, asked by one connection of another: both envelopes encoded and decoded.

    `bus.ask_p50` is the same through the whole runtime, whose handler has a transaction.
    """
    padding, token = PADDING, None

    def asked() -> bytes:
        return encode(envelope(Ask(n=1, padding=padding), source=NAME, actor=token))

    async def floor() -> float:
        return await raw.requests(bench.url, bench.name("raw."), asked(), _quick)

    async def ours() -> float:
        subject, server = bench.name("medmesh.qry.other."), await NatsBus.connect(bench.url, name="bench-server")

        async def answer(body: bytes) -> bytes:
            query = decode(body, Ask)
            reply = Answer(n=query.data.n, padding=query.data.padding)
            return bytes(reply.__pydantic_serializer__.to_json(reply))

        serving = await server.serve(subject, answer, queue="bench")

        async def once() -> float:
            began = perf_counter()
            Answer.model_validate_json(await bench.bus.request(subject, asked()))
            return perf_counter() - began

        value = await _quick(once)
        await serving.stop()
        await server.close()
        return value

    async def whole() -> float:
        async with bench.service() as runtime:

            async def once() -> float:
                began = perf_counter()
                await runtime.ask(Ask(n=1, padding=padding), Answer)
                return perf_counter() - began

            return await _quick(once)

    floor_, value, whole_ = await medians(floor, ours, whole)
    return [
        Measure("bus.request_p50", value, "ms", floor_, "nats-py request", floor_, 1.25 * floor_),
        Measure("bus.ask_p50", whole_, "ms", floor_, "nats-py request", floor_),
    ]


async def _quick(once: Callable[[], Awaitable[float]]) -> float:
    return await _p50(once, REQUESTS, 0)
