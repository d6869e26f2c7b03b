"""Rounds that do not wait for the slow, on real servers with pretended hospitals; the oracle is plain arithmetic."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from tests.federations import alive, opened, put_weights, submit, view
from tests.federations import start as started
from tests.platform import Platform

from medmesh.contracts.federation import FederationCompleted, RoundCommitted, RoundOpened, RoundStored, UpdateLost, WithdrawFromFederation
from medmesh.contracts.message import ObjectRef
from medmesh.learning import weights
from medmesh.service.runtime import running
from medmesh_federation.service import SERVICE

FAST, SLOW = ("huashan", "renji"), "xiehe"
HOSPITALS = (*FAST, SLOW)
PACE = {"quorum": 2, "staleness": 2, "decay": "1"}


async def start(p: Platform, **changed: object) -> str:
    """It begins as soon as all have accepted."""
    now = datetime.now(UTC)
    return await started(p, HOSPITALS, accept_by=now + timedelta(seconds=60), start_at=now, lease_seconds=120, **changed)


async def committed(p: Platform, number: int) -> RoundCommitted:
    return (await p.wait(RoundCommitted, lambda event: event.data.round == number, timeout=60)).data


async def bias(p: Platform, ref: ObjectRef) -> float:
    """Every number of a model, which are all the same."""
    store = await p.stores.holding(ref.sha256)
    (p.folder / "read").write_bytes(b"".join([piece async for piece in store.read(ref.sha256)]))
    found = weights.load(p.folder / "read")
    assert np.ptp(np.concatenate([array.ravel() for array in found.values()])) == 0
    return float(found["bias"][0])


async def test_the_fast_go_on_and_the_slow_count_later_with_less_weight(p: Platform) -> None:
    federation = await start(p, pace=PACE, rounds=3)
    first: RoundOpened = (await opened(p, 1)).data
    assert first.hospitals == HOSPITALS
    for place, hospital in enumerate(FAST):
        assert (await submit(p, first, hospital, 10.0 + place, samples=10)).succeeded
    assert (await committed(p, 1)).participants == FAST, "two of three are enough, long before the deadline"
    one = await bias(p, (await committed(p, 1)).model)
    assert one == 10.5
    second = (await opened(p, 2)).data
    assert second.hospitals == FAST, "who still trains is not told of another round"
    await alive(p, *HOSPITALS)
    # The slow one has trained from the first weights, which are zero, and arrives while the second round is open.
    assert (await submit(p, first, SLOW, 4.0, samples=20)).result == {"late": True}
    assert (await submit(p, second, FAST[1], 12.0, samples=10)).succeeded
    done = await committed(p, 2)
    assert done.participants == (FAST[1], SLOW)
    two = await bias(p, done.model)
    # Its change of 4 is added to the present model, and its 20 samples weigh (1 + 1) ** -1.
    assert two == pytest.approx((12.0 * 10 + (10.5 + 4.0) * 10) / 20)
    stored = (await p.wait(RoundStored, lambda event: event.data.round == 2)).data
    assert (stored.hospitals, stored.stale) == ((FAST[1], SLOW), {SLOW: 1}), "it may release the update of its own round"
    stored = (await p.wait(RoundStored, lambda event: event.data.round == 1)).data
    assert stored.hospitals == FAST, "who still trained keeps its update until it counts"
    third = (await opened(p, 3)).data
    assert third.hospitals == (FAST[1], SLOW), "the other one is the slow one now"
    await alive(p, *HOSPITALS)
    for hospital in third.hospitals:
        await submit(p, third, hospital, 20.0)
    assert (await committed(p, 3)).participants == third.hospitals
    completed = (await p.wait(FederationCompleted)).data
    assert await bias(p, completed.model) == 20.0
    answers = {(r.round, a.hospital): (a.late, a.counted) for r in (await view(p, federation)).rounds for a in r.answers}
    assert answers[1, SLOW] == (True, 2)
    assert answers[1, FAST[0]] == (False, None)
    left = await p.send(WithdrawFromFederation(federation=federation), p.hospital(SLOW))
    assert left.result == {"state": "withdrawn", "rounds": 2}, "in the second late, and in the third"


async def test_what_comes_too_late_counts_nowhere_and_who_left_does_not_count(p: Platform) -> None:
    federation = await start(p, pace={**PACE, "staleness": 1}, rounds=4)
    first = (await opened(p, 1)).data
    for number in (1, 2):
        round_ = (await opened(p, number)).data
        assert round_.hospitals == (HOSPITALS if number == 1 else FAST)
        for hospital in FAST:
            await submit(p, round_, hospital, 10.0 * number)
        await alive(p, *HOSPITALS)
    third = (await opened(p, 3)).data
    assert third.hospitals == HOSPITALS, "what it trains since the first round would count no more: it begins anew"
    assert (await submit(p, first, SLOW, 1000.0)).result == {"late": True}
    for hospital in FAST:
        await submit(p, third, hospital, 30.0)
    assert (await committed(p, 3)).participants == FAST
    fourth = (await opened(p, 4)).data
    assert fourth.hospitals == FAST
    await submit(p, third, SLOW, 1000.0)
    assert (await p.send(WithdrawFromFederation(federation=federation), p.hospital(SLOW))).succeeded
    for hospital in FAST:
        await submit(p, fourth, hospital, 40.0)
    assert await bias(p, (await committed(p, 4)).model) == 40.0
    assert {a.counted for r in (await view(p, federation)).rounds for a in r.answers} == {None}


async def test_a_coordinator_that_begins_anew_makes_the_same_of_late_updates(p: Platform) -> None:
    await start(p, pace=PACE, rounds=2)
    first = (await opened(p, 1)).data
    for place, hospital in enumerate(FAST):
        await submit(p, first, hospital, 10.0 + place)
    second = (await opened(p, 2)).data
    await submit(p, first, SLOW, 4.0)
    runtime = p.runtimes["federation"]
    await runtime.cancel_background()  # as after a kill: it decides no more, whatever comes
    assert (await submit(p, second, FAST[0], 30.0)).succeeded
    async with running(SERVICE, runtime.settings.model_copy(update={"port": 0})):
        await alive(p, *HOSPITALS)
        done = await committed(p, 2)
        assert done.participants == (FAST[0], SLOW)
        assert await bias(p, done.model) == pytest.approx((30.0 * 1 + 14.5 / 2) / 1.5)


async def test_a_late_update_that_is_lost_holds_nobody_up_and_counts_when_it_is_there_again(p: Platform) -> None:
    federation = await start(p, pace=PACE, rounds=3)
    first = (await opened(p, 1)).data
    for hospital in FAST:
        await submit(p, first, hospital, 10.0)
    second = (await opened(p, 2)).data
    await alive(p, *HOSPITALS)
    await submit(p, first, SLOW, 4.0)
    await p.stores.scratch.delete((await put_weights(p, p.folder, 4.0)).sha256)
    await submit(p, second, FAST[0], 20.0)
    lost = (await p.wait(UpdateLost, timeout=30)).data
    assert (lost.round, lost.hospitals) == (1, (SLOW,))
    await submit(p, second, FAST[1], 20.0)
    done = await committed(p, 2)
    assert (done.participants, await bias(p, done.model)) == (FAST, 20.0)
    third = (await opened(p, 3)).data
    await alive(p, *HOSPITALS)
    await submit(p, first, SLOW, 7.0, samples=1000)  # which are other bytes than it handed in first
    assert (await submit(p, first, SLOW, 4.0, samples=1000)).result == {"late": True}
    await submit(p, third, FAST[0], 30.0)
    done = await committed(p, 3)
    assert done.participants == (FAST[0], SLOW)
    assert await bias(p, done.model) == pytest.approx((30.0 + 24.0 / 3) / (1 + 1 / 3), rel=1e-4), "as many samples as it said first"
    answers = {(r.round, a.hospital): (a.late, a.counted) for r in (await view(p, federation)).rounds for a in r.answers}
    assert answers[1, SLOW] == (True, 3)
