"""The floors and peers of the bus: nats-py and asyncpg used directly, as one would without medmesh."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any
from uuid import uuid4

import asyncpg
import nats
from nats.aio.client import Client
from nats.aio.msg import Msg

_HALF = 256


async def fill(url: str, subject: str, bodies: list[bytes]) -> None:
    """Publish into a stream, pipelined, each with an id of its own."""
    async with _client(url) as client:
        stream, once = client.jetstream(publish_async_max_pending=2000), uuid4().hex
        for n, body in enumerate(bodies):
            await stream.publish_async(subject, body, headers={"Nats-Msg-Id": f"{once}-{n}"})
            if n % 200 == 0:
                await asyncio.sleep(0)
        await stream.publish_async_completed()


async def continuous(url: str, stream: str, durable: str, count: int, handle: Callable[[bytes], Awaitable[None]] | None = None) -> float:
    """Messages a second through one inbox and overlapping pull requests: the most nats-py can do."""
    async with _client(url) as client:
        inbox, got, asked, done = client.new_inbox(), 0, 2 * _HALF, asyncio.Event()
        next_ = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{durable}"
        request = json.dumps({"batch": _HALF, "expires": 30_000_000_000}).encode()

        async def receive(message: Msg) -> None:
            nonlocal got, asked
            if not message.reply.startswith("$JS.ACK"):
                return
            if handle is not None:
                await handle(message.data)
            await client.publish(message.reply, b"")
            got += 1
            if asked - got < _HALF:
                asked += _HALF
                await client.publish(next_, request, reply=inbox)
            if got == count:
                done.set()

        await client.subscribe(inbox, cb=receive, pending_msgs_limit=0, pending_bytes_limit=0)
        began = perf_counter()
        for _ in range(2):
            await client.publish(next_, request, reply=inbox)
        await done.wait()
        await client.flush()
        return count / (perf_counter() - began)


async def fetched(url: str, stream: str, durable: str, count: int, handle: Callable[[Client, list[Msg]], Awaitable[None]] | None) -> float:
    """Messages a second through `fetch(100)`, as the documentation of nats-py shows it."""
    async with _client(url) as client:
        subscription = await client.jetstream().pull_subscribe_bind(durable=durable, stream=stream)
        got, began = 0, perf_counter()
        while got < count:
            messages = await subscription.fetch(100, timeout=5)
            if handle is not None:
                await handle(client, messages)
            for message in messages:
                await message.ack()
            got += len(messages)
        await client.flush()
        return got / (perf_counter() - began)


INBOX = "INSERT INTO {}.inbox (consumer, event_id, at) VALUES ($1, $2, now()) ON CONFLICT DO NOTHING"
EFFECT = "INSERT INTO {}.seen (id, n) VALUES ($1, $2)"
OUTBOX = "INSERT INTO {}.outbox (id, subject, body, created_at, sent_at) VALUES ($1, $2, $3, now(), now())"
"""Marked as sent at once, so that no relay takes it."""


async def commits(url: str, schema: str, name: str, count: int, *, connections: int, batch: int, body: bytes) -> float:
    """Events a second when each does the same three inserts, `batch` to a transaction, and nothing else happens."""
    statements = [(sql.format(schema)) for sql in (INBOX, EFFECT, OUTBOX)]
    numbers = iter(range(0, count, batch))

    async def work(sql: asyncpg.Connection) -> None:
        for first in numbers:
            async with sql.transaction():
                for n in range(first, first + batch):
                    await sql.execute(statements[0], name, f"{name}-{n}")
                    await sql.execute(statements[1], f"{name}-{n}", n)
                    await sql.execute(statements[2], f"{name}-{n}", "none", body)

    opened = [await asyncpg.connect(url) for _ in range(connections)]
    try:
        for connection in opened:  # prepare the statements before the clock runs
            async with connection.transaction():
                await connection.execute("SELECT 1")
        began = perf_counter()
        await asyncio.gather(*map(work, opened))
        return count / (perf_counter() - began)
    finally:
        await asyncio.gather(*(connection.close() for connection in opened))


def by_hand(sql: asyncpg.Connection, schema: str, name: str, *, together: bool) -> Callable[[Client, list[Msg]], Awaitable[None]]:
    """The handler without an outbox: transaction, then publish. What a crash between the two loses stays lost."""
    inbox, effect = INBOX.format(schema), EFFECT.format(schema)

    async def one(message: Msg) -> None:
        id_ = json.loads(message.data)["id"]
        await sql.execute(inbox, name, id_)
        await sql.execute(effect, f"{name}-{id_}", 1)

    async def handle(client: Client, messages: list[Msg]) -> None:
        stream = client.jetstream()
        if together:
            async with sql.transaction():
                for message in messages:
                    await one(message)
        for message in messages:
            if not together:
                async with sql.transaction():
                    await one(message)
            await stream.publish(f"medmesh.evt.byhand.{name}", message.data)

    return handle


def _client(url: str) -> Any:
    return _Open(url)


class _Open:
    """`async with` around a nats-py client."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def __aenter__(self) -> Client:
        self._client = await nats.connect(self._url, pending_size=64 * 2**20)
        return self._client

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()


Median = Callable[[Callable[[], Awaitable[float]]], Awaitable[float]]


async def ages(url: str, database: str, schema: str, where: tuple[str, str], body: bytes, median: Median, *, fetch: bool) -> float:
    """One insert with its commit, one publish with its acknowledgement, and the arrival at a consumer that waits."""
    subject, durable = where
    sql = await asyncpg.connect(database)
    numbers, arrived = iter(range(10**9)), asyncio.Queue[float]()
    async with _client(url) as client, _client(url) as other:
        stream, name = client.jetstream(), client.new_inbox()[-12:]

        async def pull() -> None:
            subscription = await other.jetstream().pull_subscribe_bind(durable=durable, stream="EVENTS")
            while True:
                for message in await subscription.fetch(100, timeout=60):
                    arrived.put_nowait(perf_counter())
                    await message.ack()

        async def receive(message: Msg) -> None:
            if message.reply.startswith("$JS.ACK"):
                arrived.put_nowait(perf_counter())
                await other.publish(message.reply, b"")

        if fetch:
            task = asyncio.create_task(pull())
        else:
            inbox = other.new_inbox()
            await other.subscribe(inbox, cb=receive)
            pull_request = json.dumps({"batch": 1000, "expires": 60_000_000_000}).encode()
            await other.publish(f"$JS.API.CONSUMER.MSG.NEXT.EVENTS.{durable}", pull_request, reply=inbox)
        await asyncio.sleep(0.2)

        async def once() -> float:
            id_, began = f"{name}-{next(numbers)}", perf_counter()
            await sql.execute(OUTBOX.format(schema), id_, subject, body)
            await stream.publish(subject, body, headers={"Nats-Msg-Id": id_})
            return await arrived.get() - began

        try:
            return await median(once)
        finally:
            if fetch:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            await sql.close()


async def requests(url: str, subject: str, body: bytes, median: Median) -> float:
    """A request of one connection answered by another with the same bytes."""
    async with _client(url) as client, _client(url) as server:

        async def answer(message: Msg) -> None:
            await message.respond(message.data)

        await server.subscribe(subject, queue="raw", cb=answer)
        await server.flush()

        async def once() -> float:
            began = perf_counter()
            await client.request(subject, body, timeout=5)
            return perf_counter() - began

        return await median(once)
