"""What the rest of medmesh may ask of a bus. `nats_bus` is the real one, `memory_bus` passes the same contract suite."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol


class BusMessage(NamedTuple):
    """Something to publish: `id` becomes `Nats-Msg-Id`, by which the stream drops a second copy."""

    id: str
    subject: str
    body: bytes
    headers: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True)
class ConsumerSpec:
    """A durable pull consumer. `backoff` are the seconds before each redelivery; after the last one the message is dead.

    `ack_wait` is how long a process may be silent about what it holds; the bus sends a sign of life every fourth of it. `silences` are
    deliveries that may end so, by a process that died, beside those of `backoff`.
    """

    stream: str
    durable: str
    subjects: tuple[str, ...]
    backoff: tuple[float, ...] = (0.5, 2.0, 10.0, 30.0, 60.0)
    ack_wait: float = 30.0
    silences: int = 0
    max_in_flight: int = 256

    @property
    def max_deliver(self) -> int:
        """Deliveries until a message is dead."""
        return len(self.backoff) + 1 + self.silences


@dataclass(frozen=True, slots=True)
class StreamSpec:
    """A stream. `work` is a work queue that refuses new messages when full; the others forget the oldest."""

    name: str
    subjects: tuple[str, ...]
    work: bool = False
    max_age_seconds: float = 30 * 86_400
    max_bytes: int = 4 * 2**30
    replicas: int = 1
    """Servers of a cluster that keep each message."""


class Delivery(Protocol):
    """One delivery of one message; exactly one of `ack`, `retry`, `terminate` is called."""

    subject: str
    body: bytes
    headers: Mapping[str, str]

    @property
    def attempt(self) -> int:
        """1 at the first delivery."""

    async def ack(self) -> None:
        """Handled."""

    async def retry(self, delay: float) -> None:
        """Deliver again after `delay` seconds."""

    async def terminate(self, reason: str) -> None:
        """Never deliver again."""


class Subscription(Protocol):
    """A running consumer, responder or listener."""

    async def stop(self) -> None:
        """Take nothing new, and return when what was taken is done."""


class Bus(Protocol):
    """See the module. A refused permission raises `Problem` (`bus.permission_denied`) at once; a lost server is waited for."""

    async def publish(self, messages: Sequence[BusMessage]) -> list[Exception | None]:
        """Publish into streams, pipelined; answers per message None when the stream has it, or why it has not."""

    async def signal(self, subject: str, body: bytes) -> None:
        """Publish at most once, to whoever listens now."""

    async def listen(self, subject: str, heard: Callable[[str, bytes], Awaitable[None]]) -> Subscription:
        """Hear signals; `heard(subject, body)`."""

    async def consume(self, spec: ConsumerSpec, deliver: Callable[[Delivery], Awaitable[None]], *, concurrency: int = 8) -> Subscription:
        """Take messages of an existing consumer continuously, `concurrency` at a time."""

    async def request(self, subject: str, body: bytes, *, timeout: float = 5.0) -> bytes:
        """Ask and wait for the answer. `Problem` `bus.no_responder` at once when nobody serves, `TimeoutError` when nobody answers."""

    async def serve(self, subject: str, answer: Callable[[bytes], Awaitable[bytes]], *, queue: str) -> Subscription:
        """Answer requests; several instances with one `queue` share them."""

    async def ready(self) -> None:
        """Raise unless the server answers."""

    async def close(self) -> None:
        """Flush and leave."""


class TopologyBus(Bus, Protocol):
    """What only `medmesh topology apply` may do."""

    async def ensure_stream(self, spec: StreamSpec) -> None:
        """Create or update a stream."""

    async def ensure_consumer(self, spec: ConsumerSpec) -> None:
        """Create or update a durable consumer."""
