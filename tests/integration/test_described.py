"""What a hospital tells of a data set: its patients' diseases from their timelines too, and none of a few."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import select
from tests.integration.test_forget import ALONE, EACH, PATIENTS, pacs, prepare, records

from medmesh.errors import Problem
from medmesh.timeline.codes import category
from medmesh.timeline.events import Identity
from medmesh_edge import described, intake, timeline
from medmesh_edge.ports import Site, site
from medmesh_edge.settings import Settings
from medmesh_edge.tables import requests

MRN, CLINIC = "http://xiehe.example/mrn", "http://clinic.example/mrn"


@pytest.fixture
async def at(private: Path) -> AsyncIterator[Site]:
    folder = prepare(private / "node", ALONE)
    Settings.load(folder).model_copy(update={"authorities": (MRN,)}).save(folder)
    async with site(folder) as opened:
        assert (await intake.ingest(opened, pacs(private), "brain")).stored == PATIENTS * EACH
        yield opened


def diagnoses(folder: Path, found: dict[str, list[int]], authority: str = MRN) -> Path:
    """A bundle in which these patients have these ICD-10 codes."""
    folder.mkdir()
    lines: list[object] = []
    for n in sorted({n for ill in found.values() for n in ill}):
        lines.append({"resourceType": "Patient", "id": f"{n}", "identifier": [{"system": authority, "value": f"PID-KANARY-{n}"}]})
    for code, ill in found.items():
        coding = {"coding": [{"system": "http://hl7.org/fhir/sid/icd-10", "code": code}]}
        for n in ill:
            about = {"subject": {"reference": f"Patient/{n}"}, "recordedDate": "2024-03-01T08:00:00", "code": coding}
            lines.append({"resourceType": "Condition", "id": f"{code}.{n}", **about})
    (folder / "all.ndjson").write_text("\n".join(json.dumps(line) for line in lines))
    return folder


async def sent(at: Site) -> list[dict[str, object]]:
    async with at.unit() as uow:
        return [row.body["descriptor"] for row in await uow.all(select(requests.c.body).order_by(requests.c.seq))]


async def test_it_tells_what_the_patients_of_the_data_set_are_ill_with_and_no_few_of_them(at: Site, private: Path) -> None:
    with pytest.raises(Problem) as caught:
        await described.publish(at, "brain", project="heart")
    assert caught.value.code == "timeline.nobody"
    assert await sent(at) == []
    # Two codes of one category in one patient are one; four of the data set's are too few; the others' are not its.
    found = {"I21.9": [0, 1, 2, 3, 4], "I21.0": [0], "J18.1": [0, 1, 2, 3], "G40.9": [3, 4, 5, 6, 7, 8]}
    await timeline.ingest(at, diagnoses(private / "fhir", found), "heart")
    told = await described.publish(at, "brain", project="heart")
    assert told.diseases == {"ICD10//I21": 5}
    assert (await described.publish(at, "brain")).diseases == {}, "only where it is asked for"
    assert [one["diseases"] for one in await sent(at)] == [{"ICD10//I21": 5}, {}]
    asked = [record for record in records(at.layout.folder) if record["sub"] == "timeline.ask"]
    assert [record["detail"] for record in asked] == [{"categories": 1}]
    assert [one["id"] for one in asked[0]["entities"]] == ["xiehe/heart", "xiehe/brain"]


async def test_who_has_two_numbers_is_counted_once_and_another_authoritys_number_is_another_person(at: Site, private: Path) -> None:
    await timeline.ingest(at, diagnoses(private / "own", {"I21.9": [0, 1, 2, 3, 4]}), "heart")
    await timeline.ingest(at, diagnoses(private / "theirs", {"C34.1": [0, 1, 2, 3, 4]}, CLINIC), "heart")
    assert (await described.publish(at, "brain", project="heart")).diseases == {"ICD10//I21": 5}
    await timeline.join(at, Identity(MRN, "PID-KANARY-0"), Identity(MRN, "PID-KANARY-1"))
    assert (await described.publish(at, "brain", project="heart")).diseases == {}, "four people have it now"


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("DIAGNOSIS//ICD10CN//I21.900", "ICD10//I21"),
        ("DIAGNOSIS//ICD10CM//J18.9", "ICD10//J18"),
        ("DIAGNOSIS//ICD9CM//486", "ICD9CM//486"),
        ("DIAGNOSIS//SNOMED//22298006", None),
        ("LAB//LOINC//2160-0", None),
        ("DIAGNOSIS//ICD10//", None),
        ("MEDS_DEATH", None),
    ],
)
def test_a_diagnosis_has_the_category_that_every_edition_shares(code: str, expected: str | None) -> None:
    assert category(code) == expected
