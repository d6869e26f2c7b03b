"""What goes into the index, what stands against it, and what is left when it goes."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.unit.archive.objects import made, store

from medmesh.archive import header, index, names
from medmesh.archive.index import Conflict
from medmesh.archive.tables import open_archive, transaction
from medmesh.errors import Problem


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    connection = open_archive(tmp_path)
    yield connection
    connection.close()


def counts(connection: sqlite3.Connection) -> list[tuple[object, ...]]:
    return list(connection.execute("SELECT uid, series, instances, modalities FROM studies ORDER BY uid"))


def test_counts_and_modalities_are_kept_with_the_objects(archive: sqlite3.Connection) -> None:
    first, _ = store(archive, made())
    second, _ = store(archive, made(SOPInstanceUID="1.2.3.1.1.2"))
    third, _ = store(archive, made(SOPInstanceUID="1.2.3.1.2.1", SeriesInstanceUID="1.2.3.1.2", Modality="SR"))
    assert counts(archive) == [("1.2.3.1", 2, 3, "\\CT\\SR\\")]
    with transaction(archive):
        assert index.remove(archive, [third, 999]) == 1
    assert counts(archive) == [("1.2.3.1", 1, 2, "\\CT\\")]
    with transaction(archive):
        assert index.remove(archive, [first, second]) == 2
    assert counts(archive) == []
    for table in ("series", "instances", "headers", "names"):
        assert archive.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,), table
    assert archive.execute("SELECT count(*) FROM objects").fetchone() == (3,)


@pytest.mark.parametrize(
    ("values", "conflict"),
    [
        ({"StudyDescription": "other"}, Conflict.KNOWN),
        ({"SeriesInstanceUID": "1.2.3.1.9"}, Conflict.SERIES),
        ({"SOPInstanceUID": "1.2.3.9", "StudyInstanceUID": "1.2.9"}, Conflict.STUDY),
        ({"SOPInstanceUID": "1.2.3.9", "PatientID": "P2"}, Conflict.PATIENT),
    ],
)
def test_what_contradicts_is_told_and_changes_nothing(archive: sqlite3.Connection, values: dict[str, str], conflict: Conflict) -> None:
    store(archive, made())
    before = [list(archive.execute(f"SELECT * FROM {table}")) for table in ("studies", "series", "instances", "headers", "names")]
    assert store(archive, made(**values))[1] is conflict
    assert [list(archive.execute(f"SELECT * FROM {t}")) for t in ("studies", "series", "instances", "headers", "names")] == before


def test_realms_and_projects_know_nothing_of_each_other(archive: sqlite3.Connection) -> None:
    assert store(archive, made(), "p", "original")[1] is None
    assert store(archive, made(PatientID="pseudonym"), "p", "clean")[1] is None
    assert store(archive, made(), "q", "original")[1] is None
    assert len(counts(archive)) == 3


@pytest.mark.parametrize("keyword", ["SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"])
@pytest.mark.parametrize("value", ["", "../../etc/passwd", "1.2.3/4", "1" * 65])
def test_an_object_without_a_place_is_refused(keyword: str, value: str) -> None:
    import io

    # As long as a UID may be, and cut to what is tried; what is longer takes a different number of bytes.
    data = made(**{keyword: "1" * 64}).replace(b"UI\x40\0" + b"1" * 64, b"UI\x42\0" + value.encode().ljust(66, b"\0"))
    with pytest.raises(Problem) as caught:
        header.read(io.BytesIO(data))
    assert caught.value.code == "archive.uid"


@pytest.mark.parametrize(
    ("text", "key"),
    [("1011", "101100.000000"), ("101112.5", "101112.500000"), ("10:11:12", "101112.000000"), ("", ""), ("noon", "")],
)
def test_times_compare_as_text(text: str, key: str) -> None:
    assert header.time_key(text) == key


def test_names_are_found_in_every_component_group() -> None:
    found = set(names.keys("WANG^XiaoDong=王^小东=MÜLLER^José "))
    assert {("whole", "wang^xiaodong"), ("whole", "王^小东"), ("whole", "王小东"), ("whole", "muller^jose")} <= found
    assert {("word", "xiaodong"), ("word", "小东"), ("word", "王小东"), ("word", "jose")} <= found
    assert list(names.keys("^^^^")) == []
    assert names.whole("ＷＡＮＧ^") == "wang"


def test_a_killed_writer_leaves_no_half_of_an_object(archive: sqlite3.Connection, tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    import io

    def write() -> None:
        other = open_archive(tmp_path)
        try:
            with transaction(other):
                other.execute("INSERT INTO scopes (id, project, realm) VALUES (1, 'p', 'original')")
                row = other.execute("INSERT INTO objects (scope, sha256, bytes, state, at) VALUES (1, 'a', 1, 'received', 1)").lastrowid
                assert row is not None
                index.put(other, 1, row, header.read(io.BytesIO(made())))
                raise Killed
        finally:
            other.close()

    with pytest.raises(Killed):
        write()
    assert counts(archive) == []
