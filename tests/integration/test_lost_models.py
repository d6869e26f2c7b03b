"""Committed models that are gone at the platform before their copy was made: made again of the same updates, to the same bytes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import insert, select
from tests.federations import living, opened, start, submit, view
from tests.platform import Platform
from tests.secure_parties import HOSPITALS, Parties
from tests.secure_parties import start as start_secure

from medmesh.contracts.federation import (
    FederationCompleted,
    ReportFailure,
    RoundCommitted,
    RoundStored,
    SubmitUpdate,
    UpdateLost,
    WithdrawFromFederation,
)
from medmesh.contracts.message import ObjectRef
from medmesh.contracts.plan import Privacy
from medmesh.store.objects.port import file_digest
from medmesh_federation import remaking, results
from medmesh_federation.tables import answers, rounds

THREE = ("huashan", "renji", "xiehe")


def losing(monkeypatch: pytest.MonkeyPatch, number: int, *, updates: bool = False) -> list[str]:
    """Everything that a round left is lost when it is to be copied for the first time, its updates with it where that is said; answers
    what was lost."""
    keep, lost = results.store, list[str]()

    async def after_a_loss(runtime: Any, ports: Any, row: Any) -> None:
        if row.round == number and not lost:
            async with runtime.unit() as uow:
                given = await uow.all(select(answers).where(answers.c.federation == row.federation))
            lost.extend(ref["sha256"] for ref in (row.model, row.state_object, *(row.personal or {}).values()) if ref)
            for sha256 in lost + [a.update["sha256"] for a in given if updates and a.round == number]:
                await ports.models.delete(sha256)
        await keep(runtime, ports, row)

    monkeypatch.setattr(results, "store", after_a_loss)
    return lost


@pytest.mark.parametrize("algorithm", ["fedavg", "fedadam", "ditto"])
@pytest.mark.parametrize("updates", [False, True], ids=["alone", "with its updates"])
async def test_it_is_made_again_of_what_hospitals_still_have(
    p: Platform,
    monkeypatch: pytest.MonkeyPatch,
    algorithm: str,
    updates: bool,
) -> None:
    lost = losing(monkeypatch, 2, updates=updates)
    federation = await start(p, THREE, rounds=2, baseline=False, algorithm=algorithm)
    async with living(p, *THREE):
        for number in (1, 2):
            round_ = (await opened(p, number)).data
            for hospital, value in zip(THREE, (1.0, 2.0, 4.0), strict=True):
                assert (await submit(p, round_, hospital, 10 * number + value, samples=int(value))).succeeded
        if updates:
            assert (await p.wait(UpdateLost, timeout=30)).data.hospitals == THREE
            for hospital, value in zip(THREE, (21.0, 22.0, 24.0), strict=True):
                assert not [e for e in p.emitted(RoundStored) if e.data.round == 2], "not of two hospitals' updates"
                assert (await submit(p, round_, hospital, value, samples=1000)).succeeded
        stored = (await p.wait(RoundStored, lambda e: e.data.round == 2, timeout=30)).data
        for sha256 in lost:
            assert await p.stores.kept.size(sha256) is not None
    event = (await p.wait(RoundCommitted, lambda e: e.data.round == 2)).data
    assert stored.model == event.model and event.model.sha256 in lost
    assert len(p.emitted(RoundCommitted)) == len({e.data.chain for e in p.emitted(RoundCommitted)}), "nothing is committed twice"
    assert federation == event.federation


async def test_a_secure_sum_that_was_opened_is_the_same_again(p: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the same vectors, and of what hospitals revealed for them: none reveals more."""
    lost = losing(monkeypatch, 1, updates=True)
    async with living(p, *HOSPITALS):
        await start_secure(p)
        parties = Parties(p, (await opened(p, 1)).data)
        await parties.vectors()
        await parties.reveal(HOSPITALS, await parties.survive(HOSPITALS))
        assert (await p.wait(UpdateLost, timeout=30)).data.hospitals == HOSPITALS
        for name in HOSPITALS:
            sha256, size = file_digest(p.folder / f"vector-{name}")
            await p.stores.scratch.put_file(p.folder / f"vector-{name}", sha256)
            ref = ObjectRef(sha256=sha256, bytes=size)
            command = SubmitUpdate(federation=parties.round.federation, round=1, attempt=1, update=ref, samples=1)
            assert (await p.send(command, p.hospital(name))).result == {"late": False}
        done = (await p.wait(FederationCompleted, timeout=30)).data
    assert done.model is not None and done.model.sha256 in lost
    assert await p.stores.kept.size(done.model.sha256) is not None


async def test_noise_is_not_drawn_twice(p: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model with another noise would be another release: it stays lost, and its round is tried once."""
    lost, tried, remake = losing(monkeypatch, 1), list[int](), remaking.remake

    async def told(runtime: Any, ports: Any, row: Any) -> Any:
        tried.append(row.round)
        return await remake(runtime, ports, row)

    monkeypatch.setattr(remaking, "remake", told)
    monkeypatch.setattr("medmesh_federation.coordinator.STORE_SECONDS", 0.2)
    privacy = Privacy(unit="hospital", epsilon="50", delta="0.00001", clip="1", noise="1")
    federation = await start(p, THREE, rounds=1, baseline=False, privacy=privacy, min_participants=3)
    async with living(p, *THREE):
        round_ = (await opened(p, 1)).data
        for hospital, value in zip(THREE, (1.0, 2.0, 4.0), strict=True):
            assert (await submit(p, round_, hospital, value)).succeeded
        await p.wait(RoundCommitted)
        await asyncio.sleep(2)
    assert tried == [1]
    seen = await view(p, federation)
    assert seen.state == "running" and seen.gone is not None
    assert (seen.gone.round, seen.gone.why, seen.gone.back) == (1, "noise", None), "no round is left that would train after it"
    assert await p.stores.kept.size(lost[0]) is None and await p.stores.scratch.size(lost[0]) is None
    async with p.runtimes["federation"].unit() as uow:
        assert not (await uow.execute(select(rounds.c.stored))).scalar_one()


@pytest.mark.parametrize("why", ["left", "unable"])
async def test_one_that_left_is_needed_where_its_update_is_gone_too(
    p: Platform,
    monkeypatch: pytest.MonkeyPatch,
    why: str,
) -> None:
    """It hands nothing in any more: people are told so, and the round before can be gone back to."""
    lost = losing(monkeypatch, 2, updates=True)
    federation = await start(p, THREE, rounds=3, baseline=False)
    async with living(p, *THREE):
        for number in (1, 2):
            round_ = (await opened(p, number)).data
            for hospital, value in zip(THREE, (1.0, 2.0, 4.0), strict=True):
                assert (await submit(p, round_, hospital, 10 * number + value)).succeeded
        await p.wait(UpdateLost, timeout=30)
        assert (await view(p, federation)).gone is None, "it is on its way"
        failure = ReportFailure(federation=federation, round=2, attempt=1, code="objects.missing")
        said = WithdrawFromFederation(federation=federation) if why == "left" else failure
        assert (await p.send(said, p.hospital("xiehe"))).succeeded
        for hospital, value in zip(("huashan", "renji"), (21.0, 22.0), strict=True):
            assert (await submit(p, round_, hospital, value)).succeeded
        async with asyncio.timeout(60):
            while (seen := (await view(p, federation)).gone) is None:
                await asyncio.sleep(0.1)
    assert (seen.round, seen.why, seen.back) == (2, why, 1)
    assert await p.stores.kept.size(lost[0]) is None


async def test_those_that_are_gone_for_good_keep_no_other_waiting(p: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    """More of them than are looked at in one go: a round after them is stored as ever."""
    federation = await start(p, THREE, rounds=2, baseline=False)
    async with living(p, *THREE):
        round_ = (await opened(p, 1)).data
        async with p.runtimes["federation"].unit() as uow:
            for number in range(30):
                values = {"federation": f"other-{number}", "round": 1, "attempt": 1, "kind": "train", "state": "committed", "models": []}
                values |= {"base": round_.base.model_dump(), "assigned": [], "opened_at": uow.now, "deadline": uow.now, "stored": False}
                values |= {"model": {"sha256": f"{number:064d}", "bytes": 8}, "gone_since": uow.now, "gone_why": "noise"}
                await uow.execute(insert(rounds).values(values))
        for number in (1, 2):
            round_ = (await opened(p, number)).data
            for hospital in THREE:
                assert (await submit(p, round_, hospital, 10.0 * number)).succeeded
        assert (await p.wait(FederationCompleted, timeout=60)).data.federation == federation
