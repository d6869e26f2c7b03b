"""What people do to a federation while it runs, on real servers: pause, resume, more time, and a hospital that leaves for good."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tests.federations import SETTINGS, accept, alive, living, make_plan, opened, start, submit, view
from tests.platform import Platform, platform
from tests.rosters import acceptance

from medmesh.contracts.federation import (
    CancelFederation,
    ExtendRound,
    FederationFailed,
    FederationPaused,
    FederationView,
    FederationWaiting,
    InvitationExpired,
    ParticipantWithdrew,
    PauseFederation,
    RespondInvitation,
    ResumeFederation,
    RoundCommitted,
    RoundExtended,
    RoundOpened,
    RoundStored,
    WithdrawFromFederation,
)
from medmesh.contracts.message import Command
from medmesh.contracts.plan import plan_hash
from medmesh.embedded.testing import RunningServers
from medmesh_federation.service import SERVICE

THREE = ("huashan", "renji", "tongji")


async def said(p: Platform, command: Command, who: str = "li") -> str:
    """The code it is refused with; empty when it is done."""
    done = await p.send(command, p.hospital(who) if who in THREE else p.person(who, "researcher"))
    return "" if done.succeeded else str((done.problem or {})["code"])


async def rounds(p: Platform, federation: str) -> list[tuple[int, int, str, list[str]]]:
    seen = await view(p, federation)
    return [(r.round, r.attempt, r.state, [a.hospital for a in r.answers if not a.late]) for r in seen.rounds]


async def committed(p: Platform, number: int) -> RoundCommitted:
    return (await p.wait(RoundCommitted, lambda event: event.data.round == number, timeout=30)).data


async def test_while_it_is_paused_answers_are_taken_and_nothing_else_happens_and_its_clock_stands_still(p: Platform) -> None:
    federation = await start(p, THREE, rounds=2)
    one = (await opened(p, 1)).data
    assert await said(p, ResumeFederation(federation=federation)) == "", "it runs: nothing to do"
    assert await said(p, PauseFederation(federation=federation, reason="maintenance")) == ""
    for hospital in THREE:
        assert (await submit(p, one, hospital, 1.0)).succeeded
    await asyncio.sleep(1.5)
    assert (await view(p, federation)).state == "paused"
    assert await rounds(p, federation) == [(1, 1, "open", list(THREE))]
    assert await said(p, ResumeFederation(federation=federation)) == ""
    assert (await committed(p, 1)).participants == THREE
    told = (await p.wait(RoundExtended)).data
    assert (told.deadline - one.deadline).total_seconds() > 1.4
    assert (await view(p, federation)).rounds[0].deadline == told.deadline
    assert (await opened(p, 2)).data.attempt == 1


async def test_a_round_that_needs_more_time_gets_it(p: Platform) -> None:
    federation = await start(p, THREE, rounds=1, round_deadline_seconds=6)
    one = (await opened(p, 1)).data
    assert await said(p, ExtendRound(federation=federation, seconds=60)) == ""
    assert ((await p.wait(RoundExtended)).data.deadline - one.deadline).total_seconds() == 60
    for hospital in THREE[:2]:
        await submit(p, one, hospital, 1.0)
    for _ in range(8):
        await alive(p, *THREE)
        await asyncio.sleep(1)
    assert [r[2] for r in await rounds(p, federation)] == ["open"], "without it the round had closed with two"
    await submit(p, one, THREE[2], 1.0)
    assert (await committed(p, 1)).participants == THREE


async def test_a_hospital_that_leaves_takes_its_last_answer_along_and_is_never_asked_again(p: Platform) -> None:
    federation = await start(p, THREE, rounds=2)
    one = (await opened(p, 1)).data
    for hospital in THREE:
        await submit(p, one, hospital, {"huashan": 1.0, "renji": 3.0, "tongji": 50.0}[hospital])
    await committed(p, 1)
    two = (await opened(p, 2)).data
    await submit(p, two, "tongji", 60.0)
    last = next(a for a in (await view(p, federation)).rounds[1].answers if a.hospital == "tongji")
    assert last.bytes > 0
    assert await said(p, WithdrawFromFederation(federation=federation, reason="not this year"), "tongji") == ""
    again = await p.send(WithdrawFromFederation(federation=federation), p.hospital("tongji"))
    assert again.result == {"state": "withdrawn", "rounds": 1}
    assert (await p.wait(ParticipantWithdrew)).data.rounds == 1
    for hospital in ("huashan", "renji"):
        await submit(p, two, hospital, 2.0)
    done = await committed(p, 2)
    assert done.participants == ("huashan", "renji")
    await p.wait(RoundStored, lambda event: event.data.round == 2)
    seen = {entry.hospital: entry for entry in (await view(p, federation)).participants}
    assert (seen["tongji"].state, seen["tongji"].reason) == ("withdrawn", "not this year")
    assert {event.data.hospitals for event in p.emitted(RoundOpened)} == {THREE}, "both rounds were open before it left"
    assert (await submit(p, two, "tongji", 60.0)).problem["code"] == "federation.not_taking_part"


async def test_when_too_few_are_left_before_the_start_it_does_not_begin(p: Platform) -> None:
    federation = await start(p, THREE, min_participants=3, start_at=datetime.now(UTC) + timedelta(hours=1))
    assert await said(p, WithdrawFromFederation(federation=federation), "renji") == ""
    failed = await p.wait(FederationFailed)
    assert failed.data.code == "federation.quorum"
    assert await said(p, PauseFederation(federation=federation)) == "federation.closed"
    assert await said(p, ExtendRound(federation=federation, seconds=5)) == "federation.no_round"
    assert await said(p, WithdrawFromFederation(federation=federation), "huashan") == "", "also after its end"


async def recorded(p: Platform, verb: str) -> list[dict[str, Any]]:
    return [record for record in await p.audited("federation") if record["sub"] == verb]


async def test_what_who_pauses_or_cancels_says_is_told_recorded_and_shown(p: Platform) -> None:
    federation = await start(p, THREE, rounds=2)
    await opened(p, 1)
    for reason in ("", "  ", "y" * 201):
        assert await said(p, CancelFederation(federation=federation, reason=reason)) == "federation.reason", "nothing is cut off"
    assert (await view(p, federation)).state == "running"
    assert await said(p, PauseFederation(federation=federation, reason="the scanner is serviced")) == ""
    seen = await view(p, federation)
    assert (seen.state, seen.reason, seen.waiting_since is not None) == ("paused", "the scanner is serviced", True)
    assert (await p.wait(FederationPaused)).data.reason == "the scanner is serviced"
    assert await said(p, ResumeFederation(federation=federation)) == ""
    assert (await view(p, federation)).reason == "", "it goes on"
    assert await said(p, CancelFederation(federation=federation, reason="the ethics board said no")) == ""
    seen = await view(p, federation)
    assert (seen.state, seen.failure, seen.reason) == ("cancelled", "federation.cancelled", "the ethics board said no")
    told = (await p.wait(FederationFailed)).data
    assert (told.code, told.reason, told.hospitals) == ("federation.cancelled", "the ethics board said no", THREE)
    assert [r["detail"] for r in await recorded(p, "federation.pause")] == [
        {"to": "paused", "reason": "the scanner is serviced"},
        {"to": "running"},
    ]
    assert [r["detail"] for r in await recorded(p, "federation.cancel") if r["out"] == 0] == [{"reason": "the ethics board said no"}]


async def seen_as(p: Platform, federation: str, state: str, *waiting: str) -> FederationView:
    """As people see it; a while may pass until it is so."""
    found = await view(p, federation)
    async with asyncio.timeout(30):
        while (found.state, found.waiting) != (state, waiting):
            await asyncio.sleep(0.1)
            found = await view(p, federation)
    return found


async def test_people_are_told_for_whom_a_federation_waits_since_when_and_when_it_fails(p: Platform) -> None:
    federation = await start(p, THREE, rounds=2, lease_seconds=2, baseline=False, round_deadline_seconds=20)
    async with living(p, *THREE):
        one = (await opened(p, 1)).data
    async with living(p, "renji"):  # the others fall silent in the open round
        found = await seen_as(p, federation, "running", "quorum", "quorum:huashan", "quorum:tongji")
        told = (await p.wait(FederationWaiting)).data
        assert found.waiting_since == told.since < one.deadline, "at once, and not only when the round is over"
        assert found.fails_at == told.until == told.since + timedelta(seconds=3600), "after the grace"
        assert (set(told.missing) >= {"huashan", "tongji"}, told.hospitals) == (True, THREE)
        (record,) = await recorded(p, "federation.wait")
        assert (record["out"], record["detail"]["until"]) == (4, told.until.isoformat())
        assert (await submit(p, one, "renji", 1.0)).succeeded
    async with living(p, *THREE):
        await opened(p, 1, attempt=2)
        await seen_as(p, federation, "running")
        assert ((await view(p, federation)).waiting_since, len(p.emitted(FederationWaiting))) == (None, 1)


async def test_who_waits_in_vain_fails_when_it_was_said(servers: RunningServers, private: Path) -> None:
    settings = {"federation": {**SETTINGS["federation"], "quorum_grace_seconds": 3}}
    async with platform(servers, private, SERVICE, settings=settings) as p:
        federation = await start(p, THREE, rounds=2, lease_seconds=2, baseline=False, round_deadline_seconds=8)
        one = (await opened(p, 1)).data
        told = (await p.wait(FederationWaiting)).data
        assert told.until == one.deadline, "not before the open round is over"
        await seen_as(p, federation, "failed")
        assert (await p.wait(FederationFailed)).data.code == "federation.quorum_lost"
        assert datetime.now(UTC) >= told.until
        assert len(p.emitted(FederationWaiting)) == 1


async def test_who_did_not_answer_in_time_has_expired_and_is_told(p: Platform) -> None:
    soon = datetime.now(UTC) + timedelta(seconds=3)
    wanted = await make_plan(p, THREE, accept_by=soon, start_at=soon)
    done = await p.send(wanted, p.person("li", "researcher"))
    federation, hash_ = str((done.result or {})["federation"]), plan_hash(wanted.plan)
    await accept(p, federation, wanted.plan, *THREE[:2])
    told = (await p.wait(InvitationExpired)).data
    assert told.hospitals == ("tongji",)
    seen = await seen_as(p, federation, "ready", "approval")
    assert {one.hospital: one.state for one in seen.participants} == {"huashan": "accepted", "renji": "accepted", "tongji": "expired"}
    (record,) = await recorded(p, "federation.expire")
    assert (record["orgs"], [one["id"] for one in record["entities"]]) == (["tongji"], [federation, "tongji"])
    signature = acceptance(p.rosters.signer("hospital:tongji"), federation, hash_)
    late = RespondInvitation(federation=federation, plan_hash=hash_, accept=True, signature=signature)
    assert await said(p, late, "tongji") == "federation.closed"
