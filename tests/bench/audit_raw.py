"""The floors and peers of the log: nats-py and asyncpg used directly, as one would without medmesh.

`grouped` is one writer that drains a queue and COPYs what waits, with a leaf hash and a number each, and nothing else: no tree, no
signature, no search rows, no messages, and its callers in its own process. `python -m tests.bench.audit_raw` is the same behind NATS,
in a process of its own, taking the requests of the real service: what the transport leaves of it. `chained` is what one writes first:
each caller extends a chain in a transaction of its own.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import sys
from dataclasses import dataclass, field
from time import perf_counter

import asyncpg
import nats
import uvloop
from nats.aio.msg import Msg

from tests.bench.common import percentile

_TABLE = "CREATE TABLE IF NOT EXISTS {} (seq bigint PRIMARY KEY, body bytea NOT NULL, hash bytea NOT NULL)"


async def table(sql: asyncpg.Connection, name: str) -> int:
    """Make it; how long it is."""
    await sql.execute(_TABLE.format(name))
    return int(await sql.fetchval(f"SELECT count(*) FROM {name}"))


@dataclass
class Writer:
    """Numbers rows and commits what waits as one group."""

    sql: asyncpg.Connection
    size: int
    queue: asyncio.Queue[tuple[list[bytes], asyncio.Future[int]]] = field(default_factory=asyncio.Queue)

    async def append(self, bodies: list[bytes]) -> int:
        """The log's size when they are durable."""
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.queue.put_nowait((bodies, done))
        return await done

    async def run(self) -> None:
        """For ever."""
        while True:
            group = [await self.queue.get()]
            while not self.queue.empty():
                group.append(self.queue.get_nowait())
            bodies = [body for some, _ in group for body in some]
            rows = [(self.size + n, body, hashlib.sha256(b"\0" + body).digest()) for n, body in enumerate(bodies)]
            async with self.sql.transaction():
                await self.sql.copy_records_to_table("raw_grouped", records=rows, columns=("seq", "body", "hash"))
            self.size += len(rows)
            for _, done in group:
                done.set_result(self.size)


async def grouped(url: str, callers: int, each: int, per_call: int = 1, body: bytes = b"x" * 800) -> tuple[float, float, float]:
    """(records a second, p50, p99 in milliseconds) of `callers` that wait for their receipt before the next."""
    sql = await asyncpg.connect(url)
    writer = Writer(sql, await table(sql, "raw_grouped"))

    async def call(taken: list[float]) -> None:
        for _ in range(each):
            began = perf_counter()
            await writer.append([body] * per_call)
            taken.append(perf_counter() - began)

    writing, taken = asyncio.create_task(writer.run()), list[float]()
    began = perf_counter()
    await asyncio.gather(*(call(taken) for _ in range(callers)))
    rate = callers * each * per_call / (perf_counter() - began)
    writing.cancel()
    await sql.close()
    return rate, percentile(taken, 50) * 1e3, percentile(taken, 99) * 1e3


async def chained(url: str, callers: int, each: int, body: bytes = b"x" * 800) -> tuple[float, float, float]:
    """The same with a transaction and a connection a caller, which lock the head of the chain."""
    setup = await asyncpg.connect(url)
    await table(setup, "raw_chained")
    await setup.execute("CREATE TABLE IF NOT EXISTS raw_head (one int PRIMARY KEY, seq bigint, hash bytea)")
    await setup.execute("INSERT INTO raw_head VALUES (1, 0, '') ON CONFLICT DO NOTHING")
    await setup.close()
    connections = await asyncio.gather(*(asyncpg.connect(url) for _ in range(callers)))
    taken: list[float] = []

    async def call(sql: asyncpg.Connection) -> None:
        for _ in range(each):
            began = perf_counter()
            async with sql.transaction():
                row = await sql.fetchrow("SELECT seq, hash FROM raw_head FOR UPDATE")
                next_ = hashlib.sha256(row["hash"] + body).digest()
                await sql.execute("INSERT INTO raw_chained VALUES ($1, $2, $3)", row["seq"], body, next_)
                await sql.execute("UPDATE raw_head SET seq = seq + 1, hash = $1", next_)
            taken.append(perf_counter() - began)

    began = perf_counter()
    await asyncio.gather(*(call(sql) for sql in connections))
    rate = callers * each / (perf_counter() - began)
    await asyncio.gather(*(sql.close() for sql in connections))
    return rate, percentile(taken, 50) * 1e3, percentile(taken, 99) * 1e3


SUBJECT = "raw.append"


async def respond(nats_url: str, url: str) -> None:
    """Answer batches as the log does, with as little as possible."""
    client, sql = await nats.connect(nats_url), await asyncpg.connect(url)
    writer = Writer(sql, await table(sql, "raw_grouped"))
    running: set[asyncio.Task[None]] = set()

    async def answer(message: Msg) -> None:
        records = json.loads(message.data)["records"]
        end = await writer.append([base64.b64decode(record["body"]) for record in records])
        await message.respond(json.dumps({"receipts": [{"id": record["id"], "seq": end, "leaf": "0" * 64} for record in records]}).encode())

    async def receive(message: Msg) -> None:
        task = asyncio.create_task(answer(message))
        running.add(task)
        task.add_done_callback(running.discard)

    await client.subscribe(SUBJECT, cb=receive)
    await client.flush()
    await writer.run()


if __name__ == "__main__":
    uvloop.run(respond(sys.argv[1], sys.argv[2]))
