"""Whatever is killed under load: no effect is lost and none is doubled."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from pathlib import Path

import pytest
from tests.faults import loads
from tests.faults.harness import EVENTS, Load, Stage, killer, verify

pytestmark = [pytest.mark.faults, pytest.mark.slow]

EVERYTHING = ("audit", "federation", "gateway", "governance", "nats", "postgres", "seaweedfs")
SEED = 20_261


def seed_of(name: str) -> int:
    return random.Random(f"{SEED}:{name}").getrandbits(32)


@pytest.mark.parametrize("victim", ["governance", "gateway", "nats", "postgres", "audit"])
async def test_commands_have_each_effect_once(stage: Stage, tmp_path: Path, victim: str) -> None:
    prefix = f"approval-{victim}"
    load = Load(stage, EVENTS)
    killing = asyncio.create_task(killer(stage, load, [victim], seed_of(prefix)))
    await load.run(loads.approvals(load, prefix))
    kills = await killing
    print(f"{victim}: {load.seconds:.1f} s, kills at {[kill.done for kill in kills]}, repeated after {dict(load.failures)}")
    assert all(kill.done < load.total for kill in kills)
    await verify(stage, load, tmp_path / "log")
    kept = await loads.approvals_kept(stage, prefix)
    assert kept == dict.fromkeys(load.wishes, 1)


@pytest.mark.parametrize("victim", ["federation", "gateway", "nats", "postgres"])
async def test_a_hospital_hears_every_fact_once_and_in_order(stage: Stage, tmp_path: Path, victim: str) -> None:
    prefix = f"inbox-{victim}"
    load = Load(stage, EVENTS)
    works = await loads.federations(load, prefix, tmp_path)
    async with loads.following(stage) as hospital:
        before = hospital.cursor
        killing = asyncio.create_task(killer(stage, load, [victim], seed_of(prefix)))
        await load.run(works)
        kills = await killing
        print(f"{victim}: {load.seconds:.1f} s, kills at {[kill.done for kill in kills]}, repeated after {dict(load.failures)}")
        assert all(kill.done < load.total for kill in kills)
        messages = await verify(stage, load, tmp_path / "log")
        last = await loads.inbox_end(stage, "huashan")
        await hospital.read_up_to(last)
    assert await loads.federations_kept(stage, prefix) == {key.removesuffix("-create"): 1 for key in load.wishes if key.endswith("-create")}
    cursors = [cursor for cursor, _ in hospital.seen]
    assert cursors == list(range(before + 1, last + 1))
    told = [event["id"] for _, event in hospital.seen]
    published = [message["id"] for message in messages if "huashan" in message["data"].get("hospitals", ())]
    assert Counter(told) == Counter(published)
    assert told == published, "the order of the stream is the order of the inbox"
