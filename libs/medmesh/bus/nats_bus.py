"""The bus on a NATS server with JetStream: a thin layer over nats-py, which nobody imports but it and `nats_consumer`.

A permission violation, which the server reports asynchronously, is matched to the call that waits, so that it fails at once instead of
timing out.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error, NoRespondersError
from nats.js import api
from nats.js.errors import NotFoundError

from medmesh.bus.nats_consumer import NatsConsumer
from medmesh.bus.port import BusMessage, ConsumerSpec, Delivery, StreamSpec, Subscription
from medmesh.errors import Problem
from medmesh.tasks import end

_VIOLATION = re.compile(r'permissions violation for (publish|subscription) to "([^"]+)"', re.IGNORECASE)


class NatsBus:
    """See `medmesh.bus.port.TopologyBus`."""

    def __init__(self) -> None:
        self._client = Client()
        self._violations: dict[str, list[_Waiting]] = {}
        self._consumers: set[NatsConsumer] = set()
        self._keeper: asyncio.Task[None] | None = None
        self._resumed = asyncio.Event()
        self._stranger = asyncio.Event()
        self.inbox = "_INBOX"
        self.refused: Callable[[str, str], None] = lambda operation, subject: None

    @classmethod
    async def connect(cls, url: str, *, name: str, seed: Path | None = None) -> NatsBus:
        """Connect as `name` with the NKEY seed in the file `seed`; waits for a server that is still starting.

        Raises `Problem` (`bus.unauthorised`) when the server does not know this identity: waiting would not help.
        """
        bus = cls()
        bus.inbox = f"_INBOX_{name}"
        connecting = asyncio.ensure_future(bus._connect(url, name, seed))
        refused = asyncio.ensure_future(bus._stranger.wait())
        await asyncio.wait({connecting, refused}, return_when=asyncio.FIRST_COMPLETED)
        refused.cancel()
        if not connecting.done():
            connecting.cancel()
            await asyncio.gather(connecting, return_exceptions=True)
            await bus._client.close()
            raise Problem("bus.unauthorised", name=name)
        connecting.result()
        return bus

    async def _connect(self, url: str, name: str, seed: Path | None) -> None:
        await self._client.connect(
            url,
            name=name,
            nkeys_seed_str=seed.read_text().strip() if seed else None,
            inbox_prefix=self.inbox.encode(),
            error_cb=self._failed,
            reconnected_cb=self._resume,
            max_reconnect_attempts=-1,
            reconnect_time_wait=0.25,
            connect_timeout=3,
            allow_reconnect=True,
            ping_interval=10,
            max_outstanding_pings=2,
            pending_size=16 * 2**20,
        )

    async def _failed(self, error: Exception) -> None:
        if "authorization violation" in str(error).lower():
            self._stranger.set()
        found = _VIOLATION.search(str(error))
        if not found:
            return
        operation, subject = found.group(1).lower(), found.group(2)
        self.refused(operation, subject)
        # The server lower-cases nothing, but nats-py does: compare without case.
        for waiting in self._violations.pop(subject.lower(), []):
            waiting.refuse(Problem("bus.permission_denied", operation=operation, subject=subject))

    async def _resume(self) -> None:
        for consumer in self._consumers:
            consumer.restart()
        self._resumed.set()

    async def unless_refused(self, subject: str, call: Awaitable[Any]) -> Any:
        """Await `call`, but fail at once when the server refuses `subject`."""
        key, waiting = subject.lower(), _Waiting()
        self._violations.setdefault(key, []).append(waiting)
        try:
            return await call
        except asyncio.CancelledError:
            if (problem := waiting.take_back()) is not None:
                raise problem from None
            raise
        finally:
            waiting.take_back()  # refused and answered at the same moment: the answer counts
            if waiting in (others := self._violations.get(key, [])):
                others.remove(waiting)
                if not others:
                    del self._violations[key]

    async def publish(self, messages: Sequence[BusMessage]) -> list[Exception | None]:
        outcomes = await asyncio.gather(*(self._publish(message) for message in messages), return_exceptions=True)
        results: list[Exception | None] = []
        for outcome in outcomes:
            if isinstance(outcome, BaseException) and not isinstance(outcome, Exception):
                raise outcome
            results.append(outcome if isinstance(outcome, Exception) else None)
        return results

    async def _publish(self, message: BusMessage) -> None:
        headers = {"Nats-Msg-Id": message.id, **message.headers}
        try:
            reply = await self.unless_refused(
                message.subject, self._client.request(message.subject, message.body, timeout=10.0, headers=headers)
            )
        except NoRespondersError:
            raise Problem("bus.unavailable", reason=f"no stream keeps {message.subject}") from None
        answer = json.loads(reply.data)
        if "error" in answer:
            raise Problem("bus.unavailable", reason=str(answer["error"].get("description", "refused")))

    async def signal(self, subject: str, body: bytes) -> None:
        await self._client.publish(subject, body)

    async def listen(self, subject: str, heard: Callable[[str, bytes], Awaitable[None]]) -> Subscription:
        async def receive(message: Msg) -> None:
            await heard(message.subject, message.data)

        return _Plain(await self._client.subscribe(subject, cb=receive))

    async def consume(self, spec: ConsumerSpec, deliver: Callable[[Delivery], Awaitable[None]], *, concurrency: int = 8) -> Subscription:
        consumer = NatsConsumer(self, self._client, spec, deliver, concurrency)
        await consumer.start()
        self._consumers.add(consumer)
        if self._keeper is None:
            self._keeper = asyncio.create_task(self._keep())
        return _Consuming(consumer, self._consumers)

    async def _keep(self) -> None:
        """One timer for all consumers: their signs of life must be frequent, and a process has twenty of them."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(min((consumer.pace for consumer in self._consumers), default=1.0)):
                    await self._resumed.wait()
            self._resumed.clear()
            for consumer in tuple(self._consumers) if self._client.is_connected else ():
                with suppress(Error):  # of the connection: the next look says it again
                    await consumer.look()

    async def request(self, subject: str, body: bytes, *, timeout: float = 5.0) -> bytes:
        try:
            reply = await self.unless_refused(subject, self._client.request(subject, body, timeout=timeout))
        except NoRespondersError:
            raise Problem("bus.no_responder", subject=subject) from None
        return bytes(reply.data)

    async def serve(self, subject: str, answer: Callable[[bytes], Awaitable[bytes]], *, queue: str) -> Subscription:
        running: set[asyncio.Task[None]] = set()

        async def respond(message: Msg) -> None:
            await message.respond(await answer(message.data))

        async def receive(message: Msg) -> None:
            task = asyncio.create_task(respond(message))
            running.add(task)
            task.add_done_callback(running.discard)

        subscription = await self._client.subscribe(subject, queue=queue, cb=receive)
        await self._client.flush()
        return _Plain(subscription, running)

    async def ready(self) -> None:
        await self._client.flush(timeout=2)

    async def close(self) -> None:
        await end(*([self._keeper] if self._keeper else []))
        if self._client.is_connected:
            await self._client.flush(timeout=2)
        await self._client.close()

    # --- topology ---------------------------------------------------------------------------------------------------

    async def ensure_stream(self, spec: StreamSpec) -> None:
        stream = self._client.jetstream()
        config = api.StreamConfig(
            name=spec.name,
            subjects=list(spec.subjects),
            retention=api.RetentionPolicy.WORK_QUEUE if spec.work else api.RetentionPolicy.LIMITS,
            discard=api.DiscardPolicy.NEW if spec.work else api.DiscardPolicy.OLD,
            max_age=spec.max_age_seconds,
            max_bytes=spec.max_bytes,
            storage=api.StorageType.FILE,
            duplicate_window=600,
            num_replicas=spec.replicas,
            deny_delete=not spec.work,
            deny_purge=not spec.work,
        )
        try:
            await stream.update_stream(config)
        except NotFoundError:
            await stream.add_stream(config)

    async def ensure_consumer(self, spec: ConsumerSpec) -> None:
        config = api.ConsumerConfig(
            durable_name=spec.durable,
            filter_subjects=list(spec.subjects),
            ack_policy=api.AckPolicy.EXPLICIT,
            deliver_policy=api.DeliverPolicy.ALL,
            ack_wait=spec.ack_wait,
            max_deliver=spec.max_deliver,
            max_ack_pending=spec.max_in_flight,
        )
        await self._client.jetstream().add_consumer(spec.stream, config)

    async def stream_last_sequence(self, stream: str) -> int:
        """The number of the last message in a stream."""
        return int((await self._client.jetstream().stream_info(stream)).state.last_seq)


class _Waiting:
    """A call that the server may refuse. A refusal cancels the task that makes it, as `asyncio.timeout` does: a task of its own for
    every call would double what a request costs."""

    __slots__ = ("_before", "_problem", "_task")

    def __init__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._before = task.cancelling()
        self._problem: Problem | None = None

    def refuse(self, problem: Problem) -> None:
        self._problem = problem
        self._task.cancel()

    def take_back(self) -> Problem | None:
        """Undo our cancellation, once; answers why it was made, or None when there was none or somebody else cancelled too."""
        problem, self._problem = self._problem, None
        if problem is None or self._task.uncancel() > self._before:
            return None
        return problem


@dataclass
class _Consuming:
    consumer: NatsConsumer
    others: set[NatsConsumer]

    async def stop(self) -> None:
        await self.consumer.stop()
        self.others.discard(self.consumer)


class _Plain:
    def __init__(self, subscription: Any, running: set[asyncio.Task[None]] | None = None) -> None:
        self._subscription = subscription
        self._running = running if running is not None else set()

    async def stop(self) -> None:
        await self._subscription.unsubscribe()
        if self._running:
            await asyncio.wait(self._running, timeout=10)
