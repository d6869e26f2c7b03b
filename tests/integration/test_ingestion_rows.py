"""Questions, texts and rows of tables on real servers: kept without identity beside the images, counted, split by patient."""

from __future__ import annotations

import asyncio
import io
import json
import zipfile
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from tests.integration.test_ingestion import CANARIES, code, ingest, kept, leaks, png, view, zipped
from tests.platform import Platform, platform
from tests.unit.importing import layouts

from medmesh.client.datasets import difference
from medmesh.contracts.ingestion import DatasetVersionCreated, SplitVersion
from medmesh.contracts.message import ObjectRef
from medmesh.embedded.testing import RunningServers
from medmesh.importing.packing import pack
from medmesh.importing.sources import opened
from medmesh.store.objects.port import load
from medmesh_ingestion.service import SERVICE

NAMED = f"Patient name: {CANARIES[0]} {CANARIES[1]}"
DOUBTED = f"{CANARIES[1]} {CANARIES[0]} was admitted before."


@pytest.fixture
async def p(servers: RunningServers, private: Path) -> AsyncIterator[Platform]:
    async with platform(servers, private, SERVICE, settings={"ingestion": {"key": private / "secrets" / "project.key"}}) as made:
        yield made


def packed(folder: Path, **beside: bytes) -> bytes:
    """As `medmesh dataset import` sends it."""
    target = io.BytesIO()
    with opened(folder) as source:
        pack(source, target, beside={name.replace("_", "."): data for name, data in beside.items()})
    return target.getvalue()


async def document(p: Platform, dataset: str, version: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(await load(p.stores.kept, (await view(p, dataset, version)).content))
    return found


async def rows(p: Platform, table: dict[str, Any]) -> list[dict[str, Any]]:
    found = []
    for part in table["parts"]:
        data = await load(p.stores.kept, ObjectRef.model_validate(part["object"]))
        found += pq.read_table(io.BytesIO(data)).to_pylist()
    assert len(found) == table["rows"]
    assert all(set(row) == {field["name"] for field in table["fields"]} for row in found)
    return found


def pmcvqa(root: Path) -> None:
    """Version 1 with its pictures in a zip; two questions about one picture, one that names somebody, one in which rules doubt."""

    def asked(figure: str, question: str = "What is shown?", answer: str = "heart") -> tuple[str, ...]:
        return (figure, question, f" B: {answer}", " A:lung ", f"B: {answer}", " C : bone", "D:skin", "B")

    one, two, three, absent = (f"PMC{n}_a-g00{n}_1.jpg" for n in (1, 2, 3, 4))
    layouts.put(root, "train.csv", layouts.sheet(layouts.V1, [asked(one), asked(one, NAMED), asked(two, DOUBTED), asked(two)]))
    layouts.put(root, "test.csv", layouts.sheet(layouts.V1, [asked(three), asked(three, "Where is it?")]))
    layouts.put(root, "test_clean.csv", layouts.sheet(layouts.V1, [asked(three)]))
    pictures = {f"figures/{name}": png(30 + n) for n, name in enumerate((one, two, three, absent))}
    layouts.put(root, "images.zip", zipped(pictures, zipfile.ZIP_DEFLATED))


async def test_questions_are_kept_with_their_choices_answers_splits_and_pictures(p: Platform, tmp_path: Path) -> None:
    pmcvqa(tmp_path / "set")
    archive = packed(tmp_path / "set")
    assert (await ingest(p, archive, "vqa")).result == {"dataset": "vqa", "version": 1}
    assert (await ingest(p, archive, "vqa")).result == {"dataset": "vqa", "version": 1}, "the same data again"
    shown = await view(p, "vqa")
    assert (shown.samples, shown.labels, shown.rejected) == (3, {}, {"text_doubtful": 1}), "a picture once, however many ask about it"
    [told] = shown.tables
    assert (told.name, told.kind, told.rows, told.groups) == ("questions", "question", 6, 3)
    assert told.splits == {"test": 2, "test_clean": 1, "train": 3}
    made = await document(p, "vqa")
    assert made["about"]["counts"] == {"question test": 2, "question test_clean": 1, "question train": 4}, "as published, to the row"
    questions = await rows(p, made["tables"][0])
    named = next(row for row in questions if row["question"] != "What is shown?" and row["split"] == "train")
    assert "NAME" in named["question"]
    assert {tuple(row["choices"]) for row in questions} == {("lung", "heart", "bone", "skin")}
    assert {(row["answer"], row["label"]) for row in questions} == {("heart", "B")}
    items = {item["item"]: item for item in made["items"]}
    assert {image for row in questions for image in row["images"]} == set(items)
    for row in questions:
        [image] = row["images"]
        assert (items[image]["group"], items[image]["label"]) == (row["group"], None)
    assert Counter(item["split"] for item in items.values()) == {"train": 2, "test": 1}
    assert leaks([*kept(p).values(), json.dumps(questions).encode(), json.dumps(made).encode()]) == set()
    assert archive not in kept(p).values(), "the archive is erased"
    event = (await p.wait(DatasetVersionCreated, lambda found: found.data.dataset == "vqa")).data
    assert (event.samples, event.rows, event.rejected) == (3, 6, 1)
    [record] = [one for one in await p.audited("ingestion") if one["sub"] == "dataset.create"]
    assert (record["detail"]["rows"], record["detail"]["samples"]) == (6, 3)

    # Words that somebody looked at are kept; what rules are sure of is replaced all the same.
    vouched = packed(tmp_path / "set", vouched_txt=b"zebedee canaryname\n")
    assert (await ingest(p, vouched, "vqa")).result == {"dataset": "vqa", "version": 2}
    again = await document(p, "vqa")
    texts = {row["question"] for row in await rows(p, again["tables"][0])}
    assert DOUBTED in texts
    assert not any(NAMED.rpartition(" ")[0] in text for text in texts)
    changed = difference(made, again).document()
    assert changed["tables"] == {
        "questions": {
            "is": "changed",
            "rows": {"from": 6, "to": 7},
            "splits": {"from": told.splits, "to": {**told.splits, "train": 4}},
        }
    }
    assert changed["same"] == 3

    # A zip of pictures that is none refuses the set, by code; a picture in it that is damaged is one picture.
    whole = (tmp_path / "set/images.zip").read_bytes()
    (tmp_path / "set/images.zip").write_bytes(whole[:-40])
    assert code(await ingest(p, packed(tmp_path / "set"), "broken")) == "ingestion.layout"
    at = whole.index(b"IDAT") if b"IDAT" in whole else whole.index(b"PMC1") + 60
    (tmp_path / "set/images.zip").write_bytes(whole[:at] + bytes(9) + whole[at + 9 :])
    assert (await ingest(p, packed(tmp_path / "set"), "broken")).result == {"dataset": "broken", "version": 1}
    assert ((await view(p, "broken")).samples, (await view(p, "broken")).rejected) == (2, {"text_doubtful": 1, "unreadable": 1})

    # Without the pictures, the questions still say which ones they are about.
    (tmp_path / "set/images.zip").unlink()
    assert (await ingest(p, packed(tmp_path / "set"), "vqa")).result == {"dataset": "vqa", "version": 3}
    bare = await document(p, "vqa")
    assert (bare["items"], (await view(p, "vqa")).samples) == ([], 0)
    assert {image for row in await rows(p, bare["tables"][0]) for image in row["images"]} == set(items)


async def test_rows_are_split_with_their_groups_and_pictures(p: Platform, tmp_path: Path) -> None:
    pmcvqa(tmp_path)
    assert (await ingest(p, packed(tmp_path), "vqa")).result
    before = await document(p, "vqa")

    async def split(**asked: Any) -> Any:
        return await p.send(SplitVersion(dataset="vqa", version=1, **asked), p.person("li", "researcher"))

    assert code(await split()) == "ingestion.split_published"
    for _ in range(2):
        assert (await split(anew=True, ratios=(1, 1, 1), seed=3)).result == {"dataset": "vqa", "version": 2}, "the same again is the same"
    after = await document(p, "vqa")
    assert after["about"] == before["about"]
    old, new = [await rows(p, one["tables"][0]) for one in (before, after)]
    assert [{**row, "split": None} for row in old] == [{**row, "split": None} for row in new], "nothing but the split is another"
    sides = defaultdict(set)
    for row in [*new, *after["items"]]:
        sides[row["group"]].add(row["split"])
    assert all(len(found) == 1 for found in sides.values())
    assert {split for found in sides.values() for split in found} == {"train", "val", "test"}
    counts = Counter(row["split"] for row in new)
    assert (await view(p, "vqa")).tables[0].splits == dict(counts)


async def test_texts_of_images_and_reports_are_kept_by_what_they_are(p: Platform, tmp_path: Path) -> None:
    layouts.medmd(tmp_path)
    history = "Fall from a ladder. " + NAMED
    layouts.put(
        tmp_path, "MedPix_multi_train.csv", layouts.sheet(("name", "type", "context", "history"), [("a.png", "CT", "head", history)])
    )
    for seed, name in enumerate(("cxr1.png", "cxr2.png", "a.png", "PMC7_F1.jpg")):
        layouts.put(tmp_path, f"images/{name}", png(50 + seed))
    assert (await ingest(p, packed(tmp_path), "medmd")).result == {"dataset": "medmd", "version": 1}
    made = await document(p, "medmd")
    tables = {table["name"]: await rows(p, table) for table in made["tables"]}
    items = {item["item"]: item for item in made["items"]}
    roles = {(row["role"], row["text"]) for row in tables["texts"]}
    assert {("caption", "A scan."), ("context", "head"), ("finding", "none"), ("text", "See <img>.")} <= roles
    [said] = [row for row in tables["texts"] if row["role"] == "history"]
    assert said["text"].startswith("Fall from a ladder. Patient name: [NAME]")
    assert items[said["images"][0]]["labels"] == {"type": "CT"}, "about the image that it stands beside"
    asked = {row["question"]: row for row in tables["questions"]}
    assert (asked["Normal?"]["answer"], asked["What?"]["context"], asked["What?"]["split"]) == ("no", "A man.", "test")
    assert dict(asked[None]["labels"]) == {"disease": "effusion", "label": "yes"}
    assert len(asked["What?"]["images"]) == 2
    assert (await view(p, "medmd")).rejected == {"pending": 1}, "the volume that is not shipped"
    everything = [*kept(p).values(), json.dumps([tables, made]).encode()]
    assert leaks(everything) == set()
    assert not [body for body in everything if b"synpic1" in body or b"/mnt/" in body], "places in the source name cases"


async def test_rows_of_a_published_clinical_set_stand_under_pseudonyms_at_moved_times(p: Platform, tmp_path: Path) -> None:
    layouts.mimic3(tmp_path)
    assert (await ingest(p, packed(tmp_path), "mimic")).result == {"dataset": "mimic", "version": 1}
    made = await document(p, "mimic")
    tables = {table["name"]: table for table in made["tables"]}
    assert {name: (table["kind"], table["rows"], table["groups"]) for name, table in tables.items()} == {
        "admissions": ("events", 2, 2),
        "chartevents": ("events", 2, 2),
        "d_items": ("table", 1, 0),
        "diagnoses_icd": ("events", 2, 2),
        "labevents": ("events", 1, 1),
        "noteevents": ("text", 1, 1),
        "patients": ("events", 2, 2),
    } | {"chartevents": ("events", 2, 1)}
    assert [row["label"] for row in await rows(p, tables["d_items"])] == ["Heart Rate"], "a published list of terms"
    assert {row["icd9_code"] for row in await rows(p, tables["diagnoses_icd"])} == {"0389"}, "codes are text"
    people = {row["group"]: row for row in await rows(p, tables["patients"])}
    stays = {row["group"]: row for row in await rows(p, tables["admissions"])}
    assert people.keys() == stays.keys()
    moved = {name: (datetime(2090, 1, 1) - people[name]["dob"]).days for name in people}
    assert all(365 <= days < 365 + 3287 for days in moved.values())
    assert {name: (datetime(2150, 1, 1, 10) - stays[name]["admittime"]).days for name in stays} == moved, "one axis for each patient"
    assert len({row["hadm_id"] for row in stays.values()}) == 2
    fields = {field["name"] for table in tables.values() for field in table["fields"]}
    assert not fields & {"subject_id", "row_id"}
    assert all(len(row["hadm_id"]) == 16 for row in stays.values())
    answer = await p.send(SplitVersion(dataset="mimic", version=1, ratios=(1, 0, 1)), p.person("li", "researcher"))
    assert answer.result == {"dataset": "mimic", "version": 2}, answer.problem
    after = {table["name"]: table for table in (await document(p, "mimic"))["tables"]}
    assert after["d_items"] == tables["d_items"], "nobody's: not split"
    sides = defaultdict(set)
    for name, table in after.items():
        for row in await rows(p, table) if name != "d_items" else ():
            sides[row["group"]].add(row["split"])
    assert sorted(map(sorted, sides.values())) == [["test"], ["train"]]


COLUMNS = b"""
["heart.csv"]
patient = "id"
known = ["name"]
label = "disease"
missing = ["?"]
["heart.csv".columns]
age = { kind = "whole", low = 0, high = 120, unit = "a" }
disease = { kind = "code", codes = ["none", "some"] }
seen = { kind = "time" }
visit = { kind = "identifier" }
report = { kind = "text" }
"""
HEART = f"""id,name,age,disease,seen,visit,report,comment
CANARY-PID-7781,Canaryname Zebedee,63,some,2024-03-05,V1,"Canaryname Zebedee has pain",about Canaryname
CANARY-PID-7781,Canaryname Zebedee,?,none,2024-03-07,V2,no pain,x
P2,Somebody Else,41,none,2024-01-01,V3,Zebedee Canaryname was admitted,x
P3,,141,none,,,,x
P3,,40,{CANARIES[0]},,,,x
,,40,none,,,,x
"""


async def test_of_any_other_table_the_named_columns_are_kept_and_no_row_that_does_not_fit(p: Platform, tmp_path: Path) -> None:
    files = {"heart.csv": HEART.encode(), "scan.png": png(9), "labels.csv": b"item,label\nscan.png,none\n"}
    assert (await ingest(p, zipped(files), "heart")).result, "the picture"
    assert (await view(p, "heart")).rejected == {"columns_needed": 1}
    assert (await ingest(p, zipped(files | {"columns.toml": COLUMNS}), "heart")).result == {"dataset": "heart", "version": 2}
    shown = await view(p, "heart")
    assert (shown.samples, shown.rejected) == (1, {"row_value": 2, "row_patient": 1})
    [told] = shown.tables
    assert (told.name, told.rows, told.groups, told.splits) == ("heart", 3, 2, {"": 3})
    [table] = (await document(p, "heart"))["tables"]
    found = await rows(p, table)
    assert [(row["age"], row["disease"]) for row in found] == [(63, "some"), (None, "none"), (41, "none")]
    assert [row["report"] for row in found] == ["[NAME] has pain", "no pain", None]
    assert table["emptied"] == {"report": 1}, "rules doubt: it is left empty, and counted"
    assert (found[1]["seen"] - found[0]["seen"]).days == 2
    assert found[0]["seen"] < datetime(2023, 3, 6)
    assert found[0]["group"] == found[1]["group"] != found[2]["group"]
    assert {"name": "age", "kind": "whole", "unit": "a"} in table["fields"]
    assert leaks([*kept(p).values(), json.dumps(found, default=str).encode()]) == set()
    for wrong, reason in (
        (COLUMNS.replace(b'"heart.csv"', b'"other.csv"'), "there is no other.csv"),
        (COLUMNS + b'name = { kind = "text" }\n', "name identifies the patient, and is not kept"),
        (COLUMNS + b'weight = { kind = "text" }\n', "heart.csv has not one column 'weight'"),
    ):
        answer = await ingest(p, zipped(files | {"columns.toml": wrong}), "wrong")
        assert (code(answer), answer.problem and answer.problem["params"]) == ("importing.columns", {"reason": reason})


@pytest.mark.parametrize("method", ["put_file", "delete"])
async def test_work_that_broke_off_ends_in_the_same_version(
    p: Platform, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    pmcvqa(tmp_path)
    archive = packed(tmp_path)
    assert (await ingest(p, archive, "whole")).result
    store, calls = type(p.stores.kept), 0
    real = getattr(store, method)

    async def dies(self: Any, *args: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise ConnectionError("gone")
        return await real(self, *args, **named)

    monkeypatch.setattr(store, method, dies)
    assert (await ingest(p, archive, "again")).result == {"dataset": "again", "version": 1}
    assert (await view(p, "again")).content == (await view(p, "whole")).content
    for _ in range(1000):
        if calls > 1 and archive not in kept(p).values():
            break
        await asyncio.sleep(0.02)
    assert calls > 1, "it broke off, and was done again"
    assert archive not in kept(p).values()
