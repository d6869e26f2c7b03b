"""The coordinator on real servers with pretended hospitals."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import select, text, update
from tests.federations import SETTINGS, alive, evaluate, make_plan, opened, put_weights, start, submit, view
from tests.platform import Platform, platform

from medmesh.contracts.federation import (
    FederationCompleted,
    FederationQueued,
    FederationReady,
    FederationStarted,
    ParticipantDropped,
    ParticipantRejoined,
    QuarantineHospital,
    ReportFailure,
    RoundCommitted,
    RoundKind,
    RoundOpened,
    RoundStored,
    RoundVoided,
    SubmitUpdate,
    WithdrawFromFederation,
)
from medmesh.contracts.labels import FileView, FindFile
from medmesh.contracts.message import ObjectRef, OperationFinished
from medmesh.embedded.testing import RunningServers
from medmesh.federated.chain import link
from medmesh.learning import weights
from medmesh.service.runtime import running
from medmesh.store.objects.port import file_digest
from medmesh_federation.domain import State
from medmesh_federation.ports import Leases
from medmesh_federation.service import SERVICE
from medmesh_federation.tables import federations, participants


async def test_rounds_average_chain_from_the_plan_and_end_with_an_evaluation(p: Platform) -> None:
    hospitals = ("huashan", "renji", "xiehe")
    federation = await start(p, hospitals, baseline=True)
    for number in (1, 2, 3):
        round_ = (await opened(p, number)).data
        assert round_.hospitals == hospitals
        for place, hospital in enumerate(hospitals):
            assert (await submit(p, round_, hospital, number * 10.0 + place, samples=place + 1)).succeeded
        await alive(p, *hospitals)
    baseline = (await opened(p, 4, kind=RoundKind.BASELINE)).data
    assert baseline.steps == 15
    assert baseline.base.sha256 == (await opened(p, 1)).data.base.sha256
    for place, hospital in enumerate(hospitals):
        await submit(p, baseline, hospital, 100.0 + place)
    evaluation = (await opened(p, 5, kind=RoundKind.EVALUATE)).data
    assert [m.name for m in evaluation.models] == ["federated", *hospitals]
    for hospital in hospitals:
        assert (await evaluate(p, evaluation, hospital)).succeeded
    completed = (await p.wait(FederationCompleted)).data
    found = await view(p, federation)
    assert found.state == "completed"
    assert completed.model == found.model
    stored = p.folder / "final"
    assert found.model
    stored.write_bytes(b"".join([piece async for piece in p.stores.kept.read(found.model.sha256)]))
    np.testing.assert_allclose(weights.load(stored)["bias"], (30 * 1 + 31 * 2 + 32 * 3) / 6, rtol=1e-6)
    chain = found.plan_hash
    for event in sorted(p.emitted(RoundCommitted), key=lambda e: e.data.round):
        chain = link(chain, event.data.round, event.data.kind, event.data.model.sha256)
        assert event.data.chain == chain
    assert completed.chain == chain
    # Whoever may not see the federation reads none of its models by their names either: the committed ones, and each hospital's alone.
    models = {event.data.model.sha256 for event in p.emitted(RoundCommitted)} | {m.weights.sha256 for m in evaluation.models}
    assert len(models) == 3 + len(hospitals)
    for sha256 in models:
        (thing,) = (await p.ask(FindFile(service="federation", sha256=sha256), FileView, p.service("gateway"))).things
        assert (thing.kind, thing.id) == ("federation", federation)
    assert len(found.evaluation) == 12
    assert {e.name for e in found.evaluation} == {"federated", *hospitals}
    verbs = [record["sub"] for record in await p.audited("federation")]
    for verb in ("federation.create", "federation.respond", "federation.approved", "federation.round", "federation.update"):
        assert verb in verbs
    moves = [record["detail"]["to"] for record in await p.audited("federation") if record["sub"] == "federation.move"]
    assert moves == [state.value for state in (State.READY, State.QUEUED, State.RUNNING, State.COMPLETED)]
    told = [FederationReady, FederationQueued, FederationStarted, FederationCompleted]
    assert [(kind, len(p.emitted(kind))) for kind in told] == [(kind, 1) for kind in told]
    left = await p.send(WithdrawFromFederation(federation=federation), p.hospital("huashan"))
    assert left.result == {"state": "withdrawn", "rounds": 3}, "what it trained alone, and its counts, are in no model"


async def test_whoever_sends_the_same_again_has_it_counted_again(p: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    """The update of the round before is deleted when that is stored, which may be after it came again."""
    await start(p, ("huashan", "renji"), baseline=False)
    kept = p.runtimes["federation"].ports.stores.kept
    at_once = kept.put_file

    async def slowly(path: Path, sha256: str) -> Any:
        await asyncio.sleep(0.4)
        return await at_once(path, sha256)

    monkeypatch.setattr(kept, "put_file", slowly)
    for number in (1, 2, 3):
        round_ = (await opened(p, number)).data
        assert (await submit(p, round_, "huashan", 7.0)).succeeded
        if number > 1:
            await p.wait(RoundStored, lambda found, before=number - 1: found.data.round == before)
            await asyncio.sleep(0.3)
        await alive(p, "huashan", "renji")
        assert (await submit(p, round_, "renji", 7.0 + number)).succeeded
    assert (await p.wait(RoundCommitted, lambda found: found.data.round == 3)).data.participants == ("huashan", "renji")


async def test_a_hospital_that_falls_silent_leaves_the_others_go_on_and_it_rejoins(p: Platform) -> None:
    hospitals = ("huashan", "renji", "xiehe")
    federation = await start(p, hospitals, lease_seconds=2)
    round_ = (await opened(p, 1)).data
    for hospital in hospitals[:2]:
        await submit(p, round_, hospital, 1.0)

    async def living() -> None:
        while True:
            await alive(p, "huashan", "renji")
            await asyncio.sleep(0.3)

    heart = asyncio.create_task(living())
    dropped = (await p.wait(ParticipantDropped)).data
    assert (dropped.hospital, dropped.reason) == ("xiehe", "lease")
    second = (await opened(p, 2)).data
    assert second.hospitals == ("huashan", "renji")
    await alive(p, "xiehe")
    late = await submit(p, round_, "xiehe", 5.0)
    assert late.result == {"late": True}
    for hospital in hospitals[:2]:
        await submit(p, second, hospital, 2.0)
    await alive(p, "xiehe")
    third = (await opened(p, 3)).data
    heart.cancel()
    assert third.hospitals == hospitals
    assert (await p.wait(ParticipantRejoined)).data.hospital == "xiehe"
    assert {x.hospital: x.drops for x in (await view(p, federation)).participants} == {"huashan": 0, "renji": 0, "xiehe": 1}
    found = [(r["sub"], r["why"], r["orgs"]) for r in await p.audited("federation") if r["sub"] in ("federation.drop", "federation.rejoin")]
    assert found == [("federation.drop", "lease", ["xiehe"]), ("federation.rejoin", "", ["xiehe"])]


async def test_a_coordinator_that_dies_goes_on_with_the_same_result_and_nobody_answers_twice(
    servers: RunningServers, private: Path
) -> None:
    finals = []
    for name, disturbed in (("calm", False), ("killed", True)):
        folder = private / name
        folder.mkdir(mode=0o700)
        async with platform(servers, folder, SERVICE, settings=SETTINGS) as p:
            await start(p, ("huashan", "renji"))
            for number in (1, 2, 3):
                round_ = (await opened(p, number)).data
                await submit(p, round_, "huashan", 0.1 * number, samples=3)
                if disturbed and number == 2:
                    runtime = p.runtimes["federation"]
                    # As a kill would: its tasks end where they stand, its connections break, its memory is gone.
                    await runtime.cancel_background()
                    runtime.ports.leases._heard.clear()
                    async with running(SERVICE, runtime.settings):
                        await submit(p, round_, "renji", 0.7 * number, samples=4)
                        await alive(p, "huashan", "renji")
                        third = (await opened(p, 3)).data
                        await submit(p, third, "huashan", 0.1 * 3, samples=3)
                        await submit(p, third, "renji", 0.7 * 3, samples=4)
                        finals.append((await p.wait(FederationCompleted)).data)
                    break
                await submit(p, round_, "renji", 0.7 * number, samples=4)
            else:
                finals.append((await p.wait(FederationCompleted)).data)
            assert len(p.emitted(RoundOpened)) == 3
    assert finals[0].model.sha256 == finals[1].model.sha256


async def test_too_few_answers_void_the_round_and_the_next_attempt_has_the_same_seed(p: Platform) -> None:
    await start(p, ("huashan", "renji"), round_deadline_seconds=6)
    first = (await opened(p, 1)).data
    await submit(p, first, "huashan", 1.0)
    assert (await p.wait(RoundVoided)).data.attempt == 1
    assert [r["out"] for r in await p.audited("federation") if r["sub"] == "federation.void"] == [4]
    again = (await opened(p, 1, attempt=2)).data
    assert again.seed == first.seed
    assert again.base == first.base
    for hospital in ("huashan", "renji"):
        assert (await submit(p, again, hospital, 1.0)).result == {"late": False}
    assert (await p.wait(RoundCommitted)).data.attempt == 2


async def test_what_a_hospital_may_not_send_is_refused_with_its_reason(p: Platform) -> None:
    federation = await start(p, ("huashan", "renji", "xiehe"))
    round_ = (await opened(p, 1)).data
    nan = await submit(p, round_, "huashan", float("nan"))
    assert nan.problem
    assert nan.problem["code"] == "weights.not_finite"
    weights.save({"weight": np.zeros((64, 2), np.float32), "extra": np.zeros(2, np.float32)}, p.folder / "foreign")
    data = (p.folder / "foreign").read_bytes()
    ref = await p.stores.scratch.put(data)
    command = SubmitUpdate(federation=federation, round=1, attempt=1, update=ref, samples=1)
    foreign = await p.send(command, p.hospital("huashan"))
    assert foreign.problem
    assert foreign.problem["code"] in ("weights.missing", "weights.foreign")
    stranger = await p.send(command, p.hospital("stranger"))
    assert stranger.problem
    assert stranger.problem["code"] == "request.not_found"
    missing = await p.send(command.model_copy(update={"update": ref.model_copy(update={"sha256": "0" * 64})}), p.hospital("huashan"))
    assert missing.problem
    assert missing.problem["code"] == "objects.missing"
    elsewhere = await submit(p, round_, "huashan", 1.0, base="0" * 64)
    assert elsewhere.problem
    assert elsewhere.problem["code"] == "federation.update"
    assert "does not begin with the model of its round" in str(elsewhere.problem)
    report = ReportFailure(federation=federation, round=1, attempt=1, code="worker.failed")
    assert (await p.send(report, p.hospital("xiehe"))).succeeded
    assert (await p.wait(ParticipantDropped)).data.reason == "failed"
    for hospital, said in {"huashan": {"base": round_.base.sha256}, "renji": {}}.items():  # a node of before does not say
        assert (await submit(p, round_, hospital, 1.0, **said)).succeeded
    assert (await p.wait(RoundCommitted)).data.participants == ("huashan", "renji")
    taken = {r["agents"][0]["who"]: r["detail"].get("base") for r in await p.audited("federation") if r["sub"] == "federation.update"}
    assert taken == {"hospital:huashan": round_.base.sha256, "hospital:renji": None}
    stored = (await p.wait(RoundStored)).data
    assert await p.stores.kept.size(stored.model.sha256) is not None
    gone = await put_weights(p, p.folder, 1.0)
    await p.stores.scratch.delete(gone.sha256)


async def test_a_plan_that_contradicts_its_package_is_refused(p: Platform) -> None:
    wanted = await make_plan(p, ("huashan", "renji"))
    smaller = wanted.plan.model_copy(update={"signature": wanted.plan.signature[:1]})
    done = await p.send(wanted.model_copy(update={"plan": smaller}), p.person("li", "researcher"))
    assert done.problem
    assert done.problem["code"] == "plan.package"
    assert "tensors" in done.problem["title"]
    other = wanted.plan.model_copy(update={"initial": "0" * 64})
    done = await p.send(wanted.model_copy(update={"plan": other}), p.person("li", "researcher"))
    assert (done.problem or {})["code"] == "plan.objects"


async def test_who_answered_a_round_is_in_the_next_one_right_after_a_restart(p: Platform) -> None:
    """Nobody has been heard by the new coordinator, and nobody need be; who is gone loses its lease as anybody in a round does."""
    hospitals = ("huashan", "renji", "xiehe")
    await start(p, hospitals, rounds=2, lease_seconds=30)
    first = (await opened(p, 1)).data
    p.runtimes["federation"].ports.leases = Leases()  # what a restart leaves of it
    for name in hospitals:
        assert (await submit(p, first, name, 1.0)).succeeded
    second = (await opened(p, 2)).data
    assert second.hospitals == hospitals


async def _handed_in_while_let_out(p: Platform, round_: RoundOpened, ref: ObjectRef) -> OperationFinished:
    """A hospital in quarantine hands in, and is let out after its bytes were not looked at and before its answer is taken."""
    async with p.runtimes["federation"].unit() as uow:
        await uow.execute(select(federations.c.federation).with_for_update())
        where = (participants.c.federation == round_.federation) & (participants.c.hospital == "xiehe")
        await uow.execute(update(participants).where(where).values(state="accepted"))
        command = SubmitUpdate(federation=round_.federation, round=1, attempt=1, update=ref, samples=10)
        sending = asyncio.create_task(p.send(command, p.hospital("xiehe")))
        waits = text("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'")
        async with asyncio.timeout(20):
            while not (await uow.execute(waits)).scalar_one():
                await asyncio.sleep(0.02)
    return await sending


async def test_an_answer_that_counts_by_the_time_it_is_taken_is_looked_at_then(p: Platform) -> None:
    hospitals = ("huashan", "renji", "xiehe")
    federation = await start(p, hospitals, rounds=1, baseline=False)
    round_ = (await opened(p, 1)).data
    bad = QuarantineHospital(federation=federation, hospital="xiehe", reason="to be looked at")
    assert (await p.send(bad, p.person("li", "researcher"))).succeeded
    other = p.folder / "another model"
    weights.save({"bias": np.ones(7, np.float32)}, other)
    wrong = await p.stores.scratch.put_file(other, file_digest(other)[0])
    refused = await _handed_in_while_let_out(p, round_, wrong)
    assert (refused.problem or {}).get("code", "").startswith("weights."), refused
    assert (await p.send(bad, p.person("li", "researcher"))).succeeded
    assert (await _handed_in_while_let_out(p, round_, await put_weights(p, p.folder, 4.0))).result == {"late": False}
    for hospital in hospitals[:2]:
        assert (await submit(p, round_, hospital, 1.0)).succeeded
    assert (await p.wait(RoundCommitted)).data.participants == hospitals
