"""A hospital's update is deleted here once nobody needs it, whatever became of its round; a second one is recorded and never kept."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import numpy as np
import pytest
from tests.federations import living, opened, put_weights, start, submit
from tests.integration.test_pace import HOSPITALS, PACE, SLOW
from tests.integration.test_sweeping import aged
from tests.platform import Platform

from medmesh.contracts.federation import CancelFederation, RoundCommitted, RoundOpened, RoundStored, RoundVoided, SubmitUpdate
from medmesh.learning import weights
from medmesh.service.runtime import running
from medmesh_federation import clearing, handlers
from medmesh_federation.service import SERVICE

THREE = ("huashan", "renji", "xiehe")


def digest(p: Platform, value: float) -> str:
    return hashlib.sha256((p.folder / f"w-{value}").read_bytes()).hexdigest()


async def here(p: Platform, value: float) -> bool:
    return await p.stores.scratch.size(digest(p, value)) is not None


async def gone(p: Platform, *values: float) -> None:
    """Wait for it."""
    async with asyncio.timeout(20):
        for value in values:
            while await here(p, value):
                await asyncio.sleep(0.05)


async def committed(p: Platform, number: int) -> None:
    await p.wait(RoundCommitted, lambda e: e.data.round == number, timeout=30)


async def updates(p: Platform) -> list[tuple[str, str, list[tuple[str, Any]]]]:
    """What was recorded of updates: the hospital, the digest, the detail."""
    records = [r for r in await p.audited("federation") if r["sub"] == "federation.update"]
    found = [(r["agents"][0]["who"], [e["digest"] for e in r["entities"] if e["type"] == "update"], r["detail"]) for r in records]
    return sorted((who.removeprefix("hospital:"), digests[0], sorted(detail.items())) for who, digests, detail in found)


async def test_what_came_to_nothing_came_late_or_came_twice_is_deleted_and_recorded(p: Platform) -> None:
    await start(p, THREE, rounds=2, round_deadline_seconds=4, baseline=False)
    async with living(p, *THREE):
        first = (await opened(p, 1)).data
        assert (await submit(p, first, "xiehe", 77.0)).result == {"late": False}
        assert (await submit(p, first, "xiehe", 77.0)).result == {"late": False}, "the very same bytes once more"
        assert (await submit(p, first, "xiehe", 70.0)).result == {"late": False, "duplicate": True}
        await gone(p, 70.0)
        assert await here(p, 77.0), "the first one counts"
        await p.wait(RoundVoided, timeout=30)
        await gone(p, 77.0)
        second = (await opened(p, 1, attempt=2)).data
        for hospital, value in (("huashan", 1.0), ("renji", 2.0)):
            assert (await submit(p, second, hospital, value)).succeeded
        await committed(p, 1)
        assert (await submit(p, second, "xiehe", 78.0)).result == {"late": True}
        assert (await submit(p, second, "xiehe", 79.0)).result == {"late": True, "duplicate": True}
        await gone(p, 1.0, 2.0, 78.0, 79.0)
    gave = [("xiehe", 77.0, False), ("huashan", 1.0, False), ("renji", 2.0, False), ("xiehe", 78.0, True)]
    twice = [("xiehe", 70.0, False), ("xiehe", 79.0, True)]
    size = (p.folder / "w-1.0").stat().st_size
    wanted = [(who, digest(p, value), [("bytes", size), ("late", late)]) for who, value, late in gave]
    wanted += [(who, digest(p, value), [("bytes", size), ("duplicate", True), ("late", late)]) for who, value, late in twice]
    assert await updates(p) == sorted(wanted)


async def test_what_is_refused_is_not_kept_either(p: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handlers, "REFUSED_SECONDS", 2.0)
    await start(p, THREE, rounds=1, baseline=False)
    round_ = (await opened(p, 1)).data
    path = p.folder / "foreign"
    weights.save({"patients": np.zeros(3, np.float32)}, path)
    ref = await p.stores.scratch.put_file(path, hashlib.sha256(path.read_bytes()).hexdigest())
    about = {"federation": round_.federation, "round": 1, "attempt": 1}
    refused = await p.send(SubmitUpdate(**about, update=ref, samples=1), p.hospital("renji"))
    assert (refused.problem or {})["code"].startswith("weights."), "not that it is gone"
    async with asyncio.timeout(20):
        while await p.stores.scratch.size(ref.sha256) is not None:
            await asyncio.sleep(0.05)
    # Whoever names what another hospital gave does not have it deleted.
    assert (await submit(p, round_, "huashan", 4.0)).succeeded
    stolen = await put_weights(p, p.folder, 4.0)
    wrong = SubmitUpdate(**{**about, "round": 3}, update=stolen, samples=1)
    assert not (await p.send(wrong, p.hospital("renji"))).succeeded
    await asyncio.sleep(8)  # a look every five seconds
    assert await here(p, 4.0)


@pytest.mark.parametrize("what", ["void", "cancelled"])
async def test_what_a_kill_left_of_a_round_is_found_again(p: Platform, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    async def killed(*_: Any) -> None:
        await asyncio.Event().wait()

    federation = await start(p, THREE, rounds=2, round_deadline_seconds=4 if what == "void" else 60, baseline=False)
    round_ = (await opened(p, 1)).data
    with monkeypatch.context() as patched:
        patched.setattr(clearing, "clear", killed)
        async with living(p, *THREE):
            assert (await submit(p, round_, "xiehe", 77.0)).succeeded
            if what == "void":
                await p.wait(RoundVoided, timeout=30)
            else:
                done = await p.send(CancelFederation(federation=federation, reason="enough"), p.person("li", "researcher"))
                assert done.succeeded
        await asyncio.sleep(0.5)
        assert await here(p, 77.0)
        runtime = p.runtimes["federation"]
        await runtime.cancel_background()
    async with running(SERVICE, runtime.settings):
        await gone(p, 77.0)


async def test_late_updates_that_a_kill_left_are_swept(p: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    async def killed(*_: Any) -> None:
        await asyncio.Event().wait()

    await start(p, THREE, rounds=2, round_deadline_seconds=4, baseline=False)
    async with living(p, *THREE):
        round_ = (await opened(p, 1)).data
        for hospital, value in (("huashan", 1.0), ("renji", 2.0)):
            assert (await submit(p, round_, hospital, value)).succeeded
        await p.wait(RoundStored, timeout=30)
        await gone(p, 1.0, 2.0)
        with monkeypatch.context() as patched:
            patched.setattr(clearing, "clear", killed)
            assert (await submit(p, round_, "xiehe", 78.0)).result == {"late": True}
            await asyncio.sleep(0.5)
            assert await here(p, 78.0)
            assert digest(p, 78.0) not in await aged(p)


async def test_what_came_late_stays_until_it_counted_or_is_too_old(p: Platform) -> None:
    async def round_of(number: int, *gives: tuple[str, float]) -> RoundOpened:
        round_ = (await opened(p, number)).data
        for hospital, value in gives:
            assert (await submit(p, round_, hospital, value)).succeeded
        return round_

    await start(p, HOSPITALS, pace={**PACE, "staleness": 1}, rounds=5, baseline=False)
    async with living(p, *HOSPITALS):
        first = await round_of(1, ("huashan", 1.0), ("renji", 2.0))
        await p.wait(RoundStored, lambda e: e.data.round == 1, timeout=30)
        assert (await submit(p, first, SLOW, 61.0)).result == {"late": True}
        await gone(p, 1.0, 2.0)
        assert await here(p, 61.0), "round 2 takes it"
        assert digest(p, 61.0) in await aged(p)
        second = await round_of(2, ("huashan", 3.0))
        await committed(p, 2)
        await gone(p, 61.0)
        await round_of(3, ("huashan", 5.0), (SLOW, 6.0))
        await committed(p, 3)
        assert (await submit(p, second, "renji", 63.0)).result == {"late": True}
        await round_of(4, ("huashan", 7.0), (SLOW, 8.0))
        await gone(p, 63.0)
