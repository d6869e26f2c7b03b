"""Timelines on the platform, on real servers: taken in without identity, asked by cohort, made a version that is valid MEDS."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Any

import meds
import pyarrow.parquet as pq
import pytest
from tests.integration.test_ingestion import code, kept, view, zipped
from tests.platform import Platform, platform
from tests.unit.importing import layouts

from medmesh.client.datasets import files_of
from medmesh.contracts.ingestion import AskCohort, CohortView, DefineCohort, ExportTimeline, ImportTimeline, SplitVersion
from medmesh.contracts.message import ObjectRef, OperationFinished
from medmesh.embedded.testing import RunningServers
from medmesh.errors import Problem
from medmesh.imaging.pseudonyms import shift_days
from medmesh.importing.packing import pack
from medmesh.importing.sources import opened
from medmesh.store.objects.port import load
from medmesh.store.unit import Context
from medmesh.timeline import records
from medmesh_ingestion.service import SERVICE, project_key
from medmesh_ingestion.tables import METADATA

SYSTEM = "http://xiehe.example/mrn"
NAME, NUMBER = "Kanary Zebedee", "PID-KANARY-77"
LOINC = {"coding": [{"system": "http://loinc.org", "code": "2160-0"}]}
INFARCTION = {"coding": [{"system": "http://hl7.org/fhir/sid/icd-10", "code": "I21.9"}]}
QUESTION = {
    "name": "infarction",
    "index": {"systems": ["ICD10"], "codes": ["I21"]},
    "outcome": {"codes": {"events": ["MEDS_DEATH"]}, "within_days": 30},
}


@pytest.fixture
async def p(servers: RunningServers, private: Path) -> AsyncIterator[Platform]:
    async with platform(servers, private, SERVICE, settings={"ingestion": {"key": private / "secrets" / "project.key"}}) as made:
        yield made


def ward(patients: int = 12) -> dict[str, bytes]:
    """Each with a birthday, an infarction and a finding in words; half of them die within a month; one note has a name that rules doubt,
    one a name after a title; one diagnosis is a name in words."""
    lines: list[dict[str, Any]] = []
    for n in range(1, patients + 1):
        about = {"subject": {"reference": f"Patient/{n}"}}
        died = {"deceasedDateTime": "2024-03-10T04:00:00+08:00"} if n > patients // 2 else {}
        lines.append({
            "resourceType": "Patient", "id": f"{n}", "identifier": [{"system": SYSTEM, "value": f"{NUMBER}{n}"}],
            "name": [{"text": NAME}], "birthDate": "1950-02-03", **died,
        })  # fmt: skip
        lines.append({"resourceType": "Condition", "id": f"c{n}", "code": INFARCTION, "recordedDate": "2024-03-01T09:00:00+08:00", **about})
        note = {1: f"{NAME} was admitted.", 2: f"Seen by Dr. {NAME}, no pain."}.get(n, "no pain")
        report = {"resourceType": "DiagnosticReport", "id": f"d{n}", "status": "final", "code": LOINC, "conclusion": note}
        lines.append({**report, "effectiveDateTime": "2024-06-02T09:00:00+08:00", **about})
    named = {"resourceType": "Condition", "id": "x", "code": {"text": NAME}, "recordedDate": "2024-03-01"}
    lines.append({**named, "subject": {"reference": "Patient/1"}})
    text = "\n".join([json.dumps(line) for line in lines] + ['{"resourceType": "Condition", '])
    return {"all.ndjson": text.encode()}


async def taken_in(p: Platform, archive: bytes, dataset: str = "heart", who: str = "li", **named: Any) -> OperationFinished:
    ref = await p.stores.kept.put(archive)
    return await p.send(ImportTimeline(dataset=dataset, archive=ref, **named), p.person(who, "researcher"))


async def define(p: Platform, question: dict[str, Any], who: str = "li") -> OperationFinished:
    return await p.send(DefineCohort(dataset="heart", definition=json.dumps(question)), p.person(who, "researcher"))


async def export(p: Platform, who: str = "li", dataset: str = "heart", **named: Any) -> OperationFinished:
    return await p.send(ExportTimeline(dataset=dataset, **named), p.person(who, "researcher"))


async def saved(p: Platform, folder: Path, dataset: str = "heart", version: int = 0) -> dict[str, Any]:
    """As `medmesh dataset export` fetches it."""
    document: dict[str, Any] = json.loads(await load(p.stores.kept, (await view(p, dataset, version)).content))
    for file in files_of(document):
        (folder / file.path).parent.mkdir(parents=True, exist_ok=True)
        (folder / file.path).write_bytes(await load(p.stores.kept, file.object))
    return document


async def database(p: Platform) -> str:
    """Everything that the service has of timelines, as text."""
    found = []
    async with p.runtimes["ingestion"].database.unit(Context("test")) as uow:
        for name, table in METADATA.tables.items():
            if name.startswith("timeline"):
                found += [str(tuple(row)) for row in await uow.all(table.select())]
    return "\n".join(found)


async def test_events_are_kept_under_pseudonyms_and_without_what_names_anybody(p: Platform) -> None:
    archive = zipped(ward())
    answer = await taken_in(p, archive)
    made = answer.result
    assert made is not None, answer.problem
    assert (made["format"], made["patients"], made["errors"]) == ("fhir", 12, 1)
    assert made["refused"] == {"text_doubtful": 1, "code_doubtful": 1}
    assert made["stored"] == made["events"] - 1
    assert "findings" not in made, "places in the source stay with who brings it"
    assert archive not in kept(p).values()
    everything = await database(p)
    assert "no pain" in everything
    for needle in ("Kanary", "KANARY", "Zebedee", "2024-03-01"):
        assert needle not in everything
    assert "Seen by Dr. [NAME]" in everything
    again = (await taken_in(p, archive)).result
    assert again is not None
    assert (again["stored"], again["known"]) == (0, made["stored"]), "told again it is known"
    [first, _] = [one for one in await p.audited("ingestion") if one["sub"] == "timeline.import"]
    assert first["detail"] == {"format": "fhir", "stored": made["stored"], "revised": 0, "known": 0, "merges": 0, "rejected": 3}

    # Words that somebody looked at.
    vouched = (await taken_in(p, zipped(ward() | {"vouched.txt": NAME.encode()}))).result
    assert vouched is not None
    assert (vouched["refused"], vouched["stored"], vouched["revised"]) == ({}, 1, 1)

    assert code(await taken_in(p, zipped({"a.txt": b"nothing"}))) == "timeline.unrecognised"
    assert code(await taken_in(p, archive, reader="word")) == "timeline.no_reader"
    assert code(await taken_in(p, zipped(ward(1)), who="wu")) == "request.not_found", "timelines are their maker's alone"


async def test_a_cohort_is_asked_and_becomes_a_version_that_is_valid_meds(p: Platform, tmp_path: Path) -> None:
    assert (await taken_in(p, zipped(ward()))).result
    defined = await define(p, QUESTION)
    assert defined.result == {"cohort": "infarction", "version": 1, "digest": defined.result and defined.result["digest"]}
    assert (await define(p, QUESTION)).result == defined.result
    assert code(await define(p, {**QUESTION, "name": "No Name"})) == "timeline.cohort_invalid"

    async def ask(cohort: str = "infarction", version: int = 0, who: str = "li") -> CohortView:
        return await p.ask(AskCohort(dataset="heart", cohort=cohort, version=version), CohortView, p.person(who, "researcher"))

    told = await ask()
    assert (told.patients, told.version, told.counts) == (12, 1, {"positive": 6, "negative": 6})
    other = {**QUESTION, "minimum_age": 200}
    assert ((await define(p, other)).result or {})["version"] == 2
    assert (await ask()).patients is None, "nobody, and fewer than five are not told"
    assert (await ask(version=1)) == told, "a version never changes"
    for asked in (ask("other"), ask(who="wu"), ask(version=7)):
        with pytest.raises(Problem):
            await asked
    assert {one["sub"] for one in await p.audited("ingestion")} >= {"timeline.import", "timeline.define", "timeline.ask"}

    assert code(await export(p, cohort="infarction")) == "timeline.empty"
    assert (await define(p, {**QUESTION, "minimum_age": 18})).result
    for _ in range(2):
        assert (await export(p, cohort="infarction")).result == {"dataset": "heart", "version": 1}, "the same again is the same version"
    document = await saved(p, tmp_path / "one")
    shown = await view(p, "heart")
    [table] = shown.tables
    assert (table.name, table.kind, table.groups) == ("events", "events", 12)
    data = pq.read_table(tmp_path / "one/data/0.parquet")
    meds.DataSchema.validate(data)
    assert (data.num_rows, sum(table.splits.values())) == (table.rows, table.rows)
    rows = data.to_pylist()
    assert [row["subject_id"] for row in rows] == sorted(row["subject_id"] for row in rows)
    assert all(row["text_value"] is None for row in rows), "texts go when they are asked for"
    labels = pq.read_table(tmp_path / "one/labels/infarction.parquet")
    meds.LabelSchema.validate(labels)
    assert sorted(labels["boolean_value"].to_pylist()) == [False] * 6 + [True] * 6
    splits = pq.read_table(tmp_path / "one" / meds.subject_splits_filepath)
    meds.SubjectSplitSchema.validate(splits)
    about = json.loads((tmp_path / "one" / meds.dataset_metadata_filepath).read_text())
    meds.DatasetMetadataSchema.validate(about)
    croissant = json.loads((tmp_path / "one/croissant.json").read_text())
    told_files = {one["contentUrl"]: one["sha256"] for one in croissant["distribution"] if "sha256" in one}
    assert told_files["data/0.parquet"] == next(f["object"]["sha256"] for f in document["files"] if f["path"] == "data/0.parquet")
    key = project_key(p.folder / "secrets" / "project.key")
    births = {row["time"] for row in rows if row["code"] == meds.birth_code}
    patients = [f"{SYSTEM}\x1f{NUMBER}{n}" for n in range(1, 13)]
    assert births == {datetime.fromordinal(datetime(1950, 2, 3).toordinal() - shift_days(one, key)) for one in patients}

    assert (await export(p, texts=True)).result == {"dataset": "heart", "version": 2}, "everybody, with texts"
    await saved(p, tmp_path / "two")
    assert "no pain" in pq.read_table(tmp_path / "two/data/0.parquet")["text_value"].to_pylist()
    assert pq.read_table(tmp_path / "two" / meds.subject_splits_filepath) == splits, "on the side on which everybody always is"
    assert code(await export(p, who="wu")) == "request.not_found"
    split = await p.send(SplitVersion(dataset="heart", version=2, anew=True), p.person("li", "researcher"))
    assert code(split) == "ingestion.split_nothing", "by patient, as it was made"
    exports = [one.get("detail", {}) for one in await p.audited("ingestion") if one["sub"] == "timeline.export"]
    assert [(one["texts"], one["patients"]) for one in exports if "events" in one] == [(False, 12), (True, 12)]


async def test_a_published_clinical_set_becomes_events_and_killed_work_goes_on(
    p: Platform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layouts.mimic3(tmp_path, rows=700)
    target = io.BytesIO()
    with opened(tmp_path) as source:
        pack(source, target)
    real, calls = records.append, 0

    async def dies(*args: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise ConnectionError("gone")
        return await real(*args, **named)

    monkeypatch.setattr(records, "append", dies)
    made = (await taken_in(p, target.getvalue(), "mimic")).result
    assert made is not None
    assert calls > 3
    assert made["known"] == 500, "what was stored before it broke off"
    assert (made["format"], made["patients"]) == ("mimic", 2)
    assert (await export(p, dataset="mimic")).result == {"dataset": "mimic", "version": 1}
    [table] = (await view(p, "mimic")).tables
    assert table.rows == made["stored"] + made["known"]
    [part] = [file for file in (await saved(p, tmp_path / "out", "mimic"))["files"] if file["path"] == "data/0.parquet"]
    assert ObjectRef.model_validate(part["object"]).bytes == (tmp_path / "out/data/0.parquet").stat().st_size


async def test_killed_between_the_end_and_erasing_the_archive_it_is_erased(p: Platform, monkeypatch: pytest.MonkeyPatch) -> None:
    store = p.runtimes["ingestion"].ports.stores.kept
    real, calls = store.delete, 0

    async def fails_once(sha256: str) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise ConnectionResetError
        await real(sha256)

    monkeypatch.setattr(store, "delete", fails_once)
    archive = zipped(ward(1))
    assert (await taken_in(p, archive)).result
    for _ in range(1000):
        if archive not in kept(p).values():
            break
        await asyncio.sleep(0.02)
    assert archive not in kept(p).values()
    assert [one["sub"] for one in await p.audited("ingestion")] == ["timeline.import"], "once"
