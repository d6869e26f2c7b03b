"""Consuming from JetStream: one inbox subscription that receives from overlapping pull requests, acknowledged by plain publishes.

Not nats-py's `fetch`, whose stop-and-go batches are the bottleneck.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.errors import NotFoundError

from medmesh.bus.port import ConsumerSpec, Delivery
from medmesh.errors import Problem
from medmesh.tasks import end

if TYPE_CHECKING:
    from medmesh.bus.nats_bus import NatsBus

_HEARTBEAT = 5.0
_EXPIRES = 30.0


class NatsDelivery:
    """One JetStream delivery; its reply subject says which attempt it is (ADR-15: $JS.ACK tokens)."""

    __slots__ = ("_answered", "_client", "_reply", "body", "headers", "subject")

    def __init__(self, client: Client, message: Msg, answered: Callable[[], object]) -> None:
        self._client = client
        self._answered = answered
        self._reply = message.reply
        self.subject = message.subject
        self.body = message.data
        self.headers: Mapping[str, str] = message.headers or {}

    @property
    def attempt(self) -> int:
        tokens = self._reply.split(".")
        return int(tokens[4] if len(tokens) == 9 else tokens[6])

    async def ack(self) -> None:
        await self._answer(b"")

    async def retry(self, delay: float) -> None:
        await self._answer(b'-NAK {"delay": %d}' % int(delay * 1e9))

    async def terminate(self, reason: str) -> None:
        await self._answer(b"+TERM " + reason.encode())

    async def _answer(self, body: bytes) -> None:
        self._answered()  # before: the next delivery may follow at once
        await self._client.publish(self._reply, body)


def _place(reply: str) -> str:
    """The number of a delivery's message in its stream."""
    tokens = reply.split(".")
    return tokens[5 if len(tokens) == 9 else 7]


@dataclass(slots=True)
class _Held:
    """The reply subject of its last delivery, and when we last spoke of it."""

    reply: str
    told: float


class NatsConsumer:
    """Continuous pull: keeps between half and all of `max_in_flight` messages asked for. As `medmesh.bus.port.Subscription`."""

    def __init__(
        self, bus: NatsBus, client: Client, spec: ConsumerSpec, deliver: Callable[[Delivery], Awaitable[None]], concurrency: int
    ) -> None:
        self._bus = bus
        self._client = client
        self._spec = spec
        self._deliver = deliver
        self._concurrency = concurrency
        self._batch = max(1, min(spec.max_in_flight, 512))
        self._low = max(1, self._batch // 2)
        self._next = f"$JS.API.CONSUMER.MSG.NEXT.{spec.stream}.{spec.durable}"
        self._asked = 0
        self._queue: asyncio.Queue[Msg] = asyncio.Queue()
        self._held: dict[str, _Held] = {}
        """What was received and not answered yet, by its number in the stream."""
        self._workers: list[asyncio.Task[None]] = []
        self._subscription: Any = None
        self._inbox = ""
        self._heard = 0.0
        self._pulls = 0
        self._stopping = False

    async def start(self) -> None:
        await self._bus.unless_refused(
            f"$JS.API.CONSUMER.INFO.{self._spec.stream}.{self._spec.durable}",
            self._exists(),
        )
        self._inbox = f"{self._bus.inbox}.pull.{self._spec.durable}"
        self._subscription = await self._client.subscribe(f"{self._inbox}.*", cb=self._receive, pending_msgs_limit=0, pending_bytes_limit=0)
        self._workers = [asyncio.create_task(self._work()) for _ in range(self._concurrency)]
        await self._ask(self._batch)

    @property
    def pace(self) -> float:
        """Seconds between two looks at what is held: often enough that one late look loses nothing."""
        return min(1.0, self._spec.ack_wait / 4)

    async def _exists(self) -> None:
        try:
            await self._client.jetstream().consumer_info(self._spec.stream, self._spec.durable)
        except NotFoundError:
            raise Problem("bus.topology_missing", durable=self._spec.durable, stream=self._spec.stream) from None

    async def _ask(self, count: int) -> None:
        self._asked += count
        self._heard = asyncio.get_running_loop().time()
        self._pulls += 1
        request = {"batch": count, "expires": int(_EXPIRES * 1e9), "idle_heartbeat": int(_HEARTBEAT * 1e9)}
        await self._client.publish(self._next, json.dumps(request).encode(), reply=f"{self._inbox}.{self._pulls}")

    async def _receive(self, message: Msg) -> None:
        self._heard = asyncio.get_running_loop().time()
        if message.reply and message.reply.startswith("$JS.ACK"):
            self._asked -= 1
            if (held := self._held.get(place := _place(message.reply))) is not None:
                held.reply = message.reply  # our signs of life were late; it is in our hands all the same
            else:
                self._held[place] = _Held(message.reply, self._heard)
                self._queue.put_nowait(message)
            await self._refill()
            return
        status = (message.headers or {}).get("Status", "")
        if status == "100":  # idle heartbeat
            return
        # 404 no messages, 408 request expired, 409 consumer changed or too many pulls: what that pull still asked for is void.
        pending = int((message.headers or {}).get("Nats-Pending-Messages", "0") or 0)
        self._asked = max(0, self._asked - pending)
        if status == "409":
            await asyncio.sleep(0.2)
        if self._asked < self._low and not self._stopping:
            await self._ask(self._batch - self._asked)

    async def _refill(self) -> None:
        if self._asked < self._low and not self._stopping and self._queue.qsize() < self._batch:
            await self._ask(self._batch - self._asked)

    def restart(self) -> None:
        """Pull requests die with the server that held them: what was asked for is asked of nobody any more."""
        self._asked = 0
        self._heard = 0.0

    async def look(self) -> None:
        """Say what is still held, and ask again when heartbeats stop."""
        now = asyncio.get_running_loop().time()
        for held in [held for held in self._held.values() if now - held.told >= self._spec.ack_wait / 8]:
            held.told = now
            await self._client.publish(held.reply, b"+WPI")
        if now - self._heard > 2.5 * _HEARTBEAT or self._heard == 0.0:
            self._asked = 0
        await self._refill()

    async def _work(self) -> None:
        while True:
            message = await self._queue.get()
            mine = self._held[place := _place(message.reply)]

            def answered(place: str = place, mine: _Held = mine) -> None:
                if self._held.get(place) is mine:
                    del self._held[place]

            try:
                await self._deliver(NatsDelivery(self._client, message, answered))
            finally:
                answered()
                self._queue.task_done()
            await self._refill()

    async def stop(self) -> None:
        self._stopping = True
        if self._client.is_connected:
            await self._subscription.unsubscribe()
        # What waits in the queue was not begun: the server delivers it again to whoever comes next.
        while not self._queue.empty():
            message = self._queue.get_nowait()
            await NatsDelivery(self._client, message, partial(self._held.pop, _place(message.reply), None)).retry(0)
            self._queue.task_done()
        try:
            async with asyncio.timeout(20):
                await self._queue.join()
        except TimeoutError:
            pass
        await end(*self._workers)
