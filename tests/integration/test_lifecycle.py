"""What people do to a federation while it runs, on real servers: pause, resume, more time, and a hospital that leaves for good."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tests.federations import alive, opened, submit, view
from tests.integration.test_federation import SETTINGS, start
from tests.platform import Platform, platform

from medmesh.contracts.federation import (
    ExtendRound,
    FederationFailed,
    ParticipantWithdrew,
    PauseFederation,
    ResumeFederation,
    RoundCommitted,
    RoundExtended,
    RoundOpened,
    RoundStored,
    WithdrawFromFederation,
)
from medmesh.contracts.message import Command
from medmesh.embedded.testing import RunningServers
from medmesh_federation.service import SERVICE

THREE = ("huashan", "renji", "tongji")


@pytest.fixture
async def p(servers: RunningServers, private: Path) -> AsyncIterator[Platform]:
    async with platform(servers, private, SERVICE, settings=SETTINGS) as made:
        yield made


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
