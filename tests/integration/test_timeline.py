"""The hospital's timelines on a node's folder: taken in, shown, merged, forgotten, and nothing readable where it should not be."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import date, datetime, timedelta
from pathlib import Path

import pytest
from tests.integration.test_forget import ALONE, everything, key_of, named, prepare, records, tables

from medmesh.errors import Problem
from medmesh.timeline import records as kept
from medmesh.timeline.events import Identity
from medmesh.timeline.terms import Term, Vocabulary
from medmesh_edge import ethics, forgetting, storing, timeline
from medmesh_edge.ports import Site, site
from medmesh_edge.settings import Settings

SYSTEM = "http://xiehe.example/mrn"
SECRET = "患者王五诉胸痛三天"


@pytest.fixture
async def at(private: Path) -> AsyncIterator[Site]:
    folder = prepare(private / "node", ALONE)
    settings = Settings.load(folder).model_copy(update={"authorities": (SYSTEM, "HIS")})
    settings.save(folder)
    async with site(folder) as opened:
        yield opened


def bundle(folder: Path, patients: int = 3, note: str = SECRET) -> Path:
    lines: list[object] = []
    for n in range(patients):
        who = {
            "resourceType": "Patient",
            "id": f"{n}",
            "identifier": [{"system": SYSTEM, "value": f"PID-KANARY-{n}"}],
            "birthDate": "1950-02-03",
        }
        lines.append(who | {"name": [{"text": f"Kanary^Name{n}"}]})
        about = {
            "subject": {"reference": f"Patient/{n}"},
            "status": "final",
            "code": {"coding": [{"system": "http://loinc.org", "code": "2160-0"}]},
        }
        lines.append(
            {"resourceType": "Observation", "id": f"o{n}", "effectiveDateTime": "2024-03-01", "valueQuantity": {"value": n}, **about}
        )
        lines.append({"resourceType": "DiagnosticReport", "id": f"d{n}", "effectiveDateTime": "2024-03-02", "conclusion": note, **about})
    folder.mkdir(exist_ok=True)
    (folder / "all.ndjson").write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines))
    return folder


def own(n: int) -> Identity:
    return Identity("", f"PID-KANARY-{n}")


async def approved(at: Site, *, kinds: tuple[str, ...] = ("table", "text"), individual: bool = False) -> None:
    since, until = date(2024, 1, 1), date(2099, 12, 31)
    await ethics.record(at, ethics.Approval("2024-LL-7", "急性心梗预后研究", kinds, since, until, individual), "li")


async def test_what_is_taken_in_is_shown_in_order_and_lies_sealed(at: Site, private: Path) -> None:
    source = bundle(private / "fhir")
    planned = await timeline.ingest(at, source, "heart", dry_run=True)
    assert (planned.events, planned.appended.stored, len(planned.appended.patients)) == (9, 0, 3)
    assert records(at.layout.folder) == [], "nothing was written"

    with pytest.raises(Problem) as caught:
        await timeline.ingest(at, source, "heart", ethics="2024-LL-7")
    assert caught.value.code == "ethics.unknown"
    await approved(at)
    before = len(records(at.layout.folder))
    outcome = await timeline.ingest(at, source, "heart", ethics="2024-LL-7")
    assert (outcome.appended.stored, len(outcome.appended.patients), outcome.kinds) == (
        9,
        3,
        {"MEDS_BIRTH": 3, "OBSERVATION": 3, "REPORT": 3},
    )
    one = forgetting.who(at, "PID-KANARY-1")
    told = records(at.layout.folder, before)
    assert [record["sub"] for record in told] == ["patient.ingest", "timeline.import"]
    assert told[-1]["detail"] == {"format": "fhir", "known": 0, "merges": 0, "rejected": 0, "revised": 0, "stored": 9}
    assert named(at, one, await key_of(at, one)) == ["patient.ingest"]

    again = await timeline.ingest(at, source, "heart", ethics="2024-LL-7")
    assert (again.appended.stored, again.appended.revised, again.appended.known) == (0, 0, 9)

    found = await timeline.show(at, "heart", own(1))
    days = timeline.namer(at).subject(own(1)).days
    assert [(event.code, event.numeric_value, event.text_value) for event in found] == [
        ("MEDS_BIRTH", None, None),
        ("OBSERVATION//LOINC//2160-0", 1.0, None),
        ("REPORT//LOINC//2160-0", None, SECRET),
    ]
    assert found[1].time == datetime(2024, 3, 1) - timedelta(days=days)
    assert found[1].consent_id == "2024-LL-7"
    assert records(at.layout.folder)[-1]["sub"] == "timeline.read"
    assert found == await timeline.show(at, "heart", Identity(SYSTEM, "PID-KANARY-1")), "an authority of the hospital's own"

    whole = everything(at.layout.folder)
    assert SECRET.encode() not in whole and b"KANARY" not in whole.upper(), "texts and names lie sealed alone"
    async with at.unit() as uow:
        raw = await kept.raw(uow, found[2].subject_id, found[2].source_uri.partition(":")[2], timeline.PatientVault(at))
        assert json.loads(raw or b"")["conclusion"] == SECRET, "what it was read from is there for who has the key"
        assert await kept.who(uow, found[2].subject_id, timeline.PatientVault(at)) == Identity(SYSTEM, "PID-KANARY-1")


async def test_one_person_with_two_numbers_is_merged_parted_and_forgotten_as_one(at: Site, private: Path) -> None:
    await timeline.ingest(at, bundle(private / "fhir"), "heart")
    await timeline.join(at, own(0), own(1))
    assert len(await timeline.show(at, "heart", own(0))) == 6
    with pytest.raises(Problem) as caught:
        await timeline.join(at, own(1), own(0))
    assert caught.value.code == "timeline.merge_cycle"
    await timeline.join(at, own(0), own(1), undone=True)
    assert len(await timeline.show(at, "heart", own(0))) == 3
    with pytest.raises(Problem) as caught:
        await timeline.join(at, own(0), Identity("", "nobody"))
    assert caught.value.code == "edge.patient_unknown"
    await timeline.join(at, own(2), own(1))
    verbs = [record["sub"] for record in records(at.layout.folder)]
    assert (verbs.count("timeline.merge"), verbs.count("timeline.unmerge")) == (2, 1)

    both = [forgetting.who(at, f"PID-KANARY-{n}") for n in (1, 2)]
    subjects = [str(timeline.namer(at).subject(own(n)).subject_id) for n in (1, 2)]
    before = tables(at.layout.folder)
    assert all(name in before for name in (*both, *subjects)), "the scan finds what it looks for"
    await forgetting.ask(at, both[0], "withdrawn", "li")
    after = tables(at.layout.folder)
    assert not any(name in after for name in (*both, *subjects))
    assert not any(name.encode() in everything(at.layout.folder) for name in both)
    assert records(at.layout.folder)[-1]["detail"]["events"] == 6
    assert len(await timeline.show(at, "heart", own(0))) == 3, "everybody else's are there"
    with pytest.raises(Problem) as caught:
        await timeline.show(at, "heart", own(1))
    assert caught.value.code == "edge.patient_unknown"
    resent = await timeline.ingest(at, private / "fhir", "heart")
    assert (resent.appended.stored, resent.appended.known, resent.refused) == (0, 3, {"intake.withdrawn": 6}), "sent again, nobody is back"
    assert not any(name in tables(at.layout.folder) for name in (*both, *subjects))


async def test_an_approval_that_ends_takes_its_events_out_of_use(at: Site, private: Path) -> None:
    await approved(at, kinds=("table",), individual=True)
    with pytest.raises(Problem) as caught:
        await timeline.ingest(at, ward(private / "notes", 2, kind="DiagnosticReport"), "heart", ethics="2024-LL-7")
    assert caught.value.code == "ethics.kind"
    agreed = [forgetting.who(at, f"PID-KANARY-{n}") for n in range(10)]
    await ethics.consent(at, "2024-LL-7", agreed, agreed=True)
    outcome = await timeline.ingest(at, ward(private / "fhir"), "heart", ethics="2024-LL-7")
    assert outcome.refused["intake.no_consent"] == 4
    await timeline.define(at, "heart", json.dumps(MI | {"outcome": None}).encode())
    assert len((await timeline.ask(at, "heart", "mi-death")).members) == 8, "two say it in words"
    await ethics.consent(at, "2024-LL-7", agreed[9:], agreed=False)
    assert len((await timeline.ask(at, "heart", "mi-death")).members) == 7
    await ethics.end(at, "2024-LL-7", "study closed")
    assert (await timeline.ask(at, "heart", "mi-death")).members == ()
    assert (await timeline.export(at, private / "meds", "heart")).events == 0


async def test_faults_are_told_and_the_rest_is_taken_in(at: Site, private: Path) -> None:
    source = bundle(private / "fhir")
    text = (source / "all.ndjson").read_text().splitlines()
    merge = {"resourceType": "Patient", "id": "0", "identifier": [{"system": SYSTEM, "value": "PID-KANARY-0"}]}
    link = {"link": [{"type": "replaces", "other": {"reference": "Patient/1"}}]}
    back = {"link": [{"type": "replaces", "other": {"reference": "Patient/0"}}]}
    text += [
        "{",
        json.dumps(merge | link),
        json.dumps(merge | back | {"id": "1", "identifier": [{"system": SYSTEM, "value": "PID-KANARY-1"}]}),
    ]
    (source / "all.ndjson").write_text("\n".join(text))
    outcome = await timeline.ingest(at, source, "heart")
    assert [(finding.code, finding.place.partition("[")[0]) for finding in outcome.report.findings] == [
        ("timeline.not_json", "all.ndjson:10"),
        ("timeline.merge_cycle", "fhir"),
    ]
    assert (outcome.appended.stored, outcome.merges) == (9, 1)
    document = outcome.document("zh")
    assert document["errors"] == 2 and "不是有效的 JSON" in document["findings"][0]["detail"]


MI = {
    "name": "mi-death",
    "index": {"systems": ["ICD10", "ICD10CN"], "codes": ["I21"]},
    "outcome": {"codes": {"events": ["MEDS_DEATH"]}, "within_days": 30},
}


def ward(folder: Path, patients: int = 12, kind: str = "Condition") -> Path:
    """Half of them die after ten days; of the first two the diagnosis is in the hospital's own words."""
    lines: list[object] = []
    for n in range(patients):
        dies = {"deceasedDateTime": "2024-03-11T08:00:00"} if n % 2 else {}
        lines.append({"resourceType": "Patient", "id": f"{n}", "identifier": [{"system": SYSTEM, "value": f"PID-KANARY-{n}"}], **dies})
        about = {"subject": {"reference": f"Patient/{n}"}}
        code = {"text": "急性心梗"} if n < 2 else {"coding": [{"system": "http://hl7.org/fhir/sid/icd-10", "code": "I21.9"}]}
        lines.append(
            {
                "resourceType": kind,
                "id": f"c{n}",
                "recordedDate": "2024-03-01T08:00:00",
                "issued": "2024-03-01T08:00:00",
                "code": code,
                **about,
            }
        )
        seen = {"resourceType": "Observation", "id": f"o{n}", "effectiveDateTime": "2024-06-01T08:00:00", "valueString": SECRET}
        lines += [] if n % 2 else [seen | {"code": {"coding": [{"system": "http://loinc.org", "code": "2160-0"}]}} | about]
    folder.mkdir(exist_ok=True)
    (folder / "ward.ndjson").write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines))
    return folder


async def test_a_cohort_is_asked_coded_and_exported(at: Site, private: Path) -> None:
    import meds
    import pyarrow.parquet as pq

    await timeline.ingest(at, ward(private / "fhir"), "heart")
    definition, version = await timeline.define(at, "heart", json.dumps(MI).encode())
    assert (version, (await timeline.define(at, "heart", json.dumps(MI).encode()))[1]) == (1, 1), "the same question is the same version"
    answer = await timeline.ask(at, "heart", "mi-death")
    assert answer.told() == {
        "cohort": "mi-death", "version": 1, "definition": definition.digest, "patients": 10, "positive": 5, "negative": 5
    }  # fmt: skip
    changed = json.dumps(MI | {"history_days": 1}).encode()
    assert (await timeline.define(at, "heart", changed))[1] == 2
    assert (await timeline.ask(at, "heart", "mi-death")).told()["without history"] == 10
    assert (await timeline.ask(at, "heart", "mi-death", 1)).digest == answer.digest, "the same question has the same answer"

    vocabulary = Vocabulary([Term("I21.9", "ICD10CN", "急性心肌梗死"), Term("I10", "ICD10CN", "高血压")])
    ((local, number, suggested),) = await timeline.suggest(at, "heart", vocabulary)
    assert (local, number, suggested[0].term.code) == ("DIAGNOSIS//TEXT//急性心梗", 2, "I21.9")
    assert len((await timeline.ask(at, "heart", "mi-death", 1)).members) == 10, "a suggestion changes nothing"
    assert await timeline.confirm(at, "heart", local, "ICD-10-CN", "I21.9", "li") == "DIAGNOSIS//ICD10CN//I21.9"
    assert len((await timeline.ask(at, "heart", "mi-death", 1)).members) == 12
    assert (await timeline.show(at, "heart", own(0)))[0].code_system == "ICD10CN"
    assert await timeline.suggest(at, "heart", vocabulary) == []

    done = await timeline.export(at, private / "out", "heart", cohort="mi-death")
    assert done.subjects == 0, "nobody of the newest version"
    await timeline.define(at, "heart", json.dumps(MI).encode())
    done = await timeline.export(at, private / "meds", "heart", cohort="mi-death")
    assert (done.subjects, done.events) == (12, 24)
    table = pq.read_table(private / "meds" / "data" / "0.parquet")
    meds.DataSchema.validate(table)
    assert SECRET not in str(table.to_pydict())
    labels = pq.read_table(private / "meds" / "labels" / "mi-death.parquet").to_pylist()
    assert sum(one["boolean_value"] for one in labels) == 6
    splits = {one["subject_id"]: one["split"] for one in pq.read_table(private / "meds" / meds.subject_splits_filepath).to_pylist()}
    for n in range(12):
        subject = timeline.namer(at).subject(own(n))
        testing = storing.held_out(subject.patient, timeline.namer(at).key, at.settings.holdout)
        assert (splits[subject.subject_id] == "held_out") == testing, "held out here as there"

    assert await timeline.confirm(at, "heart", local, "", "", "li") == local
    assert len((await timeline.ask(at, "heart", "mi-death", 1)).members) == 10, "taken back"
    with pytest.raises(Problem) as caught:
        await timeline.confirm(at, "heart", "DIAGNOSIS//TEXT//none", "ICD10", "I10", "li")
    assert caught.value.code == "timeline.not_local"
    verbs = [record["sub"] for record in records(at.layout.folder)]
    assert [verbs.count(f"timeline.{verb}") for verb in ("define", "ask", "confirm", "export")] == [4, 8, 2, 2], "an export asks, too"
    assert "急性心梗" not in str(records(at.layout.folder))
