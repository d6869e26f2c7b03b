"""Whatever is killed under load: no effect is lost and none is doubled."""

from __future__ import annotations

import asyncio
import random
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
