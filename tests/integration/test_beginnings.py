"""What has to be before a federation begins: hospitals that can sign and did, in time, and an approval that holds."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import pytest
from sqlalchemy import text
from tests.federations import accept, alive, living, make_plan, opened, view
from tests.platform import Platform
from tests.rosters import acceptance, decision

from medmesh.contracts.federation import (
    FederationFailed,
    FederationInvited,
    FederationReady,
    FederationStarted,
    FederationView,
    RespondInvitation,
)
from medmesh.contracts.governance import ApprovalExpired, ApprovalGranted, ApprovalRevoked
from medmesh.contracts.message import Event
from medmesh.contracts.plan import plan_hash
from medmesh.federated.proof import unpack
from medmesh.security.signing import Signer
from medmesh.service.runtime import running
from medmesh.store.objects.port import load
from medmesh_federation import steps
from medmesh_federation.service import SERVICE


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
        ({"accept_by": now + timedelta(days=91)}, "federation.accept_by", "within 90 days"),
        ({"start_at": now - timedelta(hours=25)}, "federation.start_at", "not more than a day back"),
        ({"start_at": now + timedelta(days=366)}, "federation.start_at", "within 365 days"),
    ):
        done = await p.send(good.model_copy(update={"plan": good.plan.model_copy(update=changed)}), li)
        assert done.problem
        assert (done.problem["code"], words in done.problem["title"]) == (code, True), done.problem
    assert not p.emitted(FederationInvited)
    assert (await p.send(good, li)).succeeded
    at_once = good.plan.model_copy(update={"start_at": now - timedelta(hours=23)})
    assert (await p.send(good.model_copy(update={"plan": at_once}), li)).succeeded


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


async def _handled(p: Platform, event: str) -> bool:

    async with p.runtimes["federation"].unit() as uow:
        wanted = text("SELECT 1 FROM inbox WHERE event_id = :event AND consumer = 'federation-approval-withdrawn'").bindparams(event=event)
        return await uow.first(wanted) is not None
