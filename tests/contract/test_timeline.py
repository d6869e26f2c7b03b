"""What a store of timelines must do, held against PostgreSQL and SQLite."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from tests.store import example_postgres, example_sqlite

from medmesh.embedded.testing import RunningServers
from medmesh.errors import Problem
from medmesh.imaging.pseudonyms import pseudonym, shift_days
from medmesh.store.database import Database
from medmesh.store.tables import service_metadata
from medmesh.store.unit import Context
from medmesh.timeline import records
from medmesh.timeline.events import BIRTH, Draft, Identity, Merge
from medmesh.timeline.identity import PEOPLE, Namer, merge
from medmesh.timeline.records import OPEN, Appended
from medmesh.timeline.tables import add_timeline_tables

KEY = b"a key of sixteen bytes or more"
NAMER = Namer(KEY, own={"HIS"})
A, B, C = (Identity("HIS", f"P{n}") for n in "123")
NOON = datetime(2024, 3, 1, 12)


def event(who: Identity, key: str, day: int = 0, **other: object) -> Draft:
    fields: dict[str, object] = {"code": "LAB//LOINC//2160-0", "time": NOON + timedelta(days=day), "precision": "second", "numeric": 80.0}
    return Draft(who, "test", key, **(fields | other))  # type: ignore[arg-type]


@pytest.fixture(params=["postgres", "sqlite"])
async def database(request: pytest.FixtureRequest, private: Path, unique: str) -> AsyncIterator[Database]:
    metadata = service_metadata()
    add_timeline_tables(metadata)
    if request.param == "sqlite":
        async with example_sqlite(private, metadata) as made:
            yield made
        return
    running: RunningServers = request.getfixturevalue("servers")
    async with example_postgres(running.postgres_url, unique, metadata) as made:
        yield made


async def told(database: Database, *drafts: Draft) -> Appended:
    async with database.unit(Context("test")) as uow:
        return await records.append(uow, "p", [records.place(draft, NAMER) for draft in drafts], OPEN)


async def seen(database: Database, who: Identity) -> list[tuple[str, datetime | None, float | None]]:
    """On the hospital's own axis: moved forward again by the shift of whose timeline it is."""
    subject = NAMER.subject(who)
    async with database.unit(Context("test")) as uow:
        found = await records.of(uow, "p", subject.subject_id, OPEN)
    assert {one.subject_id for one in found} <= {subject.subject_id}
    return [(one.code, one.time and one.time + timedelta(days=subject.days), one.numeric_value) for one in found]


async def joined(database: Database, key: str, survivor: Identity, loser: Identity, *, undone: bool = False) -> int:
    async with database.unit(Context("test")) as uow:
        return await merge(uow, [Merge(survivor, loser, PEOPLE, key, undone)], NAMER)


async def test_events_come_back_in_order_with_static_ones_first_and_times_moved(database: Database) -> None:
    later, birth, static = (
        event(A, "1", 1),
        event(A, "b", code=BIRTH, time=datetime(1950, 2, 3)),
        event(A, "g", code="GENDER//F", time=None),
    )
    assert (await told(database, later, event(B, "2"), event(A, "3"), birth, static)).stored == 5
    found = await seen(database, A)
    assert [code for code, _, _ in found] == ["GENDER//F", BIRTH, later.code, later.code]
    assert [time for _, time, _ in found] == [None, birth.time, NOON, NOON + timedelta(days=1)]
    async with database.unit(Context("test")) as uow:
        (kept,) = await records.of(uow, "p", NAMER.subject(B).subject_id, OPEN)
    assert kept.time == NOON - timedelta(days=shift_days("P2", KEY)), "as images of the same patient are shifted"
    assert 0 < kept.subject_id < 2**63
    assert NAMER.subject(B).patient == pseudonym("P2", KEY), "as images of the same patient are named"
    assert NAMER.subject(Identity("ELSEWHERE", "P2")).patient != pseudonym("P2", KEY)


async def test_the_same_told_again_is_nothing_new_and_a_correction_is_a_revision(database: Database) -> None:
    await told(database, event(A, "1"))
    again = await told(database, event(A, "1"), event(A, "1"))
    assert (again.stored, again.revised, again.known) == (0, 0, 2)
    corrected = await told(database, event(A, "1", numeric=81.5))
    assert (corrected.stored, corrected.revised) == (0, 1)
    assert [value for _, _, value in await seen(database, A)] == [81.5]
    await told(database, event(A, "1", withdrawn=True))
    assert await seen(database, A) == []
    assert (await told(database, event(A, "9", withdrawn=True))).known == 1, "what was never told cannot be taken back"


async def test_numbered_revisions_may_come_in_any_order(database: Database) -> None:
    await told(database, event(A, "1", revision=3, numeric=3.0), event(A, "1", revision=1, numeric=1.0))
    assert [value for _, _, value in await seen(database, A)] == [3.0]
    conflict = await told(database, event(A, "1", revision=3, numeric=33.0))
    assert (conflict.known, conflict.conflicts) == (1, 1)
    assert [value for _, _, value in await seen(database, A)] == [3.0], "the first stands"


async def test_an_event_that_moves_to_another_patient_leaves_the_first_for_good(database: Database) -> None:
    await told(database, event(A, "1"))
    await told(database, event(B, "1"))
    assert await seen(database, A) == []
    assert len(await seen(database, B)) == 1
    async with database.unit(Context("test")) as uow:
        assert await records.forget(uow, [NAMER.subject(B).subject_id]) == 1
    assert await seen(database, A) == [], "forgetting the second brings nothing back to the first"


async def test_merged_identities_are_one_person_on_one_axis_and_a_merge_is_taken_back(database: Database) -> None:
    await told(database, event(A, "a", 0), event(B, "b", 1), event(C, "c", 2))
    assert await joined(database, "m1", A, B) == 1
    assert await joined(database, "m2", B, C) == 1, "into one that was merged itself"
    assert await joined(database, "m1", A, B) == 0, "told again"
    whole = [NOON + timedelta(days=day) for day in (0, 1, 2)]
    for anybody in (A, B, C):
        subject = NAMER.subject(A)
        async with database.unit(Context("test")) as uow:
            found = await records.of(uow, "p", NAMER.subject(anybody).subject_id, OPEN)
            assert await records.people(uow, "p") == [subject.subject_id]
        assert {one.subject_id for one in found} == {subject.subject_id}
        assert [one.time + timedelta(days=subject.days) for one in found if one.time] == whole
    with pytest.raises(Problem) as caught:
        await joined(database, "m3", C, A)
    assert caught.value.code == "timeline.merge_cycle"
    await told(database, event(B, "b2", 5))
    await joined(database, "u1", A, B, undone=True)
    assert [time for _, time, _ in await seen(database, A)] == whole[:1]
    assert [time for _, time, _ in await seen(database, B)] == [*whole[1:], NOON + timedelta(days=5)], "with what came meanwhile"
    assert await joined(database, "m1", A, B) == 0, "a merge told again does not undo its undoing"
    with pytest.raises(Problem) as caught:
        await joined(database, "u2", A, B, undone=True)
    assert caught.value.code == "timeline.not_merged"


async def test_one_of_two_in_a_project_of_its_own_is_not_seen_in_the_other(database: Database) -> None:
    await told(database, event(A, "1"))
    async with database.unit(Context("test")) as uow:
        assert await records.people(uow, "q") == []
        placed = [records.place(replace(event(A, "1"), text="尿素氮偏高"), NAMER)]
        assert (await records.append(uow, "q", placed, OPEN, consent="ethics-7")).stored == 1
        (found,) = await records.of(uow, "q", placed[0].subject.subject_id, OPEN)
        assert (found.text_value, found.consent_id, found.revision) == ("尿素氮偏高", "ethics-7", 1)
        assert await records.who(uow, found.subject_id, OPEN) is None, "nothing that tells who it was, where no key is"
        assert (await records.counts(uow, "q")) == {"LAB//LOINC//2160-0": 1}
