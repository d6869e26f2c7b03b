"""Updates of which no model can be made: refused when they come, where one can tell by itself; else their round is void, and says why."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
from tests.federations import living, opened, start, submit, view
from tests.platform import Platform

from medmesh.cli.views import voided
from medmesh.contracts.federation import FederationFailed, ParticipantDropped, RoundCommitted, RoundOpened, RoundVoided, SubmitUpdate
from medmesh.contracts.message import OperationFinished
from medmesh.federated.aggregation import ALGORITHMS, Algorithm, Piece, register
from medmesh.learning import weights
from medmesh_federation import handlers

THREE = ("huashan", "renji", "xiehe")
SIZES = {"bias": 2, "weight": 128}
MOST = 3e38
"""A float32 that is finite; twice of it is not."""
Arrays = dict[str, np.ndarray]


async def give(p: Platform, round_: RoundOpened, hospital: str, arrays: Arrays) -> OperationFinished:
    path = p.folder / f"{hospital}-{round_.round}-{round_.attempt}"
    weights.save(arrays, path)
    ref = await p.stores.scratch.put_file(path, hashlib.sha256(path.read_bytes()).hexdigest())
    about = {"federation": round_.federation, "round": round_.round, "attempt": round_.attempt}
    return await p.send(SubmitUpdate(**about, update=ref, samples=10), p.hospital(hospital))


def plain(value: float, **numbers: float) -> Arrays:
    beside = {f"fednova.{name}": np.array([number]) for name, number in numbers.items()}
    return {"weight": np.full((64, 2), value, np.float32), "bias": np.full(2, value, np.float32), **beside}


def topk(place: int) -> Arrays:
    made: Arrays = {}
    for name, count in SIZES.items():
        kept = max(1, -(-count // 100))
        made |= {f"codec/place/{name}": np.arange(place, place + kept, dtype=np.uint16), f"codec/value/{name}": np.ones(kept, np.float32)}
    return made


def int8(scale: float) -> Arrays:
    made: Arrays = {}
    for name, count in SIZES.items():
        made |= {f"codec/q/{name}": np.full(count, 127, np.int8), f"codec/scale/{name}": np.full(1, scale, np.float32)}
    return made


@pytest.mark.parametrize("under_lock", [True, False])
@pytest.mark.parametrize(
    ("changed", "good", "bad", "code"),
    [
        ({"algorithm": "fednova"}, plain(1.0, steps=5.0), plain(1.0, steps=0.5), "federation.update"),
        ({"codec": "topk"}, topk(0), topk(60000), "weights.malformed"),
        ({"codec": "int8"}, int8(1e-3), int8(MOST), "weights.not_finite"),
    ],
    ids=["fednova", "topk", "int8"],
)
async def test_what_no_model_can_be_made_of_is_refused_when_it_comes(
    p: Platform,
    monkeypatch: pytest.MonkeyPatch,
    changed: dict[str, Any],
    good: Arrays,
    bad: Arrays,
    code: str,
    under_lock: bool,
) -> None:
    if not under_lock:
        monkeypatch.setattr(handlers, "SMALL", 1)
    await start(p, THREE, rounds=1, baseline=False, **changed)
    async with living(p, *THREE):
        round_ = (await opened(p, 1)).data
        refused = await give(p, round_, "renji", bad)
        assert refused.problem
        assert refused.problem["code"] == code
        for hospital in THREE:  # the round is none the worse for it
            assert (await give(p, round_, hospital, good)).succeeded
        assert (await p.wait(RoundCommitted, timeout=30)).data.participants == THREE


async def test_a_small_update_that_stands_for_a_large_model_is_looked_at_before_its_federation_is_locked(
    p: Platform,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await start(p, THREE, rounds=1, baseline=False, codec="topk", codec_share="0.001")
    round_ = (await opened(p, 1)).data
    monkeypatch.setattr(handlers, "SMALL", round_.base.bytes - 1)
    seen = list[bool]()
    read = handlers._read

    async def watched(*given: Any) -> Any:
        async with p.runtimes["federation"].unit() as uow:
            free = await uow.rows(handlers._LOCKED, federation=round_.federation)
        seen.append(bool(free))
        return await read(*given)

    monkeypatch.setattr(handlers, "_read", watched)
    made = {name: array for name, array in topk(0).items() if array.size == 1 or name.endswith("bias")}
    made |= {f"codec/{part}/weight": topk(0)[f"codec/{part}/weight"][:1] for part in ("place", "value")}
    assert (await give(p, round_, "renji", made)).succeeded
    assert seen == [True], "under the lock it would still be waiting for itself"


async def fails(p: Platform, federation: str, give_all: Any, code: str) -> None:
    """Every attempt at round 1 comes to nothing, and in the end the federation: nobody is dropped, all is said."""
    async with living(p, *THREE):
        for attempt in (1, 2, 3, 4, 5):
            round_ = (await opened(p, 1, attempt=attempt)).data
            await give_all(round_)
            void = (await p.wait(RoundVoided, lambda e, attempt=attempt: e.data.attempt == attempt, timeout=30)).data
            assert (void.why, void.skipped) == (code, False)
        assert (await p.wait(FederationFailed, timeout=30)).data.code == "federation.void"
    seen = await view(p, federation)
    assert [(one.round, one.attempt, one.state, one.why) for one in seen.rounds] == [(1, n, "void", code) for n in (1, 2, 3, 4, 5)]
    assert {one.state for one in seen.participants} == {"accepted"}
    assert len(voided(seen, newest=9)) == 5
    assert all(code in line for line in voided(seen))
    records = [r for r in await p.audited("federation") if r["sub"] == "federation.void"]
    assert [(r["out"], r["why"]) for r in records] == [(4, code)] * 5


async def test_updates_that_overflow_together_void_their_round_and_in_the_end_the_federation(p: Platform) -> None:
    federation = await start(p, THREE, rounds=2, baseline=False, algorithm="fedavgm", parameters={"rate": "10"})

    async def all_of_them(round_: RoundOpened) -> None:
        for hospital in THREE:
            assert (await give(p, round_, hospital, plain(1e38))).succeeded, "nothing is wrong with it alone"

    await fails(p, federation, all_of_them, "weights.not_finite")


@pytest.mark.parametrize("late", [False, True])
async def test_one_that_makes_no_model_even_alone_leaves_the_round_to_the_others(p: Platform, late: bool) -> None:
    pace = {"pace": {"quorum": 2, "staleness": 2}} if late else {}
    federation = await start(p, THREE, rounds=2, baseline=False, algorithm="fedavgm", parameters={"rate": "10"}, **pace)
    async with living(p, *THREE):
        round_ = (await opened(p, 1)).data
        for hospital in ("huashan", "renji"):
            assert (await give(p, round_, hospital, plain(1.0))).succeeded
        if late:
            await p.wait(RoundCommitted, timeout=30)
        assert (await give(p, round_, "xiehe", plain(MOST))).succeeded
        if late:
            round_ = (await opened(p, 2)).data
            for hospital in ("huashan", "renji"):
                assert (await give(p, round_, hospital, plain(1.0))).succeeded
        done = (await p.wait(RoundCommitted, lambda e: e.data.round == round_.round, timeout=30)).data
        assert (done.attempt, done.participants) == (1, ("huashan", "renji"))
        if not late:
            assert (await p.wait(ParticipantDropped)).data.hospital == "xiehe"
            assert "xiehe" in (await opened(p, 2)).data.everybody, "the next round is a new chance"
    records = [r for r in await p.audited("federation") if r["sub"] == "federation.failure"]
    assert [(r["out"], r["why"], {e["id"] for e in r["entities"]}) for r in records] == [
        (8, "weights.not_finite", {federation, "xiehe"}),
    ]


async def test_an_algorithm_that_fails_in_a_way_of_its_own_voids_its_round_too(p: Platform) -> None:
    @register
    class Broken(Algorithm):
        NAME = "broken"

        def combine(self, piece: Piece) -> np.ndarray:
            return {}["nothing"]  # type: ignore[no-any-return]

    try:
        federation = await start(p, THREE, rounds=2, baseline=False, algorithm="broken")

        async def all_of_them(round_: RoundOpened) -> None:
            for hospital in THREE:
                assert (await submit(p, round_, hospital, 1.0)).succeeded

        await fails(p, federation, all_of_them, "federation.aggregation")
    finally:
        del ALGORITHMS["broken"]
