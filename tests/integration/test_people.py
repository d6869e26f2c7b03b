"""People on real servers: second factors, step-up, passwords, sessions, accounts that are changed and closed."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, insert, select, update
from sqlalchemy.exc import IntegrityError
from tests.platform import Platform, platform
from tests.rosters import decision

from medmesh.auditing import sheet
from medmesh.contracts import governance as g
from medmesh.embedded.testing import RunningServers
from medmesh.security import totp
from medmesh.security.keyring.file import FileKeys
from medmesh.security.roles import PERSON_ROLES
from medmesh.security.tokens import verify_actor
from medmesh_governance.accounts import disable_ended
from medmesh_governance.people import disable_idle
from medmesh_governance.service import SERVICE
from medmesh_governance.tables import passwords, sessions, users

PASSWORD = "Correct-Horse-7-Battery"


@pytest.fixture
async def p(servers: RunningServers, private: Path) -> AsyncIterator[Platform]:
    (private / "bootstrap").write_text(hashlib.sha256(b"token").hexdigest())
    FileKeys(private / "seal").ensure("seal")
    extra = {"authority": private / "ca", "bootstrap_token": private / "bootstrap", "seal_keys": str(private / "seal")}
    async with platform(servers, private, SERVICE, settings={"governance": extra}) as made:
        yield made


async def sql(p: Platform, *statements: Any) -> None:
    """What time, or somebody at the database, does."""
    async with p.runtimes["governance"].unit() as uow:
        for statement in statements:
            await uow.execute(statement)


async def account(p: Platform, name: str, *roles: str) -> None:
    token = p.person("sun", "security_administrator")
    made = await p.ask(g.CreateUser(name=name, display_name=name, organisation="platform", roles=roles), g.OneTimeCode, token)
    await p.ask(g.ActivateUser(name=name, code=made.code, password=PASSWORD), g.Done)


async def opened(p: Platform, name: str, password: str = PASSWORD, code: str | None = None) -> g.SessionOpened:
    return await p.ask(g.OpenSession(name=name, password=password, code=code), g.SessionOpened)


async def enrolled(p: Platform, name: str) -> tuple[str, bytes]:
    """(session, secret) of somebody who has just enrolled a second factor."""
    session = (await opened(p, name)).session
    secret = totp.read((await p.ask(g.EnrolSecondFactor(session=session), g.SecondFactorSecret)).secret)
    await p.ask(g.ConfirmSecondFactor(session=session, code=now_code(secret)), g.Done)
    return session, secret


def now_code(secret: bytes, steps: int = 0) -> str:
    return totp.code_for(secret, totp.step_at(datetime.now(UTC)) + steps)


async def test_who_needs_a_second_factor_can_only_enrol_one_and_then_signs_in_with_it(p: Platform) -> None:
    await account(p, "wu", "approver")
    first = await opened(p, "wu")
    assert first.must == ("second_factor",)
    assert first.expires < datetime.now(UTC) + timedelta(minutes=16), "the grace is for enrolling"
    session = first.session
    for query in (g.ResolveSession(session=session), g.ListSessions(session=session), g.StepUp(session=session, code="000000")):
        assert await p.refused(query) == "governance.second_factor_due"
    made = await p.ask(g.EnrolSecondFactor(session=session), g.SecondFactorSecret)
    secret = totp.read(made.secret)
    assert made.uri.startswith("otpauth://totp/medmesh:wu?secret=" + made.secret)
    assert await p.refused(g.ConfirmSecondFactor(session=session, code=now_code(secret, 5))) == "governance.code_wrong"
    assert (await opened(p, "wu")).must == ("second_factor",), "what was not confirmed does not count"
    shown = now_code(secret)
    await p.ask(g.ConfirmSecondFactor(session=session, code=shown), g.Done)
    token = (await p.ask(g.ResolveSession(session=session), g.ActorToken)).token
    actor = verify_actor(token, p.trust, datetime.now(UTC))
    assert actor.method == "pwd+otp"
    assert actor.strong_at is not None and datetime.now(UTC) - actor.strong_at < timedelta(minutes=1)

    sign_in = g.OpenSession(name="wu", password=PASSWORD)
    assert await p.refused(sign_in) == "governance.code_needed"
    assert await p.refused(sign_in.model_copy(update={"code": shown})) == "governance.code_wrong", "it was used to confirm"
    code = now_code(secret, 1)
    assert (await opened(p, "wu", code=code)).must == ()
    assert await p.refused(sign_in.model_copy(update={"code": code})) == "governance.code_wrong", "a used step is refused"
    assert await p.refused(g.EnrolSecondFactor(session=session, code=code)) == "governance.code_wrong", "a new one needs the old one"


async def test_the_secret_is_encrypted_at_rest_and_stands_in_no_stream_record_or_log(
    p: Platform, capsys: pytest.CaptureFixture[str]
) -> None:
    await account(p, "wu", "approver")
    _, secret = await enrolled(p, "wu")
    async with p.runtimes["governance"].unit() as uow:
        row = await uow.first(select(users).where(users.c.name == "wu"))
        kept = repr(await uow.all(select(sessions))) + repr(tuple(row or ()))
    told = json.dumps(await p.audited("governance")) + repr(p.seen) + capsys.readouterr().out
    for shape in (secret.decode("latin-1"), totp.text(secret), secret.hex(), PASSWORD):
        assert shape not in told
        assert shape not in kept
    assert row is not None and secret not in row.factor


async def test_codes_cannot_be_guessed_and_only_the_administrator_unlocks(p: Platform) -> None:
    await account(p, "wu", "approver")
    session, secret = await enrolled(p, "wu")
    wrong = str((int(now_code(secret)) + 500_000) % 1_000_000).zfill(6)
    for _ in range(5):
        assert await p.refused(g.StepUp(session=session, code=wrong)) == "governance.code_wrong"
    right = now_code(secret, 1)
    assert await p.refused(g.StepUp(session=session, code=right)) == "governance.locked"
    assert await p.refused(g.OpenSession(name="wu", password=PASSWORD, code=right)) == "governance.locked"
    done = await p.send(g.UnlockUser(name="wu"), p.person("li", "researcher"))
    assert (done.problem or {})["code"] == "access.denied"
    assert (await p.send(g.UnlockUser(name="wu"), p.person("sun", "security_administrator"))).succeeded
    assert await p.refused(g.StepUp(session=session, code=right)) == ""
    verbs = [(record["sub"], record["out"]) for record in await p.audited("governance")]
    assert ("user.locked", 8) in verbs and ("user.unlock", 0) in verbs and verbs.count(("session.step_up", 4)) == 5


async def test_an_action_that_needs_step_up_is_refused_by_its_owner_until_the_factor_was_shown(p: Platform) -> None:
    await account(p, "wu", "approver")
    session, secret = await enrolled(p, "wu")
    digest = "0" * 64
    asked = await p.send(g.RequestApproval(action="model.release", target="r", digest=digest), p.person("li", "researcher"))
    approval = (asked.result or {})["approval"]
    view = next(v for v in (await p.ask(g.ListApprovals(), g.Approvals, p.person("wu", "approver"))).approvals if v.approval == approval)
    decide = g.DecideApproval(approval=approval, approve=True, statement=decision(p.rosters.signer("person:wu@platform"), view))
    await sql(p, update(sessions).values(strong_at=datetime.now(UTC) - timedelta(minutes=6)))
    old = (await p.ask(g.ResolveSession(session=session), g.ActorToken)).token
    assert ((await p.send(decide, old)).problem or {})["code"] == "security.step_up"
    await p.ask(g.StepUp(session=session, code=now_code(secret, 1)), g.Done)
    assert ((await p.send(decide, old)).problem or {})["code"] == "security.step_up", "the token from before stays weak"
    fresh = (await p.ask(g.ResolveSession(session=session), g.ActorToken)).token
    assert (await p.send(decide, fresh)).succeeded


async def test_a_session_left_open_is_no_way_to_a_second_factor_of_somebody_else(p: Platform) -> None:
    await account(p, "li", "researcher")
    session = (await opened(p, "li")).session
    await sql(p, update(sessions).values(opened_at=datetime.now(UTC) - timedelta(minutes=16)))
    assert await p.refused(g.ResolveSession(session=session)) == "", "it is good for anything else"
    assert await p.refused(g.EnrolSecondFactor(session=session)) == "governance.sign_in_again"
    await enrolled(p, "li")


async def test_an_old_password_has_to_be_changed_and_the_last_five_do_not_come_again(p: Platform) -> None:
    await account(p, "li", "researcher")
    other = (await opened(p, "li")).session
    await sql(p, update(users).where(users.c.name == "li").values(password_at=datetime.now(UTC) - timedelta(days=91)))
    late = await opened(p, "li")
    assert late.must == ("password",)
    assert await p.refused(g.ResolveSession(session=late.session)) == "governance.password_due"
    change = g.ChangePassword(session=late.session, old=PASSWORD, new=PASSWORD)
    assert await p.refused(change.model_copy(update={"old": "wrong"})) == "governance.sign_in_refused"
    assert await p.refused(change) == "security.password_used"
    assert await p.refused(change.model_copy(update={"new": "weak"})) == "security.password_weak"
    news = [f"Another-{n}-Good-Battery" for n in range(6)]
    before = PASSWORD
    for new in news[:5]:
        assert await p.refused(change.model_copy(update={"old": before, "new": new})) == "", new
        before = new
    assert await p.refused(g.ResolveSession(session=late.session)) == "", "now it is a session like any other"
    assert await p.refused(g.ResolveSession(session=other)) == "governance.session_over", "the others ended"
    assert await p.refused(change.model_copy(update={"old": before, "new": news[0]})) == "security.password_used"
    assert await p.refused(change.model_copy(update={"old": before, "new": PASSWORD})) == "", "five changes later it may"
    async with p.runtimes["governance"].unit() as uow:
        assert len(await uow.all(select(passwords).where(passwords.c.name == "li"))) == 5


async def test_sessions_end_when_idle_when_old_and_when_their_owner_says_so(p: Platform) -> None:
    await account(p, "li", "researcher")
    first, second = (await opened(p, "li")).session, (await opened(p, "li")).session
    listed = (await p.ask(g.ListSessions(session=second), g.Sessions)).sessions
    assert [view.this for view in listed] == [True, False]
    await p.ask(g.EndSession(session=second, id=listed[1].id), g.Done)
    assert await p.refused(g.ResolveSession(session=first)) == "governance.session_over"
    assert await p.refused(g.EndSession(session=second, id=listed[1].id)) == "request.not_found"
    now = datetime.now(UTC)
    await sql(p, update(sessions).values(used_at=now - timedelta(minutes=29)))
    assert await p.refused(g.ResolveSession(session=second)) == "", "used again, it is idle no longer"
    await sql(p, update(sessions).values(used_at=now - timedelta(minutes=31)))
    assert await p.refused(g.ResolveSession(session=second)) == "governance.session_over"
    third = (await opened(p, "li")).session
    await sql(p, update(sessions).values(expires_at=now - timedelta(seconds=1), used_at=now))
    assert await p.refused(g.ResolveSession(session=third)) == "governance.session_over", "twelve hours, however busy"
    fourth = (await opened(p, "li")).session
    await p.ask(g.CloseSession(session=fourth), g.Done)
    assert await p.refused(g.ResolveSession(session=fourth)) == "governance.session_over"


async def test_roles_are_changed_by_another_administrator_and_exclude_each_other_in_the_database_too(p: Platform) -> None:
    await account(p, "zhou", "researcher")
    session = (await opened(p, "zhou")).session
    admin = p.person("sun", "security_administrator")

    async def change(name: str, *roles: str, by: str = admin) -> str:
        return str(((await p.send(g.ChangeRoles(name=name, roles=roles), by)).problem or {}).get("code", ""))

    assert await change("zhou", "system_administrator", "audit_administrator") == "security.role_exclusive"
    assert await change("zhou", "annotator", by=p.person("zhou", "researcher")) == "access.denied"
    assert await change("zhou", "annotator", by=p.person("zhou", "security_administrator")) == "governance.yourself"
    assert await change("zhou", "annotator", "reviewer") == ""
    assert await p.refused(g.ResolveSession(session=session)) == "governance.session_over"
    assert (await opened(p, "zhou")).roles == ("annotator", "reviewer")
    assert (await p.wait(g.UserChanged)).data.roles == ("annotator", "reviewer")
    values = {"display_name": "x", "organisation": "platform", "created_at": datetime.now(UTC)}
    for first, second in (("system", "security"), ("system", "audit"), ("security", "audit")):
        pair = [f"{first}_administrator", "researcher", f"{second}_administrator"]
        with pytest.raises(IntegrityError, match="one_administrator"):
            await sql(p, insert(users).values(name=f"{first}-{second}", roles=pair, **values))
    await sql(p, insert(users).values(name="fine", roles=["audit_administrator", "auditor"], **values))


async def test_accounts_are_disabled_by_hand_and_after_ninety_idle_days(p: Platform) -> None:
    await account(p, "li", "researcher")
    await account(p, "xu", "researcher")
    admin = p.person("sun", "security_administrator")
    session = (await opened(p, "li")).session
    assert (await p.send(g.DisableUser(name="li", reason="left the institute"), admin)).succeeded
    assert await p.refused(g.ResolveSession(session=session)) == "governance.session_over"
    assert await p.refused(g.OpenSession(name="li", password=PASSWORD)) == "governance.disabled"
    assert await p.refused(g.OpenSession(name="li", password="wrong")) == "governance.sign_in_refused", "no word to who has no password"
    assert (await p.send(g.EnableUser(name="li"), admin)).succeeded
    assert (await opened(p, "li")).must == ()

    await account(p, "sun", "security_administrator")
    long_ago = datetime.now(UTC) - timedelta(days=91)
    await sql(p, update(users).where(users.c.name != "li").values(signed_in_at=long_ago))
    assert await p.refused(g.OpenSession(name="xu", password=PASSWORD)) == "governance.disabled", "also before anybody swept"
    async with p.runtimes["governance"].unit() as uow:
        await disable_idle(uow)
    listed = {u.name: u for u in (await p.ask(g.ListUsers(), g.Users, admin)).users}
    assert {name: user.disabled for name, user in listed.items()} == {"li": False, "xu": True, "sun": False}
    recorded = [record for record in await p.audited("governance") if record["sub"] == "user.disable"]
    assert [record["detail"]["reason"] for record in recorded] == ["left the institute", "idle"]


async def test_who_lost_password_and_authenticator_gets_in_again_by_a_code_and_nobody_else_does(p: Platform) -> None:
    await account(p, "wu", "approver")
    session, secret = await enrolled(p, "wu")
    admin = p.person("sun", "security_administrator")
    made = await p.ask(g.RecoverUser(name="wu", second_factor=True), g.OneTimeCode, admin)
    assert await p.refused(g.ResolveSession(session=session)) == "governance.session_over"
    assert await p.refused(g.OpenSession(name="wu", password=PASSWORD, code=now_code(secret, 1))) == "governance.sign_in_refused"
    activate = g.ActivateUser(name="wu", code=made.code, password=PASSWORD)
    assert await p.refused(activate) == "security.password_used"
    assert await p.refused(activate.model_copy(update={"password": "Quite-Another-8-Battery"})) == ""
    assert (await opened(p, "wu", "Quite-Another-8-Battery")).must == ("second_factor",)
    assert await p.refused(g.RecoverUser(name="nobody"), admin) == "request.not_found"
    assert await p.refused(g.RecoverUser(name="sun"), admin) == "governance.yourself"
    assert await p.refused(g.RecoverUser(name="wu"), p.person("wu", "security_administrator")) == "governance.yourself"


async def test_secrets_sealed_with_another_key_open_nothing(p: Platform) -> None:
    await account(p, "wu", "approver")
    _, secret = await enrolled(p, "wu")
    await account(p, "eve", "approver")
    stolen = select(users.c.factor).where(users.c.name == "wu").scalar_subquery()
    await sql(p, update(users).where(users.c.name == "eve").values(factor=stolen), delete(sessions))
    query = g.OpenSession(name="eve", password=PASSWORD, code=now_code(secret, 1))
    assert await p.refused(query) == "security.sealed_unreadable"


async def test_the_list_for_evaluators_holds_every_account_with_its_rights_and_what_is_amiss(p: Platform) -> None:
    await account(p, "sun", "security_administrator")
    await account(p, "li", "researcher")
    await account(p, "ward3", "clinician", "annotator")
    admin, auditor = p.person("sun", "security_administrator"), p.person("an", "audit_administrator")
    await sql(p, update(users).where(users.c.name == "li").values(signed_in_at=datetime.now(UTC) - timedelta(days=70)))
    assert (await p.send(g.DisableUser(name="ward3", reason="nobody's"), admin)).succeeded
    found: list[g.AccountEntry] = []
    after: str | None = ""
    while after is not None:
        page = await p.ask(g.ReportAccounts(after=after, limit=2), g.AccountReport, auditor)
        found, after = [*found, *page.accounts], page.next
    assert [(entry.name, entry.state, entry.findings) for entry in found] == [
        ("li", "active", ("idle_soon",)),
        ("sun", "active", ("no_second_factor",)),
        ("ward3", "disabled", ("disabled", "shared")),
    ]
    assert await p.refused(g.ReportAccounts(), p.person("wu", "approver", "auditor", "researcher")) == "access.denied"
    reports = [record for record in await p.audited("governance") if record["sub"] == "user.report"]
    assert [record["detail"] for record in reports] == [{"accounts": 2, "amiss": 2}, {"accounts": 1, "amiss": 1}]
    lines = list(csv.reader(io.StringIO(sheet.accounts(entry.model_dump(mode="json") for entry in found).removeprefix(sheet.BOM))))
    assert lines[0] == list(sheet.ACCOUNT_HEADINGS)
    assert {len(line) for line in lines} == {len(sheet.ACCOUNT_HEADINGS)}
    assert (lines[3][0], lines[3][4], lines[3][5], lines[3][-1]) == ("ward3", "标注员、临床医生", "停用", "已停用；疑似共享账户")
    assert set(sheet.ROLE_NAMES) == {*PERSON_ROLES, "system"}
    formula = found[0].model_copy(update={"display_name": "=cmd"})
    assert "'=cmd" in sheet.accounts([formula.model_dump(mode="json")])


async def test_an_account_for_a_while_ends_with_its_sessions_and_can_be_given_more(p: Platform) -> None:
    await account(p, "li", "researcher")
    admin, now = p.person("sun", "security_administrator"), datetime.now(UTC)
    session = (await opened(p, "li")).session
    assert (await p.send(g.LimitUser(name="li", ends=now + timedelta(hours=1)), admin)).succeeded
    assert await p.refused(g.ResolveSession(session=session)) == ""
    (mine,) = (await p.ask(g.ListSessions(session=session), g.Sessions)).sessions
    assert mine.expires == now + timedelta(hours=1)
    assert (await opened(p, "li")).expires == now + timedelta(hours=1), "no session lasts longer"
    assert (await p.send(g.LimitUser(name="li", ends=now), admin)).succeeded
    assert await p.refused(g.ResolveSession(session=session)) == "governance.session_over"
    assert await p.refused(g.OpenSession(name="li", password=PASSWORD)) == "governance.ended"
    assert await p.refused(g.OpenSession(name="li", password="wrong")) == "governance.sign_in_refused", "no word to who has no password"
    async with p.runtimes["governance"].unit() as uow:
        await disable_ended(uow)
    assert [r["detail"]["reason"] for r in await p.audited("governance") if r["sub"] == "user.disable"] == ["ended"]
    for change in (g.LimitUser(name="li", ends=None), g.EnableUser(name="li")):
        assert (await p.send(change, admin)).succeeded
    assert (await opened(p, "li")).must == ()
    done = await p.send(g.LimitUser(name="sun", ends=None), p.person("sun", "security_administrator"))
    assert not done.succeeded
    naive = await p.send(g.LimitUser.model_construct(name="li", ends=datetime(2027, 1, 1)), admin)
    assert (naive.problem or {})["code"] == "request.invalid"
