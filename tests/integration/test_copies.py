"""Where no folder is shared, the coordinator works with copies of what lies in S3: they go, the updates' with their round."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from tests.federations import SETTINGS, living, opened, start, submit
from tests.platform import Platform, platform

from medmesh.contracts.federation import CancelFederation, RoundStored, SubmitUpdate
from medmesh.contracts.message import ObjectRef
from medmesh.embedded.testing import RunningServers
from medmesh.embedded.testing import servers as embedded
from medmesh.learning import weights
from medmesh.store.objects.port import ObjectStore
from medmesh_federation.copies import Copies
from medmesh_federation.service import SERVICE
from medmesh_federation.sweeping import sweep

HOSPITALS = ("huashan", "renji")


@pytest.fixture
async def p(servers: RunningServers, private: Path) -> AsyncIterator[Platform]:
    async with (
        embedded(private / "s3", nats=False, postgres=False, s3=True) as s3,
        platform(servers, private, SERVICE, settings=SETTINGS, s3=s3) as made,
    ):
        yield made


def lying(p: Platform) -> set[str]:
    """Every file that federation has on this machine, but what it knows of whom it trusts."""
    return {path.name for path in (p.folder / "state" / "federation").rglob("*") if path.is_file() and len(path.name) >= 64}


async def gone(p: Platform, *names: str) -> None:
    """Wait until these do not lie there any more."""
    async with asyncio.timeout(10):
        while lying(p) & set(names):
            await asyncio.sleep(0.05)


def name(p: Platform, value: float) -> str:
    return hashlib.sha256((p.folder / f"w-{value}").read_bytes()).hexdigest()


async def test_updates_go_with_their_round_and_everything_else_at_once(p: Platform) -> None:
    await start(p, HOSPITALS, rounds=2, baseline=False)
    assert lying(p) == set(), "the first weights were looked at, and are not needed now"
    first = (await opened(p, 1)).data
    async with living(p, *HOSPITALS):
        assert (await submit(p, first, "huashan", 1.0)).succeeded
        assert lying(p) == {name(p, 1.0)}, "it is read again with the others"
        assert (await submit(p, first, "renji", 3.0)).succeeded
        await p.wait(RoundStored, lambda e: e.data.round == 1, timeout=30)
        await gone(p, name(p, 1.0), name(p, 3.0))
        second = (await opened(p, 2)).data
        for hospital in HOSPITALS:
            assert (await submit(p, second, hospital, 5.0)).succeeded
        await p.wait(RoundStored, lambda e: e.data.round == 2, timeout=30)
        await gone(p, *lying(p))
        assert lying(p) == set()


async def test_a_hospital_that_sends_others_again_and_again_leaves_nothing_here(p: Platform) -> None:
    await start(p, HOSPITALS, rounds=1, baseline=False)
    round_ = (await opened(p, 1)).data
    async with living(p, *HOSPITALS):
        for value in (1.0, 2.0, 3.0):
            assert (await submit(p, round_, "huashan", value)).succeeded
        path = p.folder / "wrong"
        weights.save({"weight": np.full((64, 2), np.nan, np.float32), "bias": np.zeros(2, np.float32)}, path)
        wrong = await p.stores.scratch.put(path.read_bytes())
        about = {"federation": round_.federation, "round": 1, "attempt": 1}
        assert not (await p.send(SubmitUpdate(**about, update=wrong, samples=10), p.hospital("renji"))).succeeded
        assert lying(p) == {name(p, 1.0)}, "the one that counts"


async def test_of_a_federation_that_was_cancelled_nothing_stays_after_the_sweep(p: Platform) -> None:
    federation = await start(p, HOSPITALS, rounds=1, baseline=False)
    round_, runtime = (await opened(p, 1)).data, p.runtimes["federation"]
    async with living(p, *HOSPITALS):
        assert (await submit(p, round_, "huashan", 1.0)).succeeded
    await sweep(runtime, runtime.ports)
    assert lying(p) == {name(p, 1.0)}, "its round is open"
    assert (await p.send(CancelFederation(federation=federation, reason="enough"), p.person("li", "researcher"))).succeeded
    await sweep(runtime, runtime.ports)
    assert lying(p) == set()


async def test_what_is_larger_than_was_said_or_than_the_plan_asks_for_is_not_even_copied(
    p: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    await start(p, HOSPITALS, rounds=1, baseline=False)
    round_, taken = (await opened(p, 1)).data, []

    async def take(copies: Copies, store: ObjectStore, ref: ObjectRef) -> Path:
        taken.append(ref.sha256)
        return await original(copies, store, ref)

    original = Copies.take
    monkeypatch.setattr(Copies, "take", take)
    ref = await p.stores.scratch.put(bytes(3_000_000))
    about = {"federation": round_.federation, "round": 1, "attempt": 1, "samples": 10}
    async with living(p, *HOSPITALS):
        for said in (ref, ref.model_copy(update={"bytes": 600})):
            done = await p.send(SubmitUpdate(**about, update=said), p.hospital("renji"))
            assert done.problem and done.problem["code"] == "federation.update"
        assert taken == []
        assert (await submit(p, round_, "renji", 1.0)).succeeded
    assert taken == [name(p, 1.0)]
