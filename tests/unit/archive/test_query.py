"""Matching as PS3.4 §C.2.2.2 says, on an index of a few objects; what is answered, in what order, how many; what is refused."""

from __future__ import annotations

import fnmatch
import json
import sqlite3
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from tests.unit.archive.objects import made, store

from medmesh.archive import matching, parameters, query
from medmesh.archive.tables import known_scope, open_archive
from medmesh.errors import Problem

ROOT = "http://node/dicom-web/p"


def step(identifier: str) -> list[Dataset]:
    item = Dataset()
    item.ScheduledProcedureStepID = identifier
    item.RequestedProcedureID = "R" + identifier
    return [item]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sqlite3.Connection]:
    connection = open_archive(tmp_path_factory.mktemp("archive"))
    people = [
        ("P1", "WANG^XiaoDong=王^小东", "20260102", "101112", "A1", "CHEST"),
        ("P2", "Wang^Li=王^丽", "20260103", "235959.5", "A2", "Head [contrast]"),
        ("P3", "MÜLLER^José", "20251231", "", "A3", ""),
        ("p3", "李雷", "", "10", "", "CHEST 2"),
    ]
    for number, (patient, name, date, time, accession, description) in enumerate(people, start=1):
        for series, modality in ((1, "CT"), (2, "SR" if number == 1 else "MR")):
            for instance in (1, 2):
                data = made(
                    PatientID=patient, PatientName=name, StudyDate=date, StudyTime=time, AccessionNumber=accession,
                    StudyDescription=description,
                    StudyInstanceUID=f"1.{number}", SeriesInstanceUID=f"1.{number}.{series}",
                    SOPInstanceUID=f"1.{number}.{series}.{instance}",
                    Modality=modality, SeriesNumber=str(series), InstanceNumber=str(instance), KVP=str(100 + number),
                    RequestAttributesSequence=step(f"S{number}{series}"),
                    PerformedProcedureStepStartDate="20260105" if series == 1 else None,
                )  # fmt: skip
                assert store(connection, data)[1] is None
    store(connection, made(PatientID="P1"), "other")
    yield connection
    connection.close()


def ask(connection: sqlite3.Connection, level: Any, text: str, **within: str) -> tuple[list[dict[str, Any]], int]:
    pairs = [tuple(part.split("=", 1)) for part in text.split("&")] if text else []
    scope = known_scope(connection, "p", "original")
    assert scope is not None
    answer = query.search(connection, scope, level, parameters.parse(pairs), ROOT, **within)  # type: ignore[arg-type]
    rows: list[dict[str, Any]] = json.loads(answer.body(), strict=False)
    for row in rows:
        assert list(row) == sorted(row)
    return rows, answer.more


def uids(rows: list[dict[str, Any]], tag: str = "0020000D") -> list[str]:
    return [row[tag]["Value"][0] for row in rows]


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("", "1234"),
        ("PatientID=P1", "1"),
        ("00100020=P1", "1"),
        ("PatientID=p3", "4"),  # case counts, but in names
        ("PatientID=P*", "123"),
        ("PatientID=?3", "34"),
        ("PatientID=*", "1234"),
        ("PatientID=", "1234"),
        ("PatientID=P", ""),
        ("StudyInstanceUID=1.1,1.3", "13"),
        ("StudyInstanceUID=1.1\\1.4", "14"),
        ("StudyDate=20260102", "1"),
        ("StudyDate=20260101-20260103", "12"),
        ("StudyDate=20260103-", "2"),
        ("StudyDate=-20260102", "13"),
        ("StudyTime=10-10", "14"),
        ("StudyTime=100000-", "124"),
        ("StudyTime=235959.5", "2"),
        ("StudyDate=20260101-&StudyTime=1011-", "12"),
        ("AccessionNumber=A2", "2"),
        ("ModalitiesInStudy=SR", "1"),
        ("ModalitiesInStudy=MR", "234"),
        ("ModalitiesInStudy=SR,MR", "1234"),
        ("ModalitiesInStudy=S*", "1"),
        ("ModalitiesInStudy=R", ""),
        ("PatientName=wang^li", "2"),
        ("PatientName=Wang*", "12"),
        ("PatientName=WANG", ""),
        ("PatientName=王^小东", "1"),
        ("PatientName=王小东", "1"),
        ("PatientName=王*", "12"),
        ("PatientName==王*", "12"),
        ("PatientName=wang*=*丽", "2"),
        ("PatientName=muller^jose", "3"),
        ("PatientName=MÜLLER*", "3"),
        ("PatientName=?u*", "3"),
        ("PatientName=李*", "4"),
        ("PatientName=李雷", "4"),
        ("PatientName=xiao&fuzzymatching=true", "1"),
        ("PatientName=li wang&fuzzymatching=true", "2"),
        ("PatientName=jos&fuzzymatching=true", "3"),
        ("PatientName=小&fuzzymatching=true", "1"),
        ("PatientName=dong&fuzzymatching=true", ""),
        ("StudyDescription=CHEST", "1"),
        ("StudyDescription=CHEST*", "14"),
        ("StudyDescription=*[contrast]", "2"),
        ("StudyDescription=chest", ""),
        ("KVP=102", "2"),  # no index knows it: of the study's first object
        ("KVP=102.0&PatientID=P2", "2"),
    ],
)
def test_studies(archive: sqlite3.Connection, asked: str, found: str) -> None:
    rows, more = ask(archive, "studies", asked)
    assert "".join(uid[-1] for uid in uids(rows)) == found
    assert more == 0


@pytest.mark.parametrize(
    ("level", "asked", "within", "found"),
    [
        ("series", "", {"study": "1.2"}, ["1.2.1", "1.2.2"]),
        ("series", "Modality=SR", {}, ["1.1.2"]),
        ("series", "SeriesNumber=2&PatientID=P2", {}, ["1.2.2"]),
        ("series", "PerformedProcedureStepStartDate=20260101-&PatientID=P1", {}, ["1.1.1"]),
        ("series", "RequestAttributesSequence.ScheduledProcedureStepID=S31", {}, ["1.3.1"]),
        ("series", "00400275.00401001=RS4*", {}, ["1.4.1", "1.4.2"]),
        ("series", "PatientName=wang*&Modality=CT", {}, ["1.1.1", "1.2.1"]),
        ("series", "", {"study": "9.9"}, []),
        ("instances", "", {"study": "1.1", "series": "1.1.2"}, ["1.1.2.1", "1.1.2.2"]),
        ("instances", "", {"study": "1.1", "series": "1.2.2"}, []),
        ("instances", "InstanceNumber=2&Modality=SR", {}, ["1.1.2.2"]),
        ("instances", "SOPInstanceUID=1.4.2.1,1.1.1.1", {}, ["1.1.1.1", "1.4.2.1"]),
        ("instances", "SOPClassUID=1.2.840.10008.5.1.4.1.1.2&PatientID=P1&SeriesNumber=1", {}, ["1.1.1.1", "1.1.1.2"]),
        ("instances", "Rows=2&PatientID=P1&limit=1&offset=2", {}, ["1.1.2.1"]),
    ],
)
def test_series_and_instances(archive: sqlite3.Connection, level: str, asked: str, within: dict[str, str], found: list[str]) -> None:
    rows, _ = ask(archive, level, asked, **within)
    assert uids(rows, {"series": "0020000E", "instances": "00080018"}[level]) == found


def test_what_is_answered(archive: sqlite3.Connection) -> None:
    (row,) = ask(archive, "studies", "PatientID=P1")[0]
    assert row["00080061"] == {"vr": "CS", "Value": ["CT", "SR"]}
    assert (row["00201206"]["Value"], row["00201208"]["Value"]) == ([2], [4])
    assert row["00100010"]["Value"] == [{"Alphabetic": "WANG^XiaoDong", "Ideographic": "王^小东"}]
    assert row["00081190"]["Value"] == [f"{ROOT}/studies/1.1"]
    assert row["00080090"] == {"vr": "PN"}  # asked of every study, empty where there is none
    assert "00180060" not in row
    (row,) = ask(archive, "studies", "PatientID=P1&includefield=KVP,00080016")[0]
    assert row["00180060"] == {"vr": "DS", "Value": [101]}
    assert "00080016" in row
    (row,) = ask(archive, "instances", "PatientID=P1&includefield=all&limit=1")[0]
    assert row["7FE00010"] == {"vr": "OB", "BulkDataURI": f"{ROOT}/studies/1.1/series/1.1.1/instances/1.1.1.1/bulkdata/7FE00010"}
    assert row["00280002"]["Value"] == [1]
    (row,) = ask(archive, "instances", "limit=1", study="1.1", series="1.1.1")[0]
    assert row["0020000D"]["Value"] == ["1.1"]
    assert "00100010" not in row  # the address says whose it is


@pytest.mark.parametrize("asked", ["limit=3", "limit=3&StudyDescription=*", "limit=3&Rows=2"])
def test_pages_hold_everything_once(archive: sqlite3.Connection, asked: str) -> None:
    seen: list[str] = []
    for offset in range(0, 18, 3):
        rows, more = ask(archive, "instances", f"{asked}&offset={offset}")
        seen += uids(rows, "00080018")
        assert more == max(0, 16 - offset - 3)
    assert len(seen) == len(set(seen)) == 16


@pytest.mark.parametrize(
    ("asked", "parameter"),
    [
        ("NoSuchThing=1", "NoSuchThing"),
        ("limit=x", "limit"),
        ("limit=0", "limit"),
        ("offset=-1", "offset"),
        ("fuzzymatching=yes", "fuzzymatching"),
        ("StudyDate=2026", "StudyDate"),
        ("StudyDate=-", "StudyDate"),
        ("StudyTime=25h", "StudyTime"),
        ("StudyInstanceUID=1.*", "StudyInstanceUID"),
        ("StudyInstanceUID=' OR 1=1", "StudyInstanceUID"),
        ("SeriesNumber=two", "SeriesNumber"),
        ("includefield=Nothing", "includefield"),
        ("PatientID=1&PatientID=2", "PatientID"),
        ("PatientID=1&00100020=2", "00100020"),
        ("RequestAttributesSequence=1", "RequestAttributesSequence"),
        ("PatientID.PatientName=1", "PatientID.PatientName"),
        ("PatientID=" + "*a" * 9, "PatientID"),
    ],
)
def test_what_is_wrong_is_named(asked: str, parameter: str) -> None:
    with pytest.raises(Problem) as caught:
        parameters.parse([tuple(part.split("=", 1)) for part in asked.split("&")])  # type: ignore[misc]
    assert caught.value.code == "archive.query"
    assert caught.value.params["parameter"] == parameter
    assert caught.value.status == 400


def test_an_attribute_of_a_lower_level_is_refused(archive: sqlite3.Connection) -> None:
    with pytest.raises(Problem) as caught:
        ask(archive, "studies", "Modality=CT")
    assert caught.value.code == "archive.query_level"


def test_a_query_may_not_read_the_whole_archive(archive: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(query, "SCANNED", 3)
    assert len(ask(archive, "instances", "Rows=2&PatientID=P1&SeriesNumber=1")[0]) == 2
    with pytest.raises(Problem) as caught:
        ask(archive, "instances", "Rows=2")
    assert caught.value.status == 413


@given(st.text("ab[]!^-*?", max_size=6), st.text("ab[]!^-", max_size=6))
def test_patterns_mean_the_same_to_sqlite_as_to_us(pattern: str, text: str) -> None:
    with sqlite3.connect(":memory:") as connection:
        (found,) = connection.execute("SELECT ? GLOB ?", (text, matching.glob(pattern))).fetchone()
    connection.close()
    plain = "".join(f"[{c}]" if c == "[" else c for c in pattern)  # an oracle of its own: fnmatch's only special bracket escaped
    assert bool(found) == fnmatch.fnmatchcase(text, plain)
    assert bool(found) == bool(matching._expression(pattern).fullmatch(text))
