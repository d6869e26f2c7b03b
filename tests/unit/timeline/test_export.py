"""An export is MEDS by MEDS's own library, whole or not there, and tells no text that was not asked for."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import meds
import pyarrow.parquet as pq
import pytest

from medmesh.errors import Problem
from medmesh.timeline.events import BIRTH, DEATH, Event, order
from medmesh.timeline.export import OWN, Sample, export

START = datetime(2014, 3, 1, 9, 30, 0, 125)


def event(subject: int, n: int, **other: object) -> Event:
    fields: dict[str, object] = {
        "subject_id": subject, "time": START + timedelta(hours=n), "code": "DIAGNOSIS//ICD10//I21.9", "numeric_value": None,
        "text_value": None, "event_id": f"{subject}-{n}", "source_uri": "test:1", "object_sha256": None, "modality": "diagnosis",
        "unit": None,
        "code_system": "ICD10", "time_precision": "second", "ingested_at": datetime(2024, 1, 1, 8, tzinfo=UTC), "consent_id": None,
        "revision": 1,
    }  # fmt: skip
    return Event(**(fields | other))  # type: ignore[arg-type]


async def timelines(count: int = 5) -> AsyncIterator[tuple[int, list[Event]]]:
    for subject in range(count):
        events = [event(subject, n) for n in range(3)]
        events += [
            event(subject, 9, code="NOTE//WARD", modality="text", text_value="张三，胸痛"),
            event(subject, 10, code=BIRTH, time=None),
        ]
        events += [event(subject, 11, code="DICOM//CT//STUDY", modality="imaging", text_value="urn:oid:2.25.7", numeric_value=0.1)]
        yield subject, sorted(events, key=order)


def split(subject: int) -> str:
    return "held_out" if subject == 4 else "train"


async def test_every_table_is_valid_and_a_subject_lies_in_one_file_in_order(tmp_path: Path) -> None:
    done = await export(
        tmp_path / "out", "heart", timelines(), split, shard=10, labels={"died": [Sample(3, START, True), Sample(1, START, False)]}
    )
    shards = [pq.read_table(path) for path in sorted((tmp_path / "out" / "data").iterdir())]
    assert [table.num_rows for table in shards] == [12, 12, 6], "a subject is not torn"
    for table in shards:
        meds.DataSchema.validate(table)
        rows = table.select(["subject_id", "time"]).to_pylist()
        assert [row["subject_id"] for row in rows] == sorted(row["subject_id"] for row in rows)
        for subject in {row["subject_id"] for row in rows}:
            times = [row["time"] for row in rows if row["subject_id"] == subject]
            assert times[0] is None and times[1:] == sorted(times[1:])
    assert not {row["subject_id"] for row in shards[0].to_pylist()} & {row["subject_id"] for row in shards[1].to_pylist()}
    first = shards[0].to_pylist()[1]
    assert first["time"] == START and first["ingested_at"] == datetime(2024, 1, 1, 8)
    codes = pq.read_table(tmp_path / "out" / meds.code_metadata_filepath)
    meds.CodeMetadataSchema.validate(codes)
    assert {row["code"]: row["parent_codes"] for row in codes.to_pylist()} == {
        BIRTH: None,
        "DIAGNOSIS//ICD10//I21.9": ["DIAGNOSIS//ICD10//I21"],
        "DICOM//CT//STUDY": None,
        "NOTE//WARD": None,
    }
    splits = pq.read_table(tmp_path / "out" / meds.subject_splits_filepath)
    meds.SubjectSplitSchema.validate(splits)
    assert splits.to_pylist()[4] == {"subject_id": 4, "split": "held_out"}
    about = json.loads((tmp_path / "out" / meds.dataset_metadata_filepath).read_text())
    meds.DatasetMetadataSchema.validate(about)
    declared = [name for key, names in about.items() if key.endswith("_columns") for name in names]
    assert sorted(declared) == sorted(OWN), "each column of ours is declared, once"
    labels = pq.read_table(tmp_path / "out" / "labels" / "died.parquet")
    meds.LabelSchema.validate(labels)
    assert labels.to_pylist()[0] == {"subject_id": 1, "prediction_time": START, "boolean_value": False}
    assert (done.events, done.subjects, done.splits) == (30, 5, {"train": 4, "held_out": 1})
    assert (meds.birth_code, meds.death_code) == (BIRTH, DEATH)


async def test_texts_stay_unless_they_are_asked_for(tmp_path: Path) -> None:
    await export(tmp_path / "without", "heart", timelines(1), split)
    await export(tmp_path / "with", "heart", timelines(1), split, texts=True)
    without, with_ = (
        {row["code"]: row["text_value"] for row in pq.read_table(tmp_path / name / "data" / "0.parquet").to_pylist()}
        for name in ("without", "with")
    )
    assert (without["NOTE//WARD"], without["DICOM//CT//STUDY"]) == (None, "urn:oid:2.25.7")
    assert with_["NOTE//WARD"] == "张三，胸痛"


async def test_what_fails_leaves_nothing_and_what_is_there_is_not_written_over(tmp_path: Path) -> None:
    async def breaks() -> AsyncIterator[tuple[int, list[Event]]]:
        yield 1, [event(1, 1)]
        raise RuntimeError

    with pytest.raises(RuntimeError):
        await export(tmp_path / "out", "heart", breaks(), split, shard=1)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "out").mkdir()
    with pytest.raises(Problem) as caught:
        await export(tmp_path / "out", "heart", timelines(1), split)
    assert caught.value.code == "timeline.target"


async def test_croissant_names_every_file_with_its_hash_and_every_column_that_is_there(tmp_path: Path) -> None:
    done = await export(tmp_path / "out", "heart", timelines(), split, shard=10)
    document = json.loads((tmp_path / "out" / "croissant.json").read_text())
    assert document["conformsTo"] == "http://mlcommons.org/croissant/1.0"
    files = {one["@id"]: one["sha256"] for one in document["distribution"]}
    assert files == {name: sha256 for name, (sha256, _) in done.files.items()} and len(files) == 6
    for records in document["recordSet"]:
        for one in records["field"]:
            file = one["source"]["fileObject"]["@id"]
            assert one["source"]["extract"]["column"] in pq.read_schema(tmp_path / "out" / file).names
    assert len(document["recordSet"]) == 5
