"""Whatever of the platform is killed while rounds go on: the same model as undisturbed, by its hash, which is the mean of what hospitals
handed in, and nobody trains a round twice."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sqlite3
from contextlib import closing

import numpy as np
import pytest
from tests.bench.federated_stage import field_of, package
from tests.faults.harness import KILLS, until

from medmesh.learning import isolation

pytestmark = [
    pytest.mark.faults,
    pytest.mark.slow,
    pytest.mark.skipif(isolation.capability().kind == "none", reason="nothing isolates here"),
]
VICTIMS = ("federation", "gateway", "nats", "postgres")


async def test_any_kill_ends_in_the_same_model() -> None:
    dice = random.Random(20_268)
    async with field_of(2) as field:
        source = package(field.folder / "package", 0.1, differ=True)
        rounds = 10 * max(KILLS, len(VICTIMS))
        calm = await field.federate(source, field.hospitals, rounds)
        running = asyncio.create_task(field.federate(source, field.hospitals, rounds))
        counted = "SELECT count(*) AS n FROM federation.rounds WHERE state = 'committed' AND federation <> $1"

        async def committed() -> int:
            return int((await field.stage.sql(counted, calm.federation))[0]["n"])

        killed = []
        for number in range(max(KILLS, len(VICTIMS))):
            place = 10 * number + dice.uniform(1, 8)

            async def there(place: float = place) -> bool:
                return await committed() >= place

            await until(there, 120, 0.02)
            await asyncio.sleep(dice.uniform(0, 0.2))
            victim = VICTIMS[number % len(VICTIMS)]
            os.kill(field.stage.run.processes[victim].pid, signal.SIGKILL)
            killed.append((victim, round(place, 1)))
        print(f"killed {killed}")
        hurt = await running
        assert hurt.model == calm.model
        for array in (await field.model(hurt.federation)).values():
            np.testing.assert_allclose(array, await field.wanted(hurt.federation), rtol=0, atol=1e-5)
        for name in field.hospitals:
            with closing(sqlite3.connect(f"file:{field.folder / name / 'store.db'}?mode=ro", uri=True)) as store:
                found = store.execute(
                    "SELECT round, trained FROM tasks WHERE federation = ? AND trained <> 1", (hurt.federation,)
                ).fetchall()
            assert found == [], "a round was trained again, and no node was killed"
