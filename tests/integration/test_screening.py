"""Bad updates on the real coordinator: each kind of attack is found and treated as the plan says, and hospitals that differ are not."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from tests import federations as plain
from tests.federations import SETTINGS, opened, view
from tests.platform import Platform, platform

from medmesh.contracts.federation import (
    ParticipantQuarantined,
    ParticipantReleased,
    QuarantineHospital,
    RoundCommitted,
    RoundOpened,
    RoundVoided,
    SubmitUpdate,
    UpdateFlagged,
)
from medmesh.contracts.governance import ApprovalGranted
from medmesh.contracts.message import ObjectRef
from medmesh.contracts.screening import Flag
from medmesh.embedded.testing import RunningServers
from medmesh.errors import Problem
from medmesh.learning import weights
from medmesh.store.objects.port import file_digest, load
from medmesh_federation import results
from medmesh_federation.quarantine import release_digest
from medmesh_federation.service import SERVICE

FOUR = ("huashan", "renji", "tongji", "xinhua")
BAD = "xinhua"
Model = dict[str, np.ndarray]


async def start(p: Platform, **changed: Any) -> str:
    """Everybody has time to answer, on a machine however busy; it begins when all did."""
    return await plain.start(p, FOUR, accept_by=datetime.now(UTC) + timedelta(seconds=60), **changed)


def honest(base: Model, hospital: str, number: int) -> Model:
    """Somewhere on the way that all share, each a good deal beside it."""
    way, own = np.random.default_rng(number), np.random.default_rng([number, FOUR.index(hospital)])
    return {n: (a + 0.1 * (way.normal(size=a.shape) + own.normal(size=a.shape))).astype(np.float32) for n, a in base.items()}


async def put(p: Platform, model: Model, name: str) -> ObjectRef:
    path = p.folder / name
    weights.save(model, path)
    return await p.stores.scratch.put_file(path, file_digest(path)[0])


async def give(p: Platform, one: RoundOpened, hospital: str, ref: ObjectRef) -> None:
    command = SubmitUpdate(federation=one.federation, round=one.round, attempt=one.attempt, update=ref, samples=10)
    done = await p.send(command, p.hospital(hospital))
    assert done.succeeded, done.problem


async def model_of(p: Platform, ref: ObjectRef) -> Model:
    store = await p.stores.holding(ref.sha256)
    path = p.folder / f"read-{ref.sha256}"
    path.write_bytes(await load(store, ref))
    return weights.load(path)


async def answered(p: Platform, number: int, bad: Model | ObjectRef | None, attempt: int = 1, late: str = BAD) -> RoundOpened:
    """Everybody answers round `number`, `late` last and with `bad`."""
    one = (await opened(p, number, attempt)).data
    base = await model_of(p, one.base)
    for hospital in (*(h for h in FOUR if h != late), late):
        made: Model | ObjectRef = honest(base, hospital, number) if hospital != late or bad is None else bad
        ref = await put(p, made, f"{number}-{attempt}-{hospital}") if isinstance(made, dict) else made
        await give(p, one, hospital, ref)
    return one


async def committed(p: Platform, number: int) -> RoundCommitted:
    return (await p.wait(RoundCommitted, lambda event: event.data.round == number, timeout=30)).data


def mean(models: list[Model]) -> Model:
    return {n: np.mean([m[n].astype(np.float64) for m in models], axis=0).astype(np.float32) for n in models[0]}


async def test_each_attack_is_flagged_left_out_and_told_and_honest_hospitals_that_differ_are_not(p: Platform) -> None:
    federation = await start(p, rounds=8, screening={"action": "exclude"})
    base = await model_of(p, (await opened(p, 1)).data.base)
    old = honest(base, "renji", 1)
    await answered(p, 1, None)
    assert (await committed(p, 1)).participants == FOUR

    async def attack(number: int, make: object) -> set[Flag]:
        base = await model_of(p, (await opened(p, number)).data.base)
        await answered(p, number, make(base, number) if callable(make) else make)  # type: ignore[arg-type]
        done = await committed(p, number)
        assert done.participants == tuple(h for h in FOUR if h != BAD), number
        wanted = mean([honest(base, h, number) for h in FOUR if h != BAD])
        found = await model_of(p, done.model)
        assert all(np.allclose(found[n], wanted[n], atol=1e-6) for n in wanted), "the bad one is not in the model"
        told = [e.data for e in p.emitted(UpdateFlagged) if e.data.round == number]
        assert [(t.hospital, t.excluded, t.hospitals) for t in told] == [(BAD, True, FOUR)], number
        return set(told[0].flags)

    def turned(factor: float) -> object:
        return lambda base, n: {k: base[k] + np.float32(factor) * (honest(base, BAD, n)[k] - base[k]) for k in base}

    dice = np.random.default_rng(1)
    assert await attack(2, turned(-1)) == {Flag.OPPOSED}
    assert await attack(3, turned(20)) == {Flag.LONG}
    assert await attack(4, lambda base, n: honest(base, "huashan", n)) == {Flag.COPIED}
    assert await attack(5, lambda base, n: base) == {Flag.UNCHANGED}
    noise = {n: dice.normal(size=a.shape).astype(np.float32) * np.float32(1e-4) for n, a in base.items()}
    assert await attack(6, lambda base, n: {k: base[k] + noise[k] for k in base}) == {Flag.SHORT}
    save_file(old, p.folder / "otherwise", metadata={"written": "otherwise"})
    replay = await p.stores.scratch.put_file(p.folder / "otherwise", file_digest(p.folder / "otherwise")[0])
    assert await attack(7, replay) == {Flag.REPLAYED}, "renji's of round 1, in another file"

    seen = await view(p, federation)
    shown = next(a for a in seen.rounds[1].answers if a.hospital == BAD)
    assert (shown.flags, shown.excluded) == ((Flag.OPPOSED,), True)
    assert shown.cosine is not None and shown.cosine < -0.3
    records = [r for r in await p.audited("federation") if r["sub"] == "federation.flag" and r["entities"][1]["id"] == BAD]
    assert [r["why"] for r in records] == ["opposed", "long", "copied", "unchanged", "short", "replayed"]
    assert all(set(r["detail"]) == {"round", "excluded"} for r in records), "no figures that tell of data"


async def test_a_flag_that_is_only_noted_leaves_the_update_in(p: Platform) -> None:
    await start(p, rounds=1, screening={"action": "note"})
    base = await model_of(p, (await opened(p, 1)).data.base)
    await answered(p, 1, base)
    assert (await committed(p, 1)).participants == FOUR
    (told,) = p.emitted(UpdateFlagged)
    assert (told.data.flags, told.data.excluded) == ((Flag.UNCHANGED,), False)


async def test_a_round_with_too_few_good_updates_is_tried_again_and_what_is_trained_again_is_no_replay(p: Platform) -> None:
    await start(p, rounds=1, min_participants=4, screening={"action": "exclude"})
    base = await model_of(p, (await opened(p, 1)).data.base)
    await answered(p, 1, base)
    await p.wait(RoundVoided, timeout=30)
    one = (await opened(p, 1, 2)).data
    for hospital in FOUR:  # what is trained again has the same bytes: who gives it while that of before goes, gives it once more
        while hospital != BAD and await p.stores.scratch.size(file_digest(p.folder / f"1-1-{hospital}")[0]) is not None:
            await asyncio.sleep(0.05)
        await give(p, one, hospital, await put(p, honest(base, hospital, 1), f"again-{hospital}"))
    assert (await committed(p, 1)).participants == FOUR
    assert [(e.data.attempt, e.data.hospital) for e in p.emitted(UpdateFlagged)] == [(1, BAD)]
    (void,) = [record for record in await p.audited("federation") if record["sub"] == "federation.void"]
    assert (void["out"], void["why"], void["detail"]["round"]) == (4, "flagged", 1)


async def test_what_dies_after_it_recorded_and_before_it_committed_leaves_the_same_out_again(
    p: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of the first time is left: its transaction is undone, and a coordinator keeps nothing in memory between steps."""
    made, real = list[results.Result](), results.commit

    async def once(uow: Any, row: Any, situation: Any, result: results.Result, milliseconds: int) -> None:
        made.append(result)
        await real(uow, row, situation, result, milliseconds)
        if len(made) == 1:
            raise Problem("bus.unavailable", reason="as if it died here")

    monkeypatch.setattr(results, "commit", once)
    await start(p, rounds=1, screening={"action": "exclude"})
    base = await model_of(p, (await opened(p, 1)).data.base)
    await answered(p, 1, {n: a + np.float32(9) for n, a in base.items()})
    done = await committed(p, 1)
    first, second = made
    assert first == second
    assert (first.model, first.excluded) == (done.model, {BAD})
    assert len(p.emitted(UpdateFlagged)) == 1
    rounds = [record["detail"] for record in await p.audited("federation") if record["sub"] == "federation.round"]
    assert [(one["round"], one["model"]) for one in rounds] == [(1, done.model.sha256)], "recorded once"


async def release(p: Platform, federation: str, approval: str) -> None:
    """Others approve that the bad one comes back from the quarantine it is in."""
    digest = next(one.release for one in (await view(p, federation)).participants if one.hospital == BAD)
    assert digest is not None
    target = f"{federation}/{BAD}"
    token = p.approval("federation.release", target, digest, approval=approval)
    grant = ApprovalGranted(approval=approval, action="federation.release", target=target, digest=digest, token=token)
    await p.publish(grant, source="governance")


async def test_a_flagged_hospital_is_in_quarantine_until_others_approved_exactly_this_release(p: Platform) -> None:
    federation = await start(p, rounds=5, screening={"action": "quarantine"})
    first = await model_of(p, (await opened(p, 1)).data.base)
    await answered(p, 1, first)
    assert BAD not in (await committed(p, 1)).participants
    told = (await p.wait(ParticipantQuarantined)).data
    assert (told.hospital, told.reason) == (BAD, "unchanged")
    two = (await opened(p, 2)).data
    assert two.hospitals == tuple(h for h in FOUR if h != BAD), "it is not asked"

    await release(p, federation, "one")
    assert (await p.wait(ParticipantReleased)).data.hospital == BAD
    base = await model_of(p, two.base)
    for hospital in two.hospitals:
        await give(p, two, hospital, await put(p, honest(base, hospital, 2), f"two-{hospital}"))
    three = (await opened(p, 3)).data
    assert three.hospitals == FOUR, "it is back"

    # A person's word: at once, also what it gave to the open round; and the approval of the first quarantine opens no second one.
    base = await model_of(p, three.base)
    await give(p, three, BAD, await put(p, honest(base, BAD, 3), "three-bad"))
    command = QuarantineHospital(federation=federation, hospital=BAD, reason="its scanner is miscalibrated")
    assert (await p.send(command, p.person("li", "researcher"))).result == {"state": "quarantined"}
    assert (await p.send(command, p.person("li", "researcher"))).result == {"state": "quarantined"}, "again: nothing more"
    for hospital in FOUR[:3]:
        await give(p, three, hospital, await put(p, honest(base, hospital, 3), f"three-{hospital}"))
    assert (await committed(p, 3)).participants == FOUR[:3]
    four = (await opened(p, 4)).data
    refused = await p.send(SubmitUpdate(**late(four), update=three.base, samples=1), p.hospital(BAD))
    assert (refused.problem or {})["code"] == "federation.not_assigned"
    old = release_digest(federation, four.plan_hash, BAD, 1)
    token = p.approval("federation.release", f"{federation}/{BAD}", old, approval="old")
    grant = ApprovalGranted(approval="old", action="federation.release", target=f"{federation}/{BAD}", digest=old, token=token)
    await p.publish(grant, source="governance")
    base = await model_of(p, four.base)
    for hospital in FOUR[:3]:
        await give(p, four, hospital, await put(p, honest(base, hospital, 4), f"four-{hospital}"))
    assert (await opened(p, 5)).data.hospitals == FOUR[:3], "an approval of another quarantine"
    states = {one.hospital: one.state for one in (await view(p, federation)).participants}
    assert states == {**dict.fromkeys(FOUR[:3], "accepted"), BAD: "quarantined"}
    kinds = [r["sub"] for r in await p.audited("federation") if r["sub"] in ("federation.quarantine", "federation.release")]
    assert kinds == ["federation.quarantine", "federation.release", "federation.quarantine"]
    stranger = QuarantineHospital(federation=federation, hospital="nobody", reason="who is this")
    assert ((await p.send(stranger, p.person("li", "researcher"))).problem or {})["code"] == "federation.cannot_quarantine"


def late(one: RoundOpened) -> dict[str, Any]:
    return {"federation": one.federation, "round": one.round, "attempt": one.attempt}


async def test_where_too_few_are_left_it_waits_for_people_and_does_not_fail(servers: RunningServers, private: Path) -> None:
    settings = {"federation": {**SETTINGS["federation"], "quorum_grace_seconds": 0.3}}
    async with platform(servers, private, SERVICE, settings=settings) as p:
        federation = await start(p, rounds=1, min_participants=4, screening={"action": "quarantine"})
        base = await model_of(p, (await opened(p, 1)).data.base)
        await answered(p, 1, base)
        await p.wait(ParticipantQuarantined, timeout=30)
        await asyncio.sleep(1.5)
        assert (await view(p, federation)).state == "running"
        await release(p, federation, "one")
        await p.wait(ParticipantReleased)
        assert (await opened(p, 1, 2)).data.hospitals == FOUR
