"""The log under append load while its service, the bus and the database are killed: nothing lost, nothing doubled, no gap.

The load commits audit rows as services do, numbered by their own counter, in the schemas of services that do nothing meanwhile; their real
relays carry the rows to the log. Whether a commit that the database's death interrupted was one is not known: its rows may be there.
"""

from __future__ import annotations

import asyncio
import base64
import os
import random
import signal
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from tests.faults.harness import SOAK, Stage, _alive, until
from tests.faults.test_kill import seed_of
from tests.logs import record

from medmesh.contracts.message import new_id

pytestmark = [pytest.mark.faults, pytest.mark.slow]

DEATHS = 500 if SOAK else 25
PAUSE = 0.2 if SOAK else 0.02
"""Seconds between two commits of an emitter at most: half an hour of deaths shall not make a million records."""
EMITTERS = ("annotation", "conversion", "registry", "training")
VICTIMS = ("audit", "nats", "postgres")
VERB = "training.finish"  # one of the vocabulary that nothing else records here


@dataclass
class Emitter:
    """One service's audit rows. `maybe` are those of interrupted commits."""

    stage: Stage
    name: str
    dice: random.Random
    sure: list[str] = field(default_factory=list)
    maybe: set[str] = field(default_factory=set)

    async def run(self, stop: asyncio.Event) -> None:
        """Commit rows until told to stop; come back when the database does."""
        while not stop.is_set():
            with suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, AssertionError):
                url, secret = self.stage.run.urls["postgres"], self.stage.run.paths["postgres.password"].read_text().strip()
                sql = await asyncpg.connect(url, password=secret, timeout=2)
                try:
                    while not stop.is_set():
                        await self._commit(sql)
                        await asyncio.sleep(self.dice.uniform(0, PAUSE))
                finally:
                    with suppress(Exception):
                        await sql.close(timeout=1)
            await asyncio.sleep(0.1)

    async def _commit(self, sql: asyncpg.Connection) -> None:
        ids = [new_id() for _ in range(self.dice.randint(1, 6))]
        self.maybe.update(ids)
        async with sql.transaction():
            wanted = f"UPDATE {self.name}.audit_counter SET n = n + $1, last_id = $2 RETURNING n"
            last = await sql.fetchval(wanted, len(ids), ids[-1])
            made = [record(self.name, last - len(ids) + place, id=id_, verb=VERB) for place, id_ in enumerate(ids, start=1)]
            rows = [(r.n, r.id, base64.b64decode(r.body)) for r in made]
            await sql.executemany(f"INSERT INTO {self.name}.audit_outbox (n, id, body, created_at) VALUES ($1, $2, $3, now())", rows)
        self.sure += ids
        self.maybe.difference_update(ids)


async def kill(stage: Stage, dice: random.Random) -> list[str]:
    """`kill -9`, one after the other; now and then before the last one is quite back."""
    made: list[str] = []
    while len(made) < DEATHS:
        victim = VICTIMS[len(made) % len(VICTIMS)]
        if dice.random() < 0.75:  # on a busy machine the database is else killed before it ever answers, and there is no load to lose
            await until(partial(stage.sql, "SELECT 1"), 60)
        await asyncio.sleep(dice.uniform(0.1, 1.5))
        process = await until(_alive(stage, victim), 60, 0.01)
        # One that ended by itself in this very moment, for want of a server that was killed before, was not killed by us.
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
            made.append(victim)
    return made


async def test_no_record_is_lost_or_doubled_and_no_number_is_missing(stage: Stage, tmp_path: Path) -> None:
    dice, stop = random.Random(seed_of("log")), asyncio.Event()
    emitters = [Emitter(stage, name, random.Random(seed_of(name))) for name in EMITTERS]
    running = [asyncio.create_task(emitter.run(stop)) for emitter in emitters]
    try:
        killed = Counter(await kill(stage, dice))
    finally:
        stop.set()
        await asyncio.gather(*running)
    await stage.settled()
    found: list[dict[str, Any]] = await stage.log(tmp_path / "log")  # verified: every leaf, tile, body, root and counter
    logged = Counter(entry["id"] for entry in found if entry["sub"] == VERB)
    sure = {id_ for emitter in emitters for id_ in emitter.sure}
    maybe = {id_ for emitter in emitters for id_ in emitter.maybe}
    print(f"{dict(killed)}: {len(sure)} records, {len(maybe & logged.keys())} of {len(maybe)} interrupted ones were committed")
    assert killed.total() == DEATHS
    assert sure - logged.keys() == set(), "lost"
    assert {id_: n for id_, n in logged.items() if n > 1} == {}, "doubled"
    assert logged.keys() - sure <= maybe, "made up"
    rows = await stage.sql("SELECT count(*) AS n, max(seq) AS last, (SELECT size FROM audit.state) AS size FROM audit.entries")
    assert rows[0]["n"] == rows[0]["last"] + 1 == rows[0]["size"], "gap"
    assert await stage.sql("SELECT * FROM audit.conflicts") == []
    assert len(sure) > 100 * len(EMITTERS)
