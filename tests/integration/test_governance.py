"""Governance on real servers: accounts, enrolment, approvals."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests.platform import Platform, platform

from medmesh.contracts.governance import (
    ActivateUser,
    ActorToken,
    ApprovalGranted,
    Bootstrap,
    ConfirmSecondFactor,
    CreateUser,
    DecideApproval,
    Done,
    Enrol,
    EnrolmentState,
    EnrolSecondFactor,
    GetEnrolment,
    OneTimeCode,
    OpenSession,
    RegisterHospital,
    RequestApproval,
    ResolveSession,
    SecondFactorSecret,
    SessionOpened,
)
from medmesh.embedded.testing import RunningServers
from medmesh.errors import Problem
from medmesh.security import approvals, totp
from medmesh.security.authority import hospital_of, new_key, node_request
from medmesh.security.keys import write_secret
from medmesh_governance.service import SERVICE

TOKEN = "one-time-token"
PASSWORD = "Correct-Horse-7-Battery"


@pytest.fixture
async def p(servers: RunningServers, private: Path) -> AsyncIterator[Platform]:
    token = private / "bootstrap"
    token.write_text(hashlib.sha256(TOKEN.encode()).hexdigest())
    write_secret(private / "seal", os.urandom(32))
    extra = {"authority": private / "ca", "bootstrap_token": token, "seal_key": private / "seal"}
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
    enrol = Enrol(hospital="renji", node="node-1", code=issued.code, csr_pem=csr)
    pending = await p.ask(enrol, EnrolmentState)
    assert (pending.state, pending.certificate_pem) == ("pending", None)
    assert await p.ask(enrol, EnrolmentState) == pending, "asking again is harmless"
    with pytest.raises(Problem):
        await p.ask(enrol.model_copy(update={"csr_pem": node_request(new_key(), "renji", "node-2")}), EnrolmentState)
    assert pending.approval
    done = await p.send(DecideApproval(approval=pending.approval, approve=True), p.person("wu", "approver"))
    assert done.succeeded, done.problem
    enrolled = await p.ask(GetEnrolment(hospital="renji", enrolment=pending.enrolment, code=issued.code), EnrolmentState)
    assert enrolled.certificate_pem
    from cryptography import x509

    assert hospital_of(x509.load_pem_x509_certificate(enrolled.certificate_pem.encode())) == ("renji", "node-1")


async def test_the_maker_is_never_the_checker_and_the_token_binds_the_exact_request(p: Platform) -> None:
    digest = hashlib.sha256(b"plan").hexdigest()
    maker = p.person("li", "researcher", "approver")
    asked = await p.send(RequestApproval(action="federation.start", target="fed-1", digest=digest), maker)
    assert asked.succeeded
    assert asked.result
    approval = asked.result["approval"]
    own = await p.send(DecideApproval(approval=approval, approve=True), maker)
    assert not own.succeeded
    assert own.problem
    assert own.problem["code"] == "security.approval_maker"
    assert (await p.send(DecideApproval(approval=approval, approve=True), p.person("wu", "approver"))).succeeded
    granted = (await p.wait(ApprovalGranted)).data
    key = p.trust.governance
    found = approvals.verify(granted.token, key, action="federation.start", digest=digest, at=datetime.now(UTC))
    assert found.approvers == ("person:wu@platform",)
    with pytest.raises(Problem):
        approvals.verify(granted.token, key, action="federation.start", digest="0" * 64, at=datetime.now(UTC))
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
