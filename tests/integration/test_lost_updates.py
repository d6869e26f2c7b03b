"""Updates that are gone at the platform before their round could use them: asked for again, and the round ends as it would have."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from tests.federations import living, opened, put_weights, start, submit
from tests.platform import Platform
from tests.secure_parties import HOSPITALS, SAMPLES, VALUES, Parties
from tests.secure_parties import start as start_secure

from medmesh.contracts.federation import (
    ParticipantDropped,
    ReportFailure,
    RoundCommitted,
    RoundKind,
    RoundOpened,
    RoundStored,
    RoundVoided,
    SubmitUpdate,
    UpdateLost,
)
from medmesh.contracts.message import ObjectRef
from medmesh.learning import weights
from medmesh.store.objects.port import file_digest, load
from medmesh_federation import results

THREE = ("huashan", "renji", "xiehe")


async def committed(p: Platform, number: int = 1) -> tuple[RoundCommitted, dict[str, np.ndarray]]:
    event = (await p.wait(RoundCommitted, lambda e: e.data.round == number, timeout=30)).data
    target = p.folder / "committed"
    target.write_bytes(await load(await p.stores.holding(event.model.sha256), event.model))
    return event, weights.load(target)


async def lose(p: Platform, round_: RoundOpened, value: float) -> ObjectRef:
    """What a hospital handed in as `value` is taken from the store."""
    ref = await put_weights(p, p.folder, value)
    await p.stores.scratch.delete(ref.sha256)
    return ref


async def answered_and_lost(p: Platform, round_: RoundOpened) -> None:
    """All three hand in; the first one's, 1.0, is gone when the last one's comes."""
    for hospital, value in zip(THREE, (1.0, 2.0, 4.0), strict=True):
        if hospital == THREE[-1]:
            await lose(p, round_, 1.0)
        assert (await submit(p, round_, hospital, value)).succeeded
    assert (await p.wait(UpdateLost)).data.hospitals == THREE[:1]


@pytest.mark.parametrize("value", [1.0, 5.0])
async def test_a_lost_update_is_asked_for_and_the_very_same_bytes_count_as_before(p: Platform, value: float) -> None:
    federation = await start(p, THREE, rounds=1, baseline=False)
    round_ = (await opened(p, 1)).data
    assert (await submit(p, round_, "huashan", 1.0, samples=1)).succeeded
    await lose(p, round_, 1.0)
    async with living(p, *THREE):
        for hospital, other in (("renji", 2.0), ("xiehe", 4.0)):
            assert (await submit(p, round_, hospital, other, samples=1)).succeeded
        assert (await p.wait(UpdateLost)).data.hospitals == ("huashan",)
        assert not p.emitted(RoundCommitted)
        done = await submit(p, round_, "huashan", value, samples=1 if value == 1.0 else 1000)
        assert done.result == {"late": False} | ({"duplicate": True} if value != 1.0 else {})
        if value != 1.0:  # another model is none that was ever handed in
            assert not p.emitted(RoundCommitted)
            assert (await submit(p, round_, "huashan", 1.0, samples=1000)).succeeded
        event, model = await committed(p)
    assert event.participants == THREE
    np.testing.assert_allclose(model["bias"], 7 / 3, rtol=1e-6)  # as many samples as were said the first time
    records = [r for r in await p.audited("federation") if r["sub"] == "federation.update" and r["why"] == "objects.missing"]
    assert [(r["act"], r["out"], r["detail"]) for r in records] == [("D", 8, {"round": 1})]
    assert {e["id"] for e in records[0]["entities"]} == {federation, "huashan", "1.1"}


async def test_who_cannot_send_it_again_leaves_the_round_to_the_others(p: Platform) -> None:
    federation = await start(p, THREE, rounds=1, baseline=False)
    round_ = (await opened(p, 1)).data
    async with living(p, *THREE):
        await answered_and_lost(p, round_)
        failure = ReportFailure(federation=federation, round=1, attempt=1, code="objects.missing")
        assert (await p.send(failure, p.hospital("huashan"))).succeeded
        assert (await p.wait(ParticipantDropped)).data.hospital == "huashan"
        event, model = await committed(p)
    assert event.participants == ("renji", "xiehe")
    np.testing.assert_allclose(model["bias"], 3.0, rtol=1e-6)


async def test_who_is_silent_is_waited_for_no_longer_than_its_lease(p: Platform) -> None:
    await start(p, THREE, rounds=1, baseline=False, lease_seconds=3, round_deadline_seconds=4)
    round_ = (await opened(p, 1)).data
    async with living(p, *THREE):
        await answered_and_lost(p, round_)
    async with living(p, "renji", "xiehe"):
        assert (await p.wait(ParticipantDropped, timeout=30)).data.reason == "lease"
        assert (await committed(p))[0].participants == ("renji", "xiehe")


async def test_there_is_time_to_send_it_again_after_the_rounds_own_deadline(p: Platform) -> None:
    await start(p, THREE, rounds=1, baseline=False, lease_seconds=10, round_deadline_seconds=4)
    round_ = (await opened(p, 1)).data
    async with living(p, *THREE):
        await answered_and_lost(p, round_)
        await asyncio.sleep(max(0.0, (round_.deadline - datetime.now(UTC)).total_seconds()) + 1)
        assert not p.emitted(RoundCommitted)
        assert (await submit(p, round_, "huashan", 1.0)).result == {"late": False}
        assert (await committed(p))[0].participants == THREE


async def test_a_model_of_the_baseline_is_asked_for_when_it_is_to_be_kept(p: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    keep, gone = results.store, list[str]()

    async def after_a_loss(runtime: Any, ports: Any, row: Any) -> None:
        if row.kind == RoundKind.BASELINE and not gone:
            gone.append((await lose(p, round_, 7.0)).sha256)
        await keep(runtime, ports, row)

    monkeypatch.setattr(results, "store", after_a_loss)
    await start(p, THREE, rounds=1, baseline=True)
    async with living(p, *THREE):
        round_ = (await opened(p, 1)).data
        for hospital in THREE:
            assert (await submit(p, round_, hospital, 1.0)).succeeded
        round_ = (await opened(p, 2, kind=RoundKind.BASELINE)).data
        for hospital, value in zip(THREE, (7.0, 8.0, 9.0), strict=True):
            assert (await submit(p, round_, hospital, value)).succeeded
        event = (await p.wait(UpdateLost)).data
        assert (event.round, event.hospitals) == (2, THREE[:1])
        assert (await submit(p, round_, "huashan", 7.0)).succeeded
        await p.wait(RoundStored, lambda e: e.data.round == 2, timeout=30)
        assert await p.stores.kept.size(gone[0]) is not None


@pytest.mark.parametrize("again", [True, False])
async def test_a_lost_vector_of_a_secure_sum_opens_it_once_it_is_there_again(p: Platform, again: bool) -> None:
    """Its masks are in the others' vectors: without it the sum stays closed, and no other is opened of the round."""
    async with living(p, *HOSPITALS):
        await start_secure(p, lease_seconds=3, round_deadline_seconds=60 if again else 15)
        parties = Parties(p, (await opened(p, 1)).data)
        await parties.vectors()
        survivors = await parties.survive(HOSPITALS)
        sha256, size = file_digest(p.folder / "vector-renji")
        ref = ObjectRef(sha256=sha256, bytes=size)
        await p.stores.scratch.delete(ref.sha256)
        await parties.reveal(HOSPITALS, survivors)
        assert (await p.wait(UpdateLost, timeout=30)).data.hospitals == ("renji",)
        if not again:
            assert (await p.wait(RoundVoided, timeout=60)).data.skipped
            return
        await p.stores.scratch.put_file(p.folder / "vector-renji", ref.sha256)
        command = SubmitUpdate(federation=parties.round.federation, round=1, attempt=1, update=ref, samples=1)
        assert (await p.send(command, p.hospital("renji"))).result == {"late": False}
        event, model = await committed(p)
    assert event.participants == HOSPITALS
    exact = sum(VALUES[n] * SAMPLES[n] for n in HOSPITALS) / sum(SAMPLES.values())
    np.testing.assert_allclose(model["weight"], exact, rtol=1e-6)
