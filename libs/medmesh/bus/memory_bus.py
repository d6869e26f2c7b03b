"""A bus in memory, for unit tests: passes the same contract suite as the real one, and keeps nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from medmesh.bus.port import BusMessage, ConsumerSpec, Delivery, StreamSpec, Subscription
from medmesh.errors import Problem
from medmesh.tasks import end


@lru_cache(maxsize=4096)
def matches(pattern: str, subject: str) -> bool:
    """Whether a NATS subject matches a pattern with `*` (one token) and `>` (the rest)."""
    wanted, given = pattern.split("."), subject.split(".")
    for place, part in enumerate(wanted):
        if part == ">":
            return len(given) > place
        if place >= len(given) or part not in ("*", given[place]):
            return False
    return len(wanted) == len(given)


@dataclass(eq=False)
class _Consumer:
    spec: ConsumerSpec
    queue: asyncio.Queue[tuple[BusMessage, int]] = field(default_factory=asyncio.Queue)


@dataclass(eq=False)
class _Running:
    tasks: list[asyncio.Task[None]]
    idle: Callable[[], Awaitable[None]]
    leave: Callable[[], None]

    async def stop(self) -> None:
        self.leave()
        await self.idle()
        await end(*self.tasks)


class _Delivery:
    def __init__(self, bus: MemoryBus, consumer: _Consumer, message: BusMessage, attempt: int) -> None:
        self._bus, self._consumer, self._message = bus, consumer, message
        self.subject, self.body, self.headers = message.subject, message.body, message.headers
        self._attempt = attempt

    @property
    def attempt(self) -> int:
        return self._attempt

    async def ack(self) -> None:
        return None

    async def retry(self, delay: float) -> None:
        if self._attempt < self._consumer.spec.max_deliver:
            again = (self._message, self._attempt + 1)
            asyncio.get_running_loop().call_later(delay, self._consumer.queue.put_nowait, again)

    async def terminate(self, reason: str) -> None:
        return None


class MemoryBus:
    """See `medmesh.bus.port.TopologyBus`."""

    def __init__(self) -> None:
        self._streams: dict[str, StreamSpec] = {}
        self._messages: dict[str, dict[str, BusMessage]] = {}
        self._consumers: dict[tuple[str, str], _Consumer] = {}
        self._ways: dict[str, tuple[str, list[_Consumer]]] = {}
        """Subject to the stream that keeps its messages, and who consumes them, as long as neither changes."""
        self._listeners: list[tuple[str, Callable[[str, bytes], Awaitable[None]]]] = []
        self._responders: dict[str, Callable[[bytes], Awaitable[bytes]]] = {}

    async def publish(self, messages: Sequence[BusMessage]) -> list[Exception | None]:
        return [self._publish(message) for message in messages]

    def _publish(self, message: BusMessage) -> Exception | None:
        if (way := self._ways.get(message.subject) or self._way(message.subject)) is None:
            return Problem("bus.unavailable", reason=f"no stream keeps {message.subject}")
        stream, consumers = way
        if message.id in self._messages[stream]:
            return None
        self._messages[stream][message.id] = message
        for consumer in consumers:
            consumer.queue.put_nowait((message, 1))
        return None

    def _way(self, subject: str) -> tuple[str, list[_Consumer]] | None:
        for stream in self._streams.values():
            if any(matches(p, subject) for p in stream.subjects):
                theirs = [consumer for (name, _), consumer in self._consumers.items() if name == stream.name]
                wanted = [consumer for consumer in theirs if any(matches(p, subject) for p in consumer.spec.subjects)]
                self._ways[subject] = stream.name, wanted
                return self._ways[subject]
        return None

    async def signal(self, subject: str, body: bytes) -> None:
        for pattern, heard in list(self._listeners):
            if matches(pattern, subject):
                await heard(subject, body)

    async def listen(self, subject: str, heard: Callable[[str, bytes], Awaitable[None]]) -> Subscription:
        entry = (subject, heard)
        self._listeners.append(entry)

        async def idle() -> None:
            return None

        return _Running([], idle, lambda: self._listeners.remove(entry))

    async def consume(self, spec: ConsumerSpec, deliver: Callable[[Delivery], Awaitable[None]], *, concurrency: int = 8) -> Subscription:
        consumer = self._consumers.get((spec.stream, spec.durable))
        if consumer is None:
            raise Problem("bus.topology_missing", durable=spec.durable, stream=spec.stream)
        stopping = False

        async def work() -> None:
            while True:
                message, attempt = await consumer.queue.get()
                try:
                    if stopping:
                        kept.append((message, attempt))
                    else:
                        await deliver(_Delivery(self, consumer, message, attempt))
                finally:
                    consumer.queue.task_done()

        kept: list[tuple[BusMessage, int]] = []

        async def idle() -> None:
            await consumer.queue.join()
            for entry in kept:
                consumer.queue.put_nowait(entry)

        def leave() -> None:
            nonlocal stopping
            stopping = True

        return _Running([asyncio.create_task(work()) for _ in range(concurrency)], idle, leave)

    async def request(self, subject: str, body: bytes, *, timeout: float = 5.0) -> bytes:
        answer = self._responders.get(subject)
        if answer is None:
            raise Problem("bus.no_responder", subject=subject)
        return await asyncio.wait_for(answer(body), timeout)

    async def serve(self, subject: str, answer: Callable[[bytes], Awaitable[bytes]], *, queue: str) -> Subscription:
        self._responders[subject] = answer

        async def idle() -> None:
            return None

        return _Running([], idle, lambda: self._responders.pop(subject, None) and None)

    async def ready(self) -> None:
        return None

    async def close(self) -> None:
        return None

    async def ensure_stream(self, spec: StreamSpec) -> None:
        self._streams[spec.name] = spec
        self._ways.clear()
        self._messages.setdefault(spec.name, {})

    async def ensure_consumer(self, spec: ConsumerSpec) -> None:
        if (spec.stream, spec.durable) in self._consumers:
            return
        consumer = self._consumers[(spec.stream, spec.durable)] = _Consumer(spec)
        self._ways.clear()
        for message in self._messages[spec.stream].values():
            if any(matches(p, message.subject) for p in spec.subjects):
                consumer.queue.put_nowait((message, 1))
