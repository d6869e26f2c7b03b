"""Secure sums while anything is killed, of the platform and at the hospitals: each round is the mean of those who took part, and of a round
at most one sum is opened, whoever comes back."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sqlite3
from collections import Counter
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.bench.federated_stage import Field, field_of, package
from tests.faults.harness import KILLS, until

from medmesh.learning import isolation

pytestmark = [
    pytest.mark.faults,
    pytest.mark.slow,
    pytest.mark.skipif(isolation.capability().kind == "none", reason="nothing isolates here"),
]
PLATFORM = ("federation", "gateway", "nats", "postgres")
BACK, GONE = "h01", "h03"
"""A hospital whose node is back before anybody misses it, and one that leaves in a round and never comes back."""
THRESHOLD = 3
EVERY = 10
"""Rounds from a kill to the next."""


@pytest.mark.timeout(900)
async def test_any_kill_opens_one_sum_a_round_and_ends_in_the_mean_of_who_took_part(tmp_path: Path) -> None:
    dice = random.Random(20_278)
    victims = [*PLATFORM, BACK, GONE] if KILLS <= 6 else [*PLATFORM, BACK, GONE, *PLATFORM, BACK]
    dice.shuffle(victims)
    async with field_of(4) as field:
        source = package(field.folder / "package", 0.1, differ=True)
        how: dict[str, Any] = {"secure": {"threshold": THRESHOLD}, "min_participants": 3, "lease_seconds": 15}
        rounds = EVERY * len(victims)
        calm = await field.federate(source, field.hospitals, rounds, **how)
        running = asyncio.create_task(field.federate(source, field.hospitals, rounds, **how))
        try:
            killed = await hurting(field, calm.federation, victims, dice)
            hurt = await running
        finally:
            running.cancel()
        print(f"killed {killed}")
        # Not the same model: one hospital left. Each is the mean of those who took part, round by round.
        for one in (calm, hurt):
            for array in (await field.model(one.federation)).values():
                np.testing.assert_allclose(array, await field.wanted(one.federation), rtol=0, atol=1e-5)
        trained = {name: tasks(field, name, hurt.federation) for name in field.hospitals}
        took_part = await field.took_part(hurt.federation)
        revealed_in = await field.stage.sql(
            "SELECT round, attempt, hospital FROM federation.secure_messages WHERE federation = $1 AND phase = 'reveal'", hurt.federation
        )
        counted_in = await field.stage.sql(
            "SELECT round, attempt FROM federation.rounds WHERE federation = $1 AND state = 'committed'", hurt.federation
        )
        claims = {name: claimed(field, name, hurt.federation) for name in field.hospitals}
        stayed = set(field.hospitals) - {GONE}
        wanted = {(f"edge:{name}", number) for name in stayed for number in range(1, rounds + 1)}
        places = (tmp_path / f"log-{number}" for number in count())

        async def revealed() -> Counter[tuple[str, int]] | None:
            """What the log has, once all of it is there: hospitals hand their records in after the effect, and later where that failed."""
            found = reveals(await field.stage.log(next(places)), hurt.federation)
            return found if wanted <= set(found) else None

        await until(revealed, 90, 3.0)
        await field.stage.settled()
        opened = reveals(await field.stage.log(next(places)), hurt.federation)
    (left,) = [number for number, (who, *_) in enumerate(killed) if who == GONE]
    assert set(took_part) == set(range(1, rounds + 1))
    for number, by in took_part.items():
        assert stayed <= set(by), f"round {number} went on without a hospital that was there"
    assert {len(by) for by in took_part.values()} == {3, 4}
    assert killed[left][1] - 2 <= max(number for number, by in took_part.items() if GONE in by) <= killed[left][1] + 3
    assert wanted <= set(opened)
    assert {place: times for place, times in opened.items() if times > 1} == {}
    # Shares that the platform was given, of whatever attempt, are those of the one list that their hospital has claimed for the round.
    gave = Counter((row["round"], row["hospital"]) for row in revealed_in)
    assert {place: times for place, times in gave.items() if times > 1} == {}, "a hospital gave shares in two attempts at a round"
    sums: dict[int, Counter[str]] = {}
    for row in revealed_in:
        claim = claims[row["hospital"]].get(row["round"], "none")
        assert claim.startswith(f"{row['attempt']}:"), f"{row['hospital']} gave shares for a list it had not claimed: {row}, {claim}"
        sums.setdefault(row["round"], Counter())[claim] += 1
    found = {number: [claim for claim, gave in lists.items() if gave >= THRESHOLD] for number, lists in sums.items()}
    assert {number: len(lists) for number, lists in found.items()} == dict.fromkeys(range(1, rounds + 1), 1), "one sum a round"
    assert {row["round"]: row["attempt"] for row in counted_in} == {number: int(one.partition(":")[0]) for number, (one,) in found.items()}
    for name in field.hospitals:
        again = {number for number, (_, times) in trained[name].items() if times > 1}
        before = {number for who, _, number, state in killed if who == name and state == "received"}
        assert again <= before, "a round was trained again whose update was durable, or whose node was not killed"


def reveals(log: list[dict[str, Any]], federation: str) -> Counter[tuple[str, int]]:
    """(node, round) to how often it says that it revealed."""
    return Counter(
        (record["src"]["service"], record["detail"]["round"])
        for record in log
        if record["sub"] == "federation.secure" and record["detail"]["phase"] == "reveal" and federation in str(record)
        if record["src"]["service"].startswith("edge:")
    )


async def hurting(field: Field, calm: str, victims: list[str], dice: random.Random) -> list[tuple[str, float, int, str]]:
    """Kill each of the victims in its turn; (who, after how many rounds, the node's own round and how far it was with it) of each."""
    query, made = "SELECT count(*) AS n FROM federation.rounds WHERE state = 'committed' AND federation <> $1", []

    async def committed() -> int:
        return int((await field.stage.sql(query, calm))[0]["n"])

    for number, victim in enumerate(victims):
        place = EVERY * number + dice.uniform(1, EVERY - 2)

        async def there(place: float = place) -> bool:
            return await committed() >= place

        await until(there, 200, 0.02)
        await asyncio.sleep(dice.uniform(0, 0.3))
        if victim in PLATFORM:
            os.kill(field.stage.run.processes[victim].pid, signal.SIGKILL)
            made.append((victim, place, 0, ""))
            continue
        index = field.hospitals.index(victim)
        node = field.processes[index]
        node.kill()
        node.wait()
        newest = max(tasks(field, victim, calm, other=True).items())
        made.append((victim, place, newest[0], newest[1][0]))
        if victim == BACK:
            field.processes[index] = field.process(victim)
    return made


def tasks(field: Field, name: str, federation: str, *, other: bool = False) -> dict[int, tuple[str, int]]:
    """Round to its state at a hospital and how often it was trained, of a federation, or of the one beside it."""
    which = "<>" if other else "="
    with closing(sqlite3.connect(f"file:{field.folder / name / 'store.db'}?mode=ro", uri=True, timeout=10)) as store:
        found = store.execute(f"SELECT round, state, trained FROM tasks WHERE federation {which} ?", (federation,)).fetchall()
    return {number: (state, trained) for number, state, trained in found}


def claimed(field: Field, name: str, federation: str) -> dict[int, str]:
    """Round to the attempt and the list that a hospital has claimed."""
    with closing(sqlite3.connect(f"file:{field.folder / name / 'store.db'}?mode=ro", uri=True, timeout=10)) as store:
        return dict(store.execute("SELECT round, list FROM secure_opened WHERE federation = ?", (federation,)).fetchall())
