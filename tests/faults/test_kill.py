"""Whatever is killed under load: no effect is lost and none is doubled."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
from tests.faults import loads
from tests.faults.harness import EVENTS, SOAK, Load, Stage, under_fire, verify

pytestmark = [pytest.mark.faults, pytest.mark.slow]

SEED = 20_261
EVERY = ("audit", "federation", "gateway", "governance", "nats", "postgres", "seaweedfs")


def seed_of(name: str) -> int:
    """A seed of its own for every test, the same each time."""
    return random.Random(f"{SEED}:{name}").getrandbits(32)


@pytest.mark.parametrize("victim", EVERY if SOAK else ("governance", "nats", "postgres", "audit"))
async def test_commands_have_each_effect_once(stage: Stage, tmp_path: Path, victim: str) -> None:
    prefix = f"approval-{victim}"
    load = Load(stage, EVENTS)
    await under_fire(load, loads.approvals(load, prefix), [victim], seed_of(prefix))
    await verify(stage, load, tmp_path / "log")
    assert await loads.approvals_kept(stage, prefix) == dict.fromkeys(load.wishes, 1)


@pytest.mark.parametrize("victim", (*EVERY, "everything") if SOAK else ("federation", "gateway"))
async def test_a_hospital_hears_every_fact_once_and_in_order(stage: Stage, tmp_path: Path, victim: str) -> None:
    prefix = f"inbox-{victim}"
    victims = [victim] if victim in EVERY else sorted(stage.run.processes)
    load = Load(stage, EVENTS)
    works = await loads.federations(load, prefix, tmp_path)
    async with loads.following(stage) as hospital:
        before = hospital.cursor
        await under_fire(load, works, victims, seed_of(prefix))
        messages = await verify(stage, load, tmp_path / "log")
        last = await loads.inbox_end(stage, "huashan")
        await hospital.read_up_to(last)
    names = {key.removesuffix("-create") for key in load.wishes if key.endswith("-create")}
    assert await loads.federations_kept(stage, prefix) == dict.fromkeys(names, 1)
    assert [cursor for cursor, _ in hospital.seen] == list(range(before + 1, last + 1))
    told = [event["id"] for _, event in hospital.seen]
    published = [message["id"] for message in messages if "huashan" in message["data"].get("hospitals", ())]
    assert Counter(told) == Counter(published)
    assert told == published, "the order of the inbox is the order of the stream"
