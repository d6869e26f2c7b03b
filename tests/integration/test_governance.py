"""Governance on real servers: accounts, enrolment, approvals."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import update
from tests.platform import Platform, platform

from medmesh.contracts.annotation import LabelsExported
from medmesh.contracts.audit import ExportFinished
from medmesh.contracts.federation import ApprovalFailed, FederationStarted
from medmesh.contracts.governance import (
    ActivateUser,
    ActorToken,
    ApprovalExpired,
    ApprovalGranted,
    ApprovalRevoked,
    Approvals,
    Bootstrap,
    ConfirmSecondFactor,
    CreateUser,
    Done,
    Enrol,
    EnrolmentState,
    EnrolSecondFactor,
    GetEnrolment,
    ListApprovals,
    OneTimeCode,
    OpenSession,
    RegisterHospital,
    RegisterKey,
    RequestApproval,
    ResolveSession,
    RevokeApproval,
    SecondFactorSecret,
    SessionOpened,
)
from medmesh.contracts.ingestion import DatasetReleased
from medmesh.contracts.message import Event, ObjectRef
from medmesh.embedded.testing import RunningServers
from medmesh.errors import Problem
from medmesh.ledger.note import verifier_key
from medmesh.security import approvals, totp
from medmesh.security.authority import fingerprint, hospital_of, new_key, node_request
from medmesh.security.keyring.file import FileKeys
from medmesh.security.signing import Signer, key_fingerprint
from medmesh_governance.handlers import expire
from medmesh_governance.service import SERVICE
from medmesh_governance.tables import approvals as approvals_table

TOKEN = "one-time-token"
PASSWORD = "Correct-Horse-7-Battery"


@pytest.fixture
async def p(servers: RunningServers, private: Path) -> AsyncIterator[Platform]:
    token = private / "bootstrap"
    token.write_text(hashlib.sha256(TOKEN.encode()).hexdigest())
    FileKeys(private / "seal").ensure("seal")
    extra = {"authority": private / "ca", "bootstrap_token": token, "seal_keys": str(private / "seal")}
    async with platform(servers, private, SERVICE, settings={"governance": extra}) as made:
        yield made


async def _admin(p: Platform) -> str:
    await p.ask(Bootstrap(token=TOKEN, name="sun", display_name="Sun", password=PASSWORD), Done)
    session = await p.ask(OpenSession(name="sun", password=PASSWORD), SessionOpened)
    made = await p.ask(EnrolSecondFactor(session=session.session), SecondFactorSecret)
    code = totp.code_for(totp.read(made.secret), totp.step_at(datetime.now(UTC)))
    await p.ask(ConfirmSecondFactor(session=session.session, code=code), Done)
    return (await p.ask(ResolveSession(session=session.session), ActorToken)).token


async def test_the_first_administrator_needs_the_one_time_token_and_only_one_gets_in(p: Platform) -> None:
    with pytest.raises(Problem) as caught:
        await p.ask(Bootstrap(token="guess", name="sun", display_name="S", password=PASSWORD), Done)
    assert caught.value.code == "governance.bootstrap_refused"
    await p.ask(Bootstrap(token=TOKEN, name="sun", display_name="S", password=PASSWORD), Done)
    with pytest.raises(Problem) as caught:
        await p.ask(Bootstrap(token=TOKEN, name="eve", display_name="E", password=PASSWORD), Done)
    assert caught.value.code == "governance.bootstrap_refused"
    with pytest.raises(Problem) as caught:
        await p.ask(OpenSession(name="sun", password="wrong"), SessionOpened)
    assert caught.value.code == "governance.sign_in_refused"
    told = [(record["sub"], record["out"], record["why"]) for record in await p.audited("governance")]
    refused = ("governance.bootstrap", 4, "governance.bootstrap_refused")
    assert told == [refused, ("governance.bootstrap", 0, ""), refused, ("session.open", 4, "governance.sign_in_refused")]


async def test_a_user_activates_with_a_code_and_roles_that_exclude_each_other_are_refused(p: Platform) -> None:
    admin = await _admin(p)
    roles = ("system_administrator", "audit_administrator")
    with pytest.raises(Problem) as caught:
        await p.ask(CreateUser(name="zhou", display_name="Z", organisation="platform", roles=roles), OneTimeCode, admin)
    assert caught.value.code == "security.role_exclusive"
    made = await p.ask(CreateUser(name="li", display_name="李", organisation="platform", roles=("researcher",)), OneTimeCode, admin)
    with pytest.raises(Problem) as caught:
        await p.ask(ActivateUser(name="li", code=made.code, password="short"), Done)
    assert caught.value.code == "security.password_weak"
    await p.ask(ActivateUser(name="li", code=made.code, password=PASSWORD), Done)
    opened = await p.ask(OpenSession(name="li", password=PASSWORD), SessionOpened)
    assert opened.roles == ("researcher",)
    researcher = (await p.ask(ResolveSession(session=opened.session), ActorToken)).token
    with pytest.raises(Problem) as caught:
        await p.ask(CreateUser(name="x", display_name="X", organisation="platform", roles=()), OneTimeCode, researcher)
    assert caught.value.code == "access.denied"


async def test_a_node_enrols_by_code_request_and_a_second_persons_approval(p: Platform) -> None:
    admin = await _admin(p)
    issued = await p.ask(RegisterHospital(hospital="renji", display_name="仁济医院"), OneTimeCode, admin)
    csr = node_request(new_key(), "some-other-name", "node-1")
    organisation = Signer.create("hospital:renji").vkey
    enrol = Enrol(hospital="renji", node="node-1", code=issued.code, csr_pem=csr, organisation_key=organisation)
    pending = await p.ask(enrol, EnrolmentState)
    assert (pending.state, pending.certificate_pem) == ("pending", None)
    assert await p.ask(enrol, EnrolmentState) == pending, "asking again is harmless"
    with pytest.raises(Problem):
        await p.ask(enrol.model_copy(update={"csr_pem": node_request(new_key(), "renji", "node-2")}), EnrolmentState)
    assert pending.approval
    done = await p.decide(pending.approval, "wu")
    assert done.succeeded, done.problem
    enrolled = await p.ask(GetEnrolment(hospital="renji", enrolment=pending.enrolment, code=issued.code), EnrolmentState)
    assert enrolled.certificate_pem
    from cryptography import x509

    certificate = x509.load_pem_x509_certificate(enrolled.certificate_pem.encode())
    assert hospital_of(certificate) == ("renji", "node-1")
    made = [r["entities"] for r in await p.audited("governance") if r["sub"] == "node.enrolled"]
    node = {"type": "node", "id": "node-1", "ver": "", "digest": fingerprint(certificate)}
    assert made == [[node, {"type": "hospital", "id": "renji", "ver": "", "digest": ""}]]


async def test_the_maker_is_never_the_checker_and_the_token_binds_the_exact_request(p: Platform) -> None:
    digest = hashlib.sha256(b"plan").hexdigest()
    maker = p.person("li", "researcher", "approver")
    asked = await p.send(RequestApproval(action="federation.start", target="fed-1", digest=digest), maker)
    assert asked.succeeded
    assert asked.result
    approval = asked.result["approval"]
    own = await p.decide(approval, "li", "researcher", "approver")
    assert not own.succeeded
    assert own.problem
    assert own.problem["code"] == "security.approval_maker"
    assert (await p.decide(approval, "wu")).succeeded
    granted = (await p.wait(ApprovalGranted)).data
    key = p.trust.governance
    found = approvals.verify(granted.token, key, p.rosters.present(), action="federation.start", digest=digest, at=datetime.now(UTC))
    assert found.approvers == ("person:wu@platform",)
    with pytest.raises(Problem):
        approvals.verify(granted.token, key, p.rosters.present(), action="federation.start", digest="0" * 64, at=datetime.now(UTC))
    verbs = [record["sub"] for record in await p.audited("governance")]
    assert verbs.count("approval.decide") >= 1


async def test_a_command_delivered_twice_has_one_effect(p: Platform) -> None:
    from medmesh.contracts.message import new_id

    id_ = new_id()
    command = RequestApproval(action="federation.start", target="fed-2", digest="1" * 64)
    first = await p.send(command, p.person("li", "researcher"), id=id_)
    second = await p.send(command, p.person("li", "researcher"), id=id_)
    assert first.result == second.result
    from medmesh.contracts.governance import ApprovalRequested

    assert len([e for e in p.emitted(ApprovalRequested) if e.data.target == "fed-2"]) == 1


async def _requested(p: Platform, target: str, by: str) -> str:
    asked = await p.send(RequestApproval(action="federation.start", target=target, digest="2" * 64), by)
    return str((asked.result or {})["approval"])


async def _state(p: Platform, approval: str) -> str:
    listed = (await p.ask(ListApprovals(), Approvals, p.person("wu", "approver"))).approvals
    return next(view.state for view in listed if view.approval == approval)


async def _in(p: Platform, state: str) -> set[str]:
    return {view.approval for view in (await p.ask(ListApprovals(state=state), Approvals, p.person("wu", "approver"))).approvals}


async def test_a_request_is_taken_back_by_who_made_it_before_and_after_it_was_granted(p: Platform) -> None:
    maker, other = p.person("li", "researcher"), p.person("xu", "researcher")
    first, second = await _requested(p, "fed-a", maker), await _requested(p, "fed-b", maker)
    refused = await p.send(RevokeApproval(approval=first), other)
    assert (refused.problem or {})["code"] == "governance.not_yours"
    assert (await p.send(RevokeApproval(approval=first, reason="wrong plan"), maker)).result == {"approval": first, "state": "revoked"}
    late = await p.decide(first, "wu")
    assert (late.problem or {})["code"] == "governance.approval_closed"
    assert (await p.decide(second, "wu")).succeeded
    assert (await p.send(RevokeApproval(approval=second), p.person("sun", "security_administrator"))).succeeded
    again = await p.send(RevokeApproval(approval=second), maker)
    assert (again.problem or {})["params"]["state"] == "revoked"
    await p.wait(ApprovalRevoked, lambda found: found.data.approval == second)
    assert await _in(p, "revoked") == {first, second}
    records = [record for record in await p.audited("governance") if record["sub"] == "approval.revoke" and record["out"] == 0]
    assert [record["agents"][0]["who"] for record in records] == ["person:li", "person:sun"]


async def test_an_approval_is_executed_when_its_owner_says_so_and_is_no_longer_taken_back(p: Platform) -> None:
    maker = p.person("li", "researcher")
    approval, waiting = await _requested(p, "fed-a", maker), await _requested(p, "fed-c", maker)
    assert (await p.decide(approval, "wu")).succeeded
    for target in ("fed-a", "fed-c"):
        await p.publish(FederationStarted(federation=target, plan_hash="2" * 64, hospitals=()), source="federation")
    async with asyncio.timeout(20):
        while await _state(p, approval) != "executed":
            await asyncio.sleep(0.02)
    assert await _state(p, waiting) == "open", "what nobody granted was not executed by anybody's word"
    refused = await p.send(RevokeApproval(approval=approval), maker)
    assert (refused.problem or {})["params"]["state"] == "executed"


async def test_whoever_executes_an_approved_action_says_so_in_its_own_fact(p: Platform) -> None:
    labels = ObjectRef(sha256="3" * 64, bytes=1)
    facts: list[tuple[str, str, Event, str]] = [
        ("dataset.release", "brain/2", DatasetReleased(dataset="brain", version=2, content=labels, approval="x"), "ingestion"),
        ("annotation.export", "cxr/1", LabelsExported(project="cxr", version=1, labels=labels, accepted=2), "annotation"),
        ("audit.export", "e-1", ExportFinished(export="e-1", format="jsonl", records=1, object=labels, code=""), "audit"),
        ("audit.export", "e-2", ExportFinished(export="e-2", format="jsonl", records=0, object=None, code="audit.x"), "audit"),
        (
            *("federation.rollback", "fed-1/3"),
            ApprovalFailed(federation="fed-1", action="federation.rollback", target="fed-1/3", code="federation.closed"),
            "federation",
        ),
    ]
    maker, made = p.person("li", "researcher"), []
    for action, target, _, _ in facts:
        done = await p.send(RequestApproval(action=action, target=target, digest="4" * 64), maker)
        made.append((done.result or {})["approval"])
    async with p.runtimes["governance"].unit() as uow:
        await uow.execute(update(approvals_table).where(approvals_table.c.approval.in_(made)).values(state="granted"))
    for _, _, fact, source in facts:
        await p.publish(fact, source=source)
    async with asyncio.timeout(20):
        while [await _state(p, approval) for approval in made] != ["executed"] * 3 + ["failed"] * 2:
            await asyncio.sleep(0.02)
    listed = (await p.ask(ListApprovals(state="failed"), Approvals, maker)).approvals
    assert {one.target: one.why for one in listed} == {"e-2": "audit.x", "fed-1/3": "federation.closed"}
    for approval in made[3:]:
        again = await p.send(RevokeApproval(approval=approval), maker)
        assert (again.problem or {})["params"]["state"] == "failed", "an end is an end"


async def test_what_was_not_executed_in_time_has_expired_before_and_after_the_sweep(p: Platform) -> None:
    maker = p.person("li", "researcher")
    opened, granted, kept = [await _requested(p, f"fed-{n}", maker) for n in "abc"]
    assert (await p.decide(granted, "wu")).succeeded
    runtime = p.runtimes["governance"]
    async with runtime.unit() as uow:
        over = update(approvals_table).where(approvals_table.c.approval != kept)
        await uow.execute(over.values(expires_at=datetime.now(UTC) - timedelta(seconds=1)))
    for _ in range(2):
        assert await _in(p, "expired") == {opened, granted}
        assert await _in(p, "open") == {kept}
        assert await _in(p, "granted") == set()
        for approval in (opened, granted):
            refused = await p.send(RevokeApproval(approval=approval), maker)
            assert (refused.problem or {})["params"]["state"] == "expired"
        async with runtime.unit() as uow:
            await expire(uow)
    await p.wait(ApprovalExpired, lambda found: found.data.approval == granted)
    assert len(p.emitted(ApprovalExpired)) == 2
    assert sorted(r["detail"]["state"] for r in await p.audited("governance") if r["sub"] == "approval.expire") == ["granted", "open"]


async def test_a_key_is_announced_by_its_own_person_once_on_record(p: Platform) -> None:
    key = Ed25519PrivateKey.generate().public_key()
    theirs, li = verifier_key("person:li@platform", key), p.person("li", "researcher")
    refused = await p.send(RegisterKey(key=verifier_key("person:wu@platform", key)), li)
    assert (refused.problem or {})["code"] == "statement.other"
    for _ in range(2):
        assert ((await p.send(RegisterKey(key=theirs), li)).result or {})["key"] == theirs
    (record,) = [r for r in await p.audited("governance") if r["sub"] == "key.register" and not r["out"]]
    assert [(one["type"], one["id"]) for one in record["entities"]] == [("user", "li"), ("key", theirs)]
    assert record["detail"] == {"fingerprint": key_fingerprint(theirs)}
