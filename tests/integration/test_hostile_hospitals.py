"""What one hospital hands in that others would pay for: it is refused, and the round goes on without it."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import insert, select
from tests.federations import living, opened, put_weights, submit
from tests.federations import start as begun
from tests.platform import Platform
from tests.secure_parties import HOSPITALS, Parties, say, start, told

from medmesh.contracts.federation import (
    ReportFailure,
    RoundCommitted,
    RoundOpened,
    RoundStored,
    SecurePhase,
    SubmitSecure,
    SubmitUpdate,
)
from medmesh.contracts.message import OperationFinished
from medmesh.federated.secure.contributor import Contributor, keys_of
from medmesh_federation import results
from medmesh_federation.answering import LOCK
from medmesh_federation.tables import rounds

TWO = ("huashan", "renji")


SMALL_ORDER = (
    "0" * 64,
    "1".rjust(2, "0").ljust(64, "0"),
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    "ec".ljust(62, "f") + "7f",
)
"""The points of curve25519 with which every secret agrees on the same: nought (RFC 7748, 6.1)."""


def weak(one: Contributor, which: str, point: str) -> Contributor:
    """It says that this is one of its keys."""
    keys = one.public().model_copy(update={which: point})
    one.public = lambda: keys  # type: ignore[method-assign]
    return one


def refusal(done: OperationFinished) -> str:
    assert not done.succeeded and done.problem
    return str(done.problem["code"])


async def test_what_is_said_for_others_has_a_length_at_which_all_of_it_can_be_passed_on(p: Platform) -> None:
    await start(p)
    parties = Parties(p, (await opened(p, 1)).data)
    renji, now = parties.all["renji"], datetime.now(UTC)
    signed = renji.advertise(parties.signer("renji"), now)
    padded = signed + 20 * (signed.splitlines()[-1].replace("renji", "other") + "\n")
    assert refusal(await say(p, parties.round, "renji", SecurePhase.KEYS, {"renji": padded})) == "federation.update"
    await parties.keys()
    async with living(p, *HOSPITALS):
        for name in ("renji", "ruijin"):
            await told(p, SecurePhase.SHARES, name)
            for text in ("x" * 30_000, "\0"):
                long = dict.fromkeys(HOSPITALS, "") | {"huashan": text}
                assert refusal(await say(p, parties.round, name, SecurePhase.SHARES, long)) == "federation.update"
        await parties.shares()
        assert set(await told(p, SecurePhase.VECTORS, "huashan")) == set(HOSPITALS)


async def test_keys_with_which_nobody_would_take_part_are_refused(p: Platform) -> None:
    await start(p)
    parties = Parties(p, (await opened(p, 1)).data)
    session, now = parties.all["renji"].session, datetime.now(UTC)

    async def said(name: str, one: Contributor) -> OperationFinished:
        return await say(p, parties.round, name, SecurePhase.KEYS, {name: one.advertise(parties.signer(name), now)})

    for point in SMALL_ORDER:
        for which in ("cipher", "mask"):
            assert refusal(await said("renji", weak(Contributor(session, "renji"), which, point))) == "secure.key", (which, point)
    same = Contributor(session, "renji")
    same.mask = same.cipher
    assert refusal(await said("renji", same)) == "secure.key"
    assert (await said("xiehe", parties.all["xiehe"])).succeeded
    assert (await said("xiehe", parties.all["xiehe"])).succeeded, "its own are no other's"
    others = Contributor(session, "renji", cipher=parties.all["xiehe"].mask)
    assert refusal(await said("renji", others)) == "secure.key"
    for name in ("huashan", "renji", "ruijin"):
        assert (await said(name, parties.all[name])).succeeded
    keys = await told(p, SecurePhase.SHARES, "huashan")
    assert parties.all["huashan"].share(keys_of(session, parties.roster, keys, now))


async def test_keys_for_the_next_round_are_looked_at_too(p: Platform) -> None:
    await start(p, rounds=2)
    first = Parties(p, (await opened(p, 1)).data)
    second = Parties(p, first.round.model_copy(update={"round": 2}))
    await first.keys()
    await first.shares()
    assert (await first.vector("xiehe", ahead=second)).succeeded
    own = second.all["renji"]
    second.all["renji"] = Contributor(own.session, "renji", cipher=second.all["xiehe"].cipher)
    assert refusal(await first.vector("renji", ahead=second)) == "secure.key"
    for which in ("cipher", "mask"):
        second.all["renji"] = weak(Contributor(own.session, "renji"), which, SMALL_ORDER[0])
        assert refusal(await first.vector("renji", ahead=second)) == "secure.key", which
    second.all["renji"] = own
    for name in ("renji", "huashan", "ruijin"):
        assert (await first.vector(name, ahead=second)).succeeded
    signed = await told(p, SecurePhase.REVEAL, "renji")
    found = first.all["renji"].reveal(first.roster, None, signed, datetime.now(UTC), lambda *claimed: claimed[-1])
    about = {"federation": first.round.federation, "round": 1, "attempt": 1, "phase": SecurePhase.REVEAL, "messages": found.shares}
    sealed = own.share(found.following)
    for wrong in (sealed | {"huashan": "x" * 30_000}, sealed | {"a stranger": ""}):
        assert refusal(await p.send(SubmitSecure(**about, ahead=wrong), p.hospital("renji"))) == "federation.update"
    assert (await p.send(SubmitSecure(**about, ahead=sealed), p.hospital("renji"))).succeeded


async def test_numbers_that_are_none_of_a_hospital_s_are_refused_at_once(p: Platform) -> None:
    await begun(p, TWO, rounds=1, baseline=False)
    round_ = (await opened(p, 1)).data
    about = {"federation": round_.federation, "round": 1, "attempt": 1}
    update, token = await put_weights(p, p.folder, 1.0), p.hospital("huashan")
    async with living(p, *TWO):
        for wrong, code in (
            ({"samples": 2**70}, "request.invalid"),
            ({"metrics": {"a\0": 1.0}}, "request.invalid"),
            ({"round": 2**40}, "federation.not_assigned"),
            ({"attempt": -(2**40)}, "federation.not_assigned"),
        ):
            command = SubmitUpdate(**{**about, "update": update, "samples": 10, **wrong})
            assert refusal(await p.send(command, token, timeout=5)) == code
        failed = ReportFailure(**{**about, "round": 2**40}, code="training.answer")
        assert refusal(await p.send(failed, token, timeout=5)) == "federation.not_assigned"


async def test_what_was_made_of_a_round_is_committed_although_answers_lock_its_federation(
    p: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    await begun(p, TWO, rounds=1, baseline=False)
    round_ = (await opened(p, 1)).data
    made, runtime, holding, tasks = [], p.runtimes["federation"], asyncio.Event(), []

    async def hold() -> None:
        async with runtime.unit() as uow:
            await uow.rows(LOCK, federation=round_.federation)
            holding.set()
            await asyncio.sleep(1.0)

    async def result(*given: Any) -> Any:
        made.append(await original(*given))
        if len(made) == 1:
            tasks.append(asyncio.create_task(hold()))
            await holding.wait()
        return made[-1]

    original = results.result
    monkeypatch.setattr(results, "result", result)
    async with living(p, *TWO):
        for hospital in TWO:
            assert (await submit(p, round_, hospital, 1.0)).succeeded
        await p.wait(RoundCommitted, timeout=30)
    assert len(made) == 1
    await asyncio.gather(*tasks)


async def test_a_federation_in_which_something_breaks_stops_no_other(p: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = await begun(p, TWO, rounds=1, baseline=False)
    await opened(p, 1)
    async with p.runtimes["federation"].unit() as uow:  # and it has left much that cannot be stored
        row = (await uow.all(select(rounds)))[0]._mapping
        left = [{**row, "round": 0, "attempt": attempt, "state": "committed", "stored": False} for attempt in range(30)]
        await uow.execute(insert(rounds), left)

    def breaking(original: Any) -> Any:
        async def wrapped(first: Any, row: Any, third: Any, *more: Any) -> Any:
            about = row if hasattr(row, "federation") else third
            if about.federation == broken:
                raise ValueError("what nobody thought of")
            return await original(first, row, third, *more)

        return wrapped

    monkeypatch.setattr(results, "result", breaking(results.result))
    monkeypatch.setattr(results, "store", breaking(results.store))
    async with living(p, *TWO):
        first = (await opened(p, 1)).data
        for hospital in TWO:
            assert (await submit(p, first, hospital, 1.0)).succeeded
        other = await begun(p, TWO, rounds=1, baseline=False)

        def ours(event: Any) -> bool:
            return bool(event.data.federation == other)

        second: RoundOpened = (await p.wait(RoundOpened, ours, timeout=20)).data
        for hospital in TWO:
            assert (await submit(p, second, hospital, 2.0)).succeeded
        await p.wait(RoundStored, ours, timeout=20)


async def test_a_model_that_cannot_be_stored_keeps_no_other_waiting(p: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    await begun(p, TWO, rounds=2, baseline=False)
    first = (await opened(p, 1)).data
    original = results.store

    async def store(runtime: Any, ports: Any, row: Any) -> bool:
        if row.round == 1:
            raise OSError("the disk does not answer")
        return await original(runtime, ports, row)

    monkeypatch.setattr(results, "store", store)
    async with living(p, *TWO):
        for number, round_ in ((1, first), (2, None)):
            given = round_ or (await opened(p, number)).data
            for hospital in TWO:
                assert (await submit(p, given, hospital, float(number))).succeeded
        await p.wait(RoundStored, lambda e: e.data.round == 2, timeout=20)
