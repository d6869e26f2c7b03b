"""What a hospital takes in and uses stands on an approval of its ethics committee; who was forgotten stays away."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import date, timedelta
from pathlib import Path

import pytest
from sqlalchemy import insert
from tests.integration.test_forget import EACH, PATIENTS, SCHEMA, key_of, pacs, prepare, records
from tests.unit.federated.test_plan import plan

from medmesh.errors import Problem
from medmesh_edge import described, ethics, forgetting, intake, samples, withdrawn
from medmesh_edge.ethics import Approval
from medmesh_edge.intake import Outcome
from medmesh_edge.policy import DEFAULT
from medmesh_edge.ports import Site, site
from medmesh_edge.tables import federations, tasks

TODAY, DAY = date.today(), timedelta(days=1)
ALL = PATIENTS * EACH


@pytest.fixture
async def at(private: Path) -> AsyncIterator[Site]:
    """A node with the policy that it begins with, but that one person may forget."""
    async with site(prepare(private / "node", DEFAULT.replace("second_person = true", "second_person = false"))) as opened:
        yield opened


async def approve(at: Site, number: str, *, kinds: tuple[str, ...] = ("image",), days: int = 30, individual: bool = False) -> None:
    await ethics.record(at, Approval(number, "a study", kinds, TODAY - DAY, TODAY + days * DAY, individual), "li")


async def taken(at: Site, folder: Path, number: str) -> Outcome:
    return await intake.ingest(at, folder, "brain", ethics=number)


async def used(at: Site) -> int:
    """How many samples a federation would train on; the policy and the arrays say the same."""
    _, count = await samples.prepare(at, SCHEMA, held_out=False)
    assert (await samples.cohort(at, SCHEMA)).samples == count
    return count


async def code(call: object) -> str:
    with pytest.raises(Problem) as caught:
        await call  # type: ignore[misc]
    return caught.value.code


async def test_nothing_is_taken_in_without_an_approval_that_is_valid_and_covers_it(at: Site, private: Path) -> None:
    folder = pacs(private)
    assert await code(intake.ingest(at, folder, "brain")) == "ethics.needed"
    assert await code(taken(at, folder, "LL-9")) == "ethics.unknown"
    await approve(at, "LL-1", kinds=("table", "text"))
    assert await code(taken(at, folder, "LL-1")) == "ethics.kind"
    await ethics.record(at, Approval("LL-2", "over", ("image",), TODAY - 9 * DAY, TODAY - DAY, False), "li")
    await ethics.record(at, Approval("LL-3", "later", ("image",), TODAY + 2 * DAY, TODAY + 9 * DAY, False), "li")
    for number in ("LL-2", "LL-3"):
        assert await code(taken(at, folder, number)) == "ethics.not_valid"
    assert await used(at) == 0
    await approve(at, "LL-4")
    assert (await taken(at, folder, "LL-4")).stored == ALL
    assert await used(at) == ALL
    assert (await described.descriptor(at, "brain")).samples, "it is offered to others, in rounded numbers"
    (told,) = [one for one in records(at.layout.folder) if one["sub"] == "edge.ingest"]
    assert ("ethics", "LL-4") in [(one["type"], one["id"]) for one in told["entities"]]
    assert {one["number"]: (one["valid"], one["items"], one["patients"]) for one in await ethics.listed(at)} == {
        "LL-1": (True, 0, 0),
        "LL-2": (False, 0, 0),
        "LL-3": (False, 0, 0),
        "LL-4": (True, ALL, PATIENTS),
    }


async def test_an_approval_is_written_once_and_what_it_ends_is_used_no_more(at: Site, private: Path) -> None:
    await approve(at, "LL-1")
    await approve(at, "LL-1")
    assert await code(approve(at, "LL-1", days=60)) == "ethics.other"
    for wrong in (
        Approval("", "x", ("image",), TODAY, TODAY, False),
        Approval("n", "x", ("pathology",), TODAY, TODAY, False),
        Approval("n", "x", ("image",), TODAY, TODAY - DAY, False),
    ):
        assert await code(ethics.record(at, wrong, "li")) == "ethics.contradicts"
    await taken(at, pacs(private), "LL-1")
    path, count = await samples.prepare(at, SCHEMA, held_out=False)
    assert count == ALL
    await ethics.end(at, "LL-1", "the study was stopped")
    assert not path.exists(), "what was cached of it is gone"
    assert await used(at) == 0
    assert (await described.descriptor(at, "brain")).samples is None, "nor is it offered to others"
    assert await code(ethics.end(at, "LL-1", "again")) == "ethics.unknown"
    assert await code(taken(at, private / "pacs", "LL-1")) == "ethics.not_valid"
    await approve(at, "LL-2")
    assert (await taken(at, private / "pacs", "LL-2")).known == ALL, "the same objects under another approval"
    ingested = [one["detail"] for one in records(at.layout.folder) if one["sub"] == "edge.ingest" and not one["out"]]
    assert [(one["stored"], one["known"]) for one in ingested][-1] == (0, ALL), "also that there was nothing new"
    assert await used(at) == ALL
    verbs = [one["sub"] for one in records(at.layout.folder) if one["sub"].startswith("ethics.")]
    assert verbs == ["ethics.record", "ethics.end", "ethics.record"]
    assert "stopped" not in repr(records(at.layout.folder)), "the reason stays in the hospital"


async def test_only_of_patients_who_agreed_and_not_after_they_took_it_back(at: Site, private: Path) -> None:
    await approve(at, "LL-1", individual=True)
    one, two = (forgetting.who(at, f"PID-KANARY-{n}") for n in (0, 1))
    assert await ethics.consent(at, "LL-1", [one, two, one], agreed=True) == 2
    assert await ethics.consent(at, "LL-1", [one], agreed=True) == 0
    outcome = await taken(at, pacs(private), "LL-1")
    assert (outcome.stored, dict(outcome.rejected)) == (2 * EACH, {"intake.no_consent": ALL - 2 * EACH})
    assert await used(at) == 2 * EACH
    assert await ethics.consent(at, "LL-1", [two], agreed=False) == 1
    assert await used(at) == EACH
    assert await key_of(at, two) is not None, "it is there, and used by nobody"
    assert await code(ethics.consent(at, "LL-9", [one], agreed=True)) == "ethics.unknown"
    told = [found for found in records(at.layout.folder) if found["sub"] == "ethics.consent" and not found["out"]]
    said = [(2, True), (0, True), (1, False)]
    assert [(found["detail"]["patients"], found["detail"]["agreed"]) for found in told] == said
    assert one not in repr(told) and two not in repr(told)


async def test_who_was_forgotten_is_not_brought_back_but_by_their_own_word(at: Site, private: Path) -> None:
    await approve(at, "LL-1", individual=True)
    everybody = [forgetting.who(at, f"PID-KANARY-{n}") for n in range(PATIENTS)]
    await ethics.consent(at, "LL-1", everybody, agreed=True)
    folder = pacs(private)
    await taken(at, folder, "LL-1")
    assert await code(forgetting.readmit(at, everybody[1])) == "edge.patient_not_away"
    assert (await described.descriptor(at, "brain")).version == 1
    await forgetting.ask(at, everybody[1], "withdrawn", "li")
    assert (await described.descriptor(at, "brain")).version == 2, "without the patient it is another one"
    for _ in range(2):
        again = await taken(at, folder, "LL-1")
        assert (again.stored, dict(again.rejected)) == (0, {"intake.withdrawn": EACH})
    assert await key_of(at, everybody[1]) is None
    assert everybody[1].encode() not in at.layout.withdrawn.read_bytes()
    # A kill left half a line: nothing of what comes after is lost with it.
    with at.layout.withdrawn.open("ab") as file:
        file.write(b"+0123")
    await forgetting.ask(at, everybody[2], "requested", "li")
    assert withdrawn.away(at, set(everybody)) == {everybody[1], everybody[2]}
    await forgetting.readmit(at, everybody[1])
    readmitted = [found for found in records(at.layout.folder) if found["sub"] == "patient.readmit"]
    assert [found["out"] for found in readmitted] == [0] and everybody[1] not in repr(readmitted)
    outcome = await taken(at, folder, "LL-1")
    assert dict(outcome.rejected) == {"intake.no_consent": EACH, "intake.withdrawn": EACH}, "the consent was forgotten, too"
    await ethics.consent(at, "LL-1", [everybody[1]], agreed=True)
    assert (await taken(at, folder, "LL-1")).stored == EACH


async def test_a_store_that_was_lost_and_filled_again_brings_nobody_back(at: Site, private: Path) -> None:
    """With the keys, which are kept apart from the store (docs/hospital/node.md), comes who stays away."""
    await approve(at, "LL-1")
    folder, layout = pacs(private), at.layout
    await taken(at, folder, "LL-1")
    await forgetting.ask(at, forgetting.who(at, "PID-KANARY-1"), "withdrawn", "li")
    await at.database.close()
    for path in layout.folder.glob("store.db*"):
        path.unlink()
    async with site(layout.folder) as restored:
        await approve(restored, "LL-1")
        again = await taken(restored, folder, "LL-1")
        assert (again.stored, dict(again.rejected)) == (ALL - EACH, {"intake.withdrawn": EACH})


async def test_the_federations_that_trained_on_a_patients_data_are_named(at: Site, private: Path) -> None:
    """Those that trained here since the data are here, on data that their plan is about; not who only evaluated, or asked for others."""
    await approve(at, "LL-1")
    await taken(at, pacs(private), "LL-1")
    fits, other = plan(data=SCHEMA), plan(data=SCHEMA.model_copy(update={"modality": "CT"}))
    async with at.unit() as uow:
        for name, made, trained, ago in (("on", fits, 1, 0), ("not", fits, 0, 0), ("other", other, 1, 0), ("before", fits, 1, 1)):
            row = {"federation": name, "plan": made.model_dump(mode="json"), "plan_hash": "0" * 64, "package": {}, "state": "running"}
            await uow.execute(insert(federations).values(**row, reason="", at=uow.now))
            part = {
                "federation": name,
                "round": 1,
                "attempt": 1,
                "kind": "train",
                "event": {},
                "state": "sent",
                "samples": 1,
                "metrics": {},
            }
            await uow.execute(insert(tasks).values(**part, trained=trained, code="", at=uow.now - ago * DAY))
    await forgetting.ask(at, forgetting.who(at, "PID-KANARY-1"), "withdrawn", "li")
    (told,) = [one for one in records(at.layout.folder) if one["sub"] == "patient.forget"]
    assert [one["id"] for one in told["entities"] if one["type"] == "federation"] == ["on"]
    (shown,) = await forgetting.waiting(at)
    assert shown["affected"] == {"datasets": ["xiehe/brain"], "federations": ["on"]}
