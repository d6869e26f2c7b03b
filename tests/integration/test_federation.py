"""The coordinator on real servers with pretended hospitals."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jwt
import numpy as np
import pytest
from sqlalchemy import select, text, update
from tests.federations import accept, alive, evaluate, living, make_plan, opened, put_weights, submit, view
from tests.platform import Platform, platform
from tests.rosters import acceptance, decision

from medmesh.contracts.federation import (
    FederationCompleted,
    FederationFailed,
    FederationInvited,
    FederationQueued,
    FederationReady,
    FederationStarted,
    FederationView,
    ParticipantDropped,
    ParticipantRejoined,
    QuarantineHospital,
    ReportFailure,
    RespondInvitation,
    RoundCommitted,
    RoundKind,
    RoundOpened,
    RoundStored,
    RoundVoided,
    SubmitUpdate,
    WithdrawFromFederation,
)
from medmesh.contracts.governance import ApprovalExpired, ApprovalGranted, ApprovalRevoked
from medmesh.contracts.labels import FileView, FindFile
from medmesh.contracts.message import Event, ObjectRef, OperationFinished
from medmesh.contracts.plan import plan_hash
from medmesh.embedded.testing import RunningServers
from medmesh.federated.chain import link
from medmesh.federated.proof import unpack
from medmesh.learning import weights
from medmesh.security.signing import Signer
from medmesh.service.runtime import running
from medmesh.store.objects.port import file_digest, load
from medmesh_federation import steps
from medmesh_federation.domain import State
from medmesh_federation.ports import Leases
from medmesh_federation.service import SERVICE
from medmesh_federation.tables import federations, participants

SETTINGS = {"federation": {"tick_seconds": 0.1}}


@pytest.fixture
async def p(servers: RunningServers, private: Path) -> AsyncIterator[Platform]:
    async with platform(servers, private, SERVICE, settings=SETTINGS) as made:
        yield made


async def start(p: Platform, hospitals: tuple[str, ...], **changed: object) -> str:
    """A federation that everybody accepted and somebody approved."""
    soon = datetime.now(UTC) + timedelta(seconds=2)
    late = soon + timedelta(seconds=60)  # on a busy machine answers take a while
    wanted = await make_plan(p, hospitals, **{"accept_by": late, "start_at": soon, **changed})
    done = await p.send(wanted, p.person("li", "researcher"))
    assert done.succeeded, done.problem
    assert done.result
    federation = str(done.result["federation"])
    await accept(p, federation, wanted.plan, *hospitals)
    hash_ = plan_hash(wanted.plan)
    approval = f"approval-{federation}"
    token = p.approval("federation.start", federation, hash_, approval=approval)
    grant = ApprovalGranted(approval=approval, action="federation.start", target=federation, digest=hash_, token=token)
    await p.publish(grant, source="governance")
    while datetime.now(UTC) < soon:
        await alive(p, *hospitals)
        await asyncio.sleep(0.2)
    await alive(p, *hospitals)
    return federation


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
    taken = {r["agents"][0]["who"]: r["detail"]["base"] for r in await p.audited("federation") if r["sub"] == "federation.update"}
    assert taken == {"hospital:huashan": round_.base.sha256, "hospital:renji": ""}
    stored = (await p.wait(RoundStored)).data
    assert await p.stores.kept.size(stored.model.sha256) is not None
    gone = await put_weights(p, p.folder, 1.0)
    await p.stores.scratch.delete(gone.sha256)


async def test_invitations_need_the_right_signature_and_enough_of_them(p: Platform) -> None:
    soon = datetime.now(UTC) + timedelta(seconds=8)
    wanted = await make_plan(p, ("huashan", "renji"), accept_by=soon, start_at=soon)
    other = await p.send(wanted, p.person("eve", "researcher"))
    assert other.problem
    assert other.problem["code"] == "federation.initiator"
    done = await p.send(wanted, p.person("li", "researcher"))
    assert done.result
    federation, hash_ = done.result["federation"], done.result["plan_hash"]
    token = p.hospital("huashan")
    ours, stranger = p.rosters.signer("hospital:huashan"), Signer.create("hospital:huashan")
    for signature, code in (
        ("", "statement.missing"),
        (acceptance(p.rosters.signer("hospital:renji"), federation, hash_), "roster.unknown"),
        (acceptance(stranger, federation, hash_), "roster.unknown"),
        (acceptance(ours, "another", hash_), "statement.other"),
        (acceptance(ours, federation, "0" * 64), "statement.other"),
        (decision(ours, approval="a", action="a", target=federation, digest=hash_, requester="r", expires=soon), "statement.kind"),
    ):
        answer = RespondInvitation(federation=federation, plan_hash=hash_, accept=True, signature=signature)
        assert ((await p.send(answer, token)).problem or {})["code"] == code
    await accept(p, federation, wanted.plan, "huashan")
    assert (await p.wait(FederationFailed)).data.code == "federation.quorum"
    assert not p.emitted(FederationReady)


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


def grant(p: Platform, federation: str, hash_: str, approval: str, minutes: float = 60) -> ApprovalGranted:
    token = p.approval("federation.start", federation, hash_, approval=approval, minutes=minutes)
    return ApprovalGranted(approval=approval, action="federation.start", target=federation, digest=hash_, token=token)


async def recorded(p: Platform, count: int, *verbs: str) -> list[dict[str, Any]]:
    async with asyncio.timeout(20):
        while len(found := [r for r in await p.audited("federation") if r["sub"] in verbs]) < count:
            await asyncio.sleep(0.02)
    return found


async def until(p: Platform, federation: str, state: str, *waiting: str) -> FederationView:
    async with asyncio.timeout(20):
        while ((found := await view(p, federation)).state, found.waiting) != (state, waiting):
            await asyncio.sleep(0.05)
    return found


async def test_nobody_is_invited_who_cannot_sign_and_no_time_is_absurd(p: Platform) -> None:
    """Each refusal by a code of its own, and nothing is made."""
    now = datetime.now(UTC)
    good = await make_plan(p, ("renji", "xiehe"), accept_by=now + timedelta(days=89), start_at=now + timedelta(days=364))
    p.rosters.known("gone")
    p.rosters.end("hospital:gone", now)
    li = p.person("li", "researcher")
    for changed, code, words in (
        (
            {"participants": ("misspelt-hospital", "renji", "gone")},
            "federation.strangers_invited",
            "2 hospital(s) of this plan: misspelt-hospital, gone",
        ),
        ({"accept_by": now - timedelta(seconds=1)}, "federation.accept_by", "within 90 days"),
        ({"accept_by": now + timedelta(days=4000)}, "federation.accept_by", "within 90 days"),
        ({"start_at": now - timedelta(days=4000)}, "federation.start_at", "not more than a day back"),
        ({"start_at": now + timedelta(days=4000)}, "federation.start_at", "within 365 days"),
    ):
        done = await p.send(good.model_copy(update={"plan": good.plan.model_copy(update=changed)}), li)
        assert done.problem
        assert (done.problem["code"], words in done.problem["title"]) == (code, True), done.problem
    assert not p.emitted(FederationInvited)
    assert (await p.send(good, li)).succeeded


@pytest.mark.parametrize("granted_first", [True, False])
async def test_a_revoked_approval_starts_nothing_whichever_is_heard_first(p: Platform, granted_first: bool) -> None:
    late = datetime.now(UTC) + timedelta(minutes=5)
    wanted = await make_plan(p, ("huashan", "renji", "xiehe"), accept_by=late, start_at=late)
    done = await p.send(wanted, p.person("li", "researcher"))
    federation, hash_ = str((done.result or {})["federation"]), plan_hash(wanted.plan)
    revoked = ApprovalRevoked(approval="approval-1", action="federation.start", target=federation, digest=hash_)
    if granted_first:
        await p.publish(grant(p, federation, hash_, "approval-1"), source="governance")
        assert len(await recorded(p, 1, "federation.approved")) == 1
        await p.publish(revoked, source="governance")
        assert [r["why"] for r in await recorded(p, 1, "federation.unapproved")] == ["revoked"]
    else:
        handled = await p.publish(revoked, source="governance")
        async with asyncio.timeout(20):
            while not await _handled(p, handled):
                await asyncio.sleep(0.02)
    await p.publish(grant(p, federation, hash_, "approval-1"), source="governance")
    await p.publish(grant(p, federation, hash_, "approval-2"), source="governance")
    expected = 2 if granted_first else 1
    approvals = [r["approval"]["id"] for r in await recorded(p, expected, "federation.approved")]
    assert approvals == ["approval-1", "approval-2"][-expected:], "only another approval counts"


HOSPITALS = ("huashan", "renji", "xiehe")


async def queued(p: Platform, seconds: float, minutes: float = 60) -> tuple[str, str]:
    """(federation, hash of its plan) of one that everybody accepted and that waits for its time, with its approval."""
    now = datetime.now(UTC)
    wanted = await make_plan(p, HOSPITALS, accept_by=now + timedelta(minutes=5), start_at=now + timedelta(seconds=seconds))
    done = await p.send(wanted, p.person("li", "researcher"))
    federation, hash_ = str((done.result or {})["federation"]), plan_hash(wanted.plan)
    await accept(p, federation, wanted.plan, *HOSPITALS)
    await p.publish(grant(p, federation, hash_, "approval-1", minutes), source="governance")
    await alive(p, *HOSPITALS)
    await until(p, federation, "queued", "time")
    return federation, hash_


@pytest.mark.parametrize(("said", "why"), [(ApprovalRevoked, "revoked"), (ApprovalExpired, "expired")])
async def test_what_waits_for_its_time_leaves_the_queue_with_its_approval(p: Platform, said: type[Event], why: str) -> None:
    federation, hash_ = await queued(p, 12)
    assert (await view(p, federation)).approved_until is not None
    about = {"action": "federation.start", "target": federation, "digest": hash_}
    other = await p.publish(said(approval="approval-0", **about), source="governance")
    async with asyncio.timeout(20):
        while not await _handled(p, other):
            await asyncio.sleep(0.02)
    assert (await view(p, federation)).state == "queued", "that was another one"
    await p.publish(said(approval="approval-1", **about), source="governance")
    found = await until(p, federation, "ready", f"approval:{why}", "time")
    assert found.approved_until is None
    assert [e.data.unapproved for e in p.emitted(FederationReady)] == ["", why]
    (record,) = await recorded(p, 1, "federation.unapproved")
    assert (record["why"], record["approval"]["id"], record["detail"]) == (why, "approval-1", {"to": "ready"})
    async with living(p, *HOSPITALS):
        await asyncio.sleep(max(0.0, (found.plan.start_at - datetime.now(UTC)).total_seconds()) + 1)
        await until(p, federation, "ready", f"approval:{why}")
        assert not p.emitted(FederationStarted)
        await p.publish(grant(p, federation, hash_, "approval-2"), source="governance")
        assert (await opened(p, 1)).data.federation == federation, "another approval starts it"
    proof = unpack(await load(p.stores.kept, p.emitted(FederationStarted)[0].data.proof))
    assert jwt.decode(proof.approval, options={"verify_signature": False})["jti"] == "approval-2"


async def test_an_approval_whose_time_is_over_starts_nothing_also_where_nobody_says_so(p: Platform) -> None:
    federation, _ = await queued(p, 14, minutes=9 / 60)
    async with living(p, *HOSPITALS):
        found = await until(p, federation, "ready", "approval:expired", "time")
        await asyncio.sleep(max(0.0, (found.plan.start_at - datetime.now(UTC)).total_seconds()) + 1)
        await until(p, federation, "ready", "approval:expired")
    assert not p.emitted(FederationStarted)


async def test_a_start_and_its_revocation_are_one_after_the_other(p: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two coordinators; one is about to start it when the approval is revoked. Whoever is first, no start is made of what was revoked."""
    starting, go = asyncio.Event(), asyncio.Event()
    made = steps._started

    async def slowly(*about: Any) -> Any:
        starting.set()
        await go.wait()
        return await made(*about)

    monkeypatch.setattr(steps, "_started", slowly)
    runtime = p.runtimes["federation"]
    async with running(SERVICE, runtime.settings), living(p, *HOSPITALS):
        federation, hash_ = await queued(p, 10)
        await asyncio.wait_for(starting.wait(), 40)
        revoked = ApprovalRevoked(approval="approval-1", action="federation.start", target=federation, digest=hash_)
        handled = await p.publish(revoked, source="governance")
        await asyncio.sleep(0.5)
        assert not await _handled(p, handled), "it waits for the start"
        go.set()
        await opened(p, 1)
        async with asyncio.timeout(20):
            while not await _handled(p, handled):
                await asyncio.sleep(0.02)
        assert ((await view(p, federation)).state, len(p.emitted(FederationStarted))) == ("running", 1)
        assert not [r for r in await p.audited("federation") if r["sub"] == "federation.unapproved"], "it started: it stays started"


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


async def _handled(p: Platform, event: str) -> bool:
    from sqlalchemy import text

    async with p.runtimes["federation"].unit() as uow:
        wanted = text("SELECT 1 FROM inbox WHERE event_id = :event AND consumer = 'federation-approval-withdrawn'").bindparams(event=event)
        return await uow.first(wanted) is not None


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
