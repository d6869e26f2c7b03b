"""Emergency access on real servers: opened by the gateway's door, told, recorded, ended, reviewed; and what it never opens."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Interval, literal, update
from sqlalchemy.exc import IntegrityError
from tests.platform import Platform, platform
from tests.world import World, small_world

from medmesh.client import Gateway
from medmesh.client.people import enrol
from medmesh.contracts import governance as g
from medmesh.embedded.ports import Ports
from medmesh.embedded.testing import RunningServers
from medmesh.errors import Problem
from medmesh.security import totp
from medmesh.security.keyring.file import FileKeys
from medmesh.security.keys import write_secret
from medmesh.security.tokens import verify_actor
from medmesh_governance import emergencies as watching
from medmesh_governance.service import SERVICE
from medmesh_governance.tables import emergencies, users
from medmesh_ingestion.service import SERVICE as INGESTION

PASSWORD = "Correct-Horse-7-Battery"
NOTE = "nobody of radiology can be reached"


@pytest.fixture
async def p(servers: RunningServers, private: Path) -> AsyncIterator[Platform]:
    (private / "bootstrap").write_text(hashlib.sha256(b"token").hexdigest())
    FileKeys(private / "seal").ensure("seal")
    keys = {"authority": private / "ca", "bootstrap_token": private / "bootstrap", "seal_keys": str(private / "seal")}
    async with platform(servers, private, SERVICE, settings={"governance": keys}) as made:
        await made.ask(g.RegisterHospital(hospital="renji", display_name="r"), g.OneTimeCode, made.person("sun", "security_administrator"))
        yield made


class Clinician:
    """Somebody with a session and an authenticator."""

    def __init__(self, p: Platform, name: str, session: str, secret: bytes) -> None:
        self.p, self.name, self.session, self.secret = p, name, session, secret
        self.token = p.person(name, "clinician")

    async def wish(self, **changed: Any) -> g.OpenEmergency:
        """An opening with a code that counts: the step used last is put back, so that no test waits half a minute."""
        async with self.p.runtimes["governance"].unit() as uow:
            await uow.execute(update(users).where(users.c.name == self.name).values(factor_step=0))
        values = {"organisation": "renji", "reason": "resuscitation", "note": NOTE, "code": self.code(), **changed}
        return g.OpenEmergency(session=self.session, **values)

    def code(self) -> str:
        return totp.code_for(self.secret, totp.step_at(datetime.now(UTC)))

    async def open(self, **changed: Any) -> g.EmergencyView:
        return await self.p.ask(await self.wish(**changed), g.EmergencyView, self.token)

    async def refused(self, **changed: Any) -> str:
        return await self.p.refused(await self.wish(**changed), self.token)

    async def resolved(self) -> Any:
        token = (await self.p.ask(g.ResolveSession(session=self.session), g.ActorToken)).token
        return verify_actor(token, self.p.trust, datetime.now(UTC))


async def clinician(p: Platform, name: str = "chen", *, factor: bool = True) -> Clinician:
    admin = p.person("sun", "security_administrator")
    made = await p.ask(g.CreateUser(name=name, display_name=name, organisation="platform", roles=("clinician",)), g.OneTimeCode, admin)
    await p.ask(g.ActivateUser(name=name, code=made.code, password=PASSWORD), g.Done)
    session = (await p.ask(g.OpenSession(name=name, password=PASSWORD), g.SessionOpened)).session
    secret = b"0" * 20
    if factor:
        secret = totp.read((await p.ask(g.EnrolSecondFactor(session=session), g.SecondFactorSecret)).secret)
        await p.ask(g.ConfirmSecondFactor(session=session, code=totp.code_for(secret, totp.step_at(datetime.now(UTC)))), g.Done)
    return Clinician(p, name, session, secret)


async def sql(p: Platform, *statements: Any) -> None:
    async with p.runtimes["governance"].unit() as uow:
        for statement in statements:
            await uow.execute(statement)


async def later(p: Platform, **shift: Any) -> None:
    """As if it had been opened that long ago."""
    by = timedelta(**shift)
    values = {column: getattr(emergencies.c, column) - literal(by, Interval()) for column in ("opened_at", "expires_at", "due_at")}
    await sql(p, update(emergencies).values(values))


async def watch(p: Platform) -> None:
    async with p.runtimes["governance"].unit() as uow:
        await watching.watch(uow)


async def records(p: Platform, verb: str) -> list[dict[str, Any]]:
    return [record for record in await p.audited("governance") if record["sub"] == verb]


async def test_it_opens_at_once_also_while_the_log_is_away_and_everything_under_it_carries_its_id(p: Platform) -> None:
    chen = await clinician(p)
    runtime = p.runtimes["governance"]
    runtime.emission.privileged_seconds = 1.0
    async with asyncio.timeout(20):
        while runtime.emission.lag() < 1.0:
            await asyncio.sleep(0.05)
    locked = g.CreateUser(name="nobody", display_name="n", organisation="platform", roles=("clinician",))
    assert await p.refused(locked, p.person("sun", "security_administrator")) == "audit.behind", "no log is there"

    made = await chen.open(minutes=30)
    assert (made.state, made.organisation, made.person) == ("open", "renji", "chen")
    assert made.expires - made.opened == timedelta(minutes=30)
    assert made.due - made.opened == timedelta(hours=24)
    actor = await chen.resolved()
    assert (actor.emergency.id, actor.emergency.organisation, actor.emergency.until) == (made.emergency, "renji", made.expires)
    assert actor.strong_at is not None
    told = (await p.wait(g.EmergencyOpened)).data
    assert (told.emergency, told.person, told.hospitals) == (made.emergency, "chen", ("renji",))

    (record,) = await records(p, "emergency.open")
    assert (record["type"]["code"], record["type"]["subcode"], record["pou"]) == ("110113", "110127", "BTG")
    assert "role:clinician" in record["policy"]["rules"]
    assert "renji" in record["orgs"]
    assert {"type": "emergency", "id": made.emergency, "ver": "", "digest": ""} in record["entities"]
    fresh = (await p.ask(g.ResolveSession(session=chen.session), g.ActorToken)).token
    assert (await p.send(g.EndEmergency(emergency=made.emergency), fresh)).succeeded
    (ended,) = await records(p, "emergency.end")
    assert (ended["approval"], ended["pou"]) == ({"emergency": made.emergency}, "BTG")
    assert (await chen.resolved()).emergency is None


async def test_the_note_stands_in_no_event_record_or_log_and_names_nobody(p: Platform, capsys: pytest.CaptureFixture[str]) -> None:
    chen = await clinician(p)
    for note in ("call 13800138000", "王先生", "  ", "two\nlines"):
        assert await chen.refused(note=note) == "governance.emergency_note"
    made = await chen.open(note="token eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiJjaGVuIn0.x of the ward")
    assert made.note == "token [redacted] of the ward"
    told = json.dumps(await p.audited("governance")) + repr(p.seen) + capsys.readouterr().out
    assert "of the ward" not in told
    assert "13800138000" not in told
    assert chen.session not in told


async def test_without_the_second_factor_shown_now_without_the_role_or_for_nowhere_nothing_opens(p: Platform) -> None:
    chen = await clinician(p)
    wrong = str((int(chen.code()) + 500_000) % 1_000_000).zfill(6)
    assert await chen.refused(code=wrong) == "governance.code_wrong"
    assert await chen.refused(organisation="nowhere") == "request.not_found"
    li = p.person("chen", "researcher", "approver", "auditor", "security_administrator")
    assert await p.refused(await chen.wish(), li) == "access.denied"
    assert await p.refused(await chen.wish(), p.person("zhou", "clinician")) == "governance.session_over", "a session of somebody else"
    bare = await clinician(p, "bare", factor=False)
    assert await bare.refused() == "governance.no_second_factor"
    for _ in range(4):
        assert await chen.refused(code=wrong) == "governance.code_wrong"
    assert await chen.refused() == "governance.locked"
    assert [record["entities"][0]["id"] for record in await records(p, "user.locked")] == ["chen"]
    assert p.emitted(g.EmergencyOpened) == []


async def test_a_lost_answer_is_given_again_and_a_second_one_is_refused(p: Platform) -> None:
    chen = await clinician(p)
    wish = await chen.wish()
    first = await p.ask(wish, g.EmergencyView, chen.token)
    again = await p.ask(wish, g.EmergencyView, chen.token)
    assert again == first, "the code counted once, and the answer was lost"
    assert await chen.refused(reason="transfer") == "governance.emergency_open"
    zhou = await clinician(p, "zhou")
    wish = await zhou.wish()
    twice = (wish, wish.model_copy(update={"reason": "transfer"}))
    both = await asyncio.gather(*(p.refused(each, zhou.token) for each in twice))
    assert sorted(both) == ["", "governance.emergency_open"], "at once, one of them opens"
    assert [record["out"] for record in await records(p, "emergency.open")] == [0, 4, 0, 4]


async def test_it_ends_with_its_time_and_with_its_session_and_nobody_else_ends_it(p: Platform) -> None:
    chen = await clinician(p)
    made = await chen.open()
    zhou = p.person("zhou", "clinician")
    done = await p.send(g.EndEmergency(emergency=made.emergency), zhou)
    assert (done.problem or {})["code"] == "governance.emergency_not_yours"
    await later(p, minutes=60)
    assert (await chen.resolved()).emergency is None, "before anybody wrote it down"
    await watch(p)
    assert (await p.wait(g.EmergencyEnded)).data.by == "time"
    second = await chen.open()
    await p.ask(g.CloseSession(session=chen.session), g.Done)
    await watch(p)
    assert (await p.wait(g.EmergencyEnded, lambda e: e.data.emergency == second.emergency)).data.by == "session"
    listed = (await p.ask(g.ListEmergencies(), g.Emergencies, chen.token)).emergencies
    assert [view.state for view in listed] == ["ended", "ended"]
    assert (await p.ask(g.ListEmergencies(), g.Emergencies, zhou)).emergencies == (), "who does not review sees their own"
    third = await clinician(p, "third")
    made = await third.open()
    assert (await p.send(g.EndEmergency(emergency=made.emergency), p.person("sun", "security_administrator"))).succeeded
    again = await third.open()
    await later(p, minutes=60)
    await third.open()  # who opens the next one writes down that the last is over
    ended = [(record["entities"][0]["id"], record["detail"]["by"]) for record in await records(p, "emergency.end") if not record["out"]]
    assert [by for _, by in ended] == ["time", "session", "person:sun@platform", "time"]
    assert ended[-1][0] == again.emergency


async def test_nobody_reviews_their_own_and_one_that_is_open_is_not_found_good(p: Platform) -> None:
    chen = await clinician(p)
    made = await chen.open()

    async def review(by: str, justified: bool = True, comment: str = "") -> str:
        wanted = g.ReviewEmergency(emergency=made.emergency, justified=justified, comment=comment)
        return str(((await p.send(wanted, by)).problem or {}).get("code", ""))

    wu, own = p.person("wu", "approver"), p.person("chen", "clinician", "approver")
    assert await review(p.person("wu", "clinician", "auditor")) == "access.denied"
    assert await review(own) == "governance.emergency_maker"
    assert await review(wu) == "governance.emergency_state"
    assert (await p.send(g.EndEmergency(emergency=made.emergency), chen.token)).succeeded
    assert await review(own) == "governance.emergency_maker"
    assert await review(wu) == ""
    assert await review(wu) == "governance.emergency_state", "once"
    assert (await p.wait(g.EmergencyReviewed)).data.justified
    with pytest.raises(IntegrityError, match="maker_is_not_reviewer"):
        await sql(p, update(emergencies).values(reviewer="chen"))
    with pytest.raises(IntegrityError, match="judged_by_one"):
        await sql(p, update(emergencies).values(reviewer=None))
    await chen.open()


async def test_not_justified_ends_the_sessions_and_takes_the_privilege_until_it_is_restored(p: Platform) -> None:
    chen = await clinician(p)
    made = await chen.open()
    wu, admin = p.person("wu", "approver"), p.person("sun", "security_administrator")
    no = g.ReviewEmergency(emergency=made.emergency, justified=False)
    assert ((await p.send(no, wu)).problem or {})["code"] == "governance.emergency_note", "it says why"
    assert (await p.send(no.model_copy(update={"comment": "no patient of the ward"}), wu)).succeeded
    assert await p.refused(g.ResolveSession(session=chen.session)) == "governance.session_over"
    chen.session = (await p.ask(g.OpenSession(name="chen", password=PASSWORD, code=await fresh(chen)), g.SessionOpened)).session
    assert await chen.refused() == "governance.emergency_withdrawn"
    restore = g.RestoreEmergency(name="chen")
    for by, code in ((wu, "access.denied"), (p.person("chen", "security_administrator"), "governance.yourself")):
        assert ((await p.send(restore, by)).problem or {})["code"] == code
    assert (await p.send(restore, admin)).succeeded
    assert (await chen.open()).state == "open"


async def fresh(chen: Clinician) -> str:
    await chen.wish()
    return chen.code()


async def test_a_review_that_is_late_is_told_once_and_forbids_the_next_one_until_it_is_done(p: Platform) -> None:
    chen = await clinician(p)
    made = await chen.open()
    await later(p, hours=24)
    assert await chen.refused() == "governance.emergency_overdue", "before anybody swept"
    await watch(p)
    await watch(p)
    await p.wait(g.EmergencyOverdue)
    (record,) = await records(p, "emergency.overdue")
    assert (record["out"], record["why"]) == (8, "governance.emergency_overdue")
    review = g.ReviewEmergency(emergency=made.emergency, justified=True)
    assert (await p.send(review, p.person("wu", "approver"))).succeeded
    assert (await records(p, "emergency.review"))[0]["detail"]["late"] is True
    assert (await chen.open()).state == "open"
    assert len(p.emitted(g.EmergencyOverdue)) == 1


@pytest.fixture
async def world(servers: RunningServers, private: Path, ports: Ports) -> AsyncIterator[World]:
    write_secret(private / "project.key", os.urandom(32))
    settings = {"gateway": {"session_cache_seconds": 1}, "ingestion": {"key": private / "project.key"}}
    async with small_world(servers, private, ports, INGESTION, settings=settings) as made:
        yield made


async def code(door: Gateway, method: str, path: str, body: Any = None) -> str:
    try:
        await door.request(method, path, body)
    except Problem as problem:
        return problem.code
    return ""


async def test_through_the_door_a_clinician_reads_under_it_the_hospital_hears_and_the_log_has_every_record(world: World) -> None:
    admin = await world.admin()
    await admin.request("POST", "/v1/hospitals", {"hospital": "renji", "display_name": "r"})
    chen, auditor = await world.user(admin, "chen", "clinician"), await world.user(admin, "an", "auditor")
    await enrol(chen, world.authenticators["chen"])
    assert await code(chen, "GET", "/v1/datasets/brain") == "access.denied"
    body = {"organisation": "renji", "reason": "deterioration", "note": NOTE, "code": await world.authenticators["chen"].code()}
    made = await chen.request("POST", "/v1/emergencies", body)
    assert await code(chen, "GET", "/v1/datasets/brain") == "request.not_found", "allowed at the gateway and by its owner"
    closed = (("POST", "/v1/users"), ("GET", "/v1/audit/events"), ("POST", "/v1/audit/exports"), ("POST", "/v1/approvals/x/decision"))
    for method, path in closed:
        assert await code(chen, method, path, {} if method == "POST" else None) == "access.denied", path
    node = world.node("renji")
    async with asyncio.timeout(20):
        while not (facts := await node.poll(0, 1)):
            await asyncio.sleep(0.1)
    assert facts[0][1]["data"]["emergency"] == made["emergency"]
    assert "actor" not in facts[0][1]
    await chen.command("POST", f"/v1/emergencies/{made['emergency']}/end")
    async with asyncio.timeout(20):
        while await code(chen, "GET", "/v1/datasets/brain") != "access.denied":
            await asyncio.sleep(0.2)
    async with asyncio.timeout(30):  # two services ship their records on their own
        while True:
            under = await world.records(auditor, entity=f"emergency:{made['emergency']}")
            denied = {record["detail"].get("action") for record in under if record["sub"] == "access.denied"}
            if denied >= {"user.create", "audit.read"} and "emergency.open" in {record["sub"] for record in under}:
                break
            await asyncio.sleep(0.2)
    alerts: list[dict[str, Any]] = []
    async with asyncio.timeout(30):
        while not alerts:
            alerts = [r for r in await world.records(auditor, verb="audit.*") if r["why"] == "alert.emergency"]
            await asyncio.sleep(0.2)
    assert alerts[0]["detail"]["about"] == f"emergency:{made['emergency']}"
    await admin.command("POST", f"/v1/emergencies/{made['emergency']}/review", {"justified": True})
    await node.close()
