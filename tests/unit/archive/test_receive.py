"""What is acknowledged is on the disk and in the index; what is refused is told by its reason, and kept where it can be."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import threading
import warnings
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pydicom
import pytest
from pydicom.data import get_testdata_file
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from medmesh.archive.receive import Origin, Outcome, Receiver
from medmesh.archive.records import Growing
from medmesh.archive.scan import Malformed, scan
from medmesh.archive.tables import open_archive
from medmesh.security.keyring.file import FileKeys
from medmesh.store.objects.envelope import PIECE, Wrapping

ORIGIN = Origin("brain", "MEDMESH", "CT1", "10.0.0.1")
CT = "1.2.840.10008.5.1.4.1.1.2"


@pytest.fixture
def wrapping(tmp_path: Path) -> Wrapping:
    return Wrapping(FileKeys(tmp_path / "keys").ensure("hospital"), "hospital")


@pytest.fixture
def receiver(tmp_path: Path, wrapping: Wrapping) -> Iterator[Receiver]:
    with Receiver(tmp_path / "archive", wrapping, reserve=0) as made:
        yield made


def rows(receiver: Receiver, columns: str = "state, stage, reason") -> list[tuple[object, ...]]:
    connection = open_archive(receiver.objects.folder.parent, read_only=True)
    try:
        return connection.execute(f"SELECT {columns} FROM objects ORDER BY id").fetchall()
    finally:
        connection.close()


def dataset(sop: str = "1.2.3", frames: int = 1) -> pydicom.Dataset:
    found = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    found.SOPInstanceUID = found.file_meta.MediaStorageSOPInstanceUID = sop
    if frames > 1:
        found.PixelData = found.PixelData * frames
    return found


def split(found: pydicom.Dataset) -> tuple[bytes, bytes]:
    """(the file, its data set)."""
    buffer = BytesIO()
    found.save_as(buffer, enforce_file_format=True)
    data = buffer.getvalue()
    return data, data[144 + int.from_bytes(data[140:144], "little") :]


def arrive(receiver: Receiver, data: bytes, sop: str = "1.2.3", syntax: str = ExplicitVRLittleEndian, origin: Origin = ORIGIN) -> Outcome:
    arrival = receiver.begin(origin, CT, sop, syntax)
    for start in range(0, len(data), 100_000):
        arrival.write(memoryview(data)[start : start + 100_000])
    return arrival.finish()


@pytest.mark.parametrize("frames", [1, 100])
def test_what_is_acknowledged_is_there_encrypted_and_whole(receiver: Receiver, tmp_path: Path, frames: int) -> None:
    found = dataset(frames=frames)
    data = split(found)[1]
    outcome = arrive(receiver, data)
    assert (outcome.status, outcome.known, outcome.study, outcome.series) == (0, False, found.StudyInstanceUID, found.SeriesInstanceUID)
    file = receiver.objects.read(outcome.sha256)
    assert hashlib.sha256(file).hexdigest() == outcome.sha256
    assert pydicom.dcmread(BytesIO(file)) == found
    assert rows(receiver, "state, bytes, sop, called, calling, address") == [("received", len(file), "1.2.3", "MEDMESH", "CT1", "10.0.0.1")]
    on_disk = b"".join(path.read_bytes() for path in (tmp_path / "archive").rglob("*") if path.is_file())
    assert str(found.PatientName).encode() not in on_disk
    assert (len(data) > PIECE) == (frames > 1)


def test_the_same_object_again_is_known_and_stored_once(receiver: Receiver) -> None:
    data = split(dataset(frames=40))[1]
    first, again = arrive(receiver, data), arrive(receiver, data)
    assert (again.known, again.id, again.sha256) == (True, first.id, first.sha256)
    other = arrive(receiver, data, origin=Origin("heart"))
    assert (other.known, other.sha256) == (False, first.sha256), "another project's is its own"
    names = [path for path in receiver.objects.folder.rglob("*") if path.is_file()]
    assert {path.name[:64] for path in names} == {first.sha256}


def test_a_file_is_kept_byte_by_byte(receiver: Receiver) -> None:
    file, data = split(dataset())
    for size in (1, 50, 10_000):
        arrival = receiver.begin_file(ORIGIN)
        for start in range(0, len(file), size):
            arrival.write(file[start : start + size])
        outcome = arrival.finish()
        assert outcome.sha256 == hashlib.sha256(file).hexdigest()
    sent = arrive(receiver, data)
    assert not sent.known
    assert rows(receiver, "count(DISTINCT digest), count(*)") == [(1, 2)], "one object in two files"


def test_many_at_once(receiver: Receiver) -> None:
    outcomes: list[Outcome] = []

    def many(number: int) -> None:
        for place in range(8):
            sop = f"1.2.{number}.{place}"
            outcomes.append(arrive(receiver, split(dataset(sop))[1], sop))

    threads = [threading.Thread(target=many, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {one.status for one in outcomes} == {0}
    assert len({one.id for one in outcomes}) == len(rows(receiver)) == 32


@pytest.mark.parametrize(
    ("change", "sop", "reason", "status"),
    [
        (lambda data: data[:-1000], "1.2.3", "truncated", 0xC000),
        (lambda data: b"", "1.2.3", "empty", 0xC000),
        (lambda data: b"\x08\x00\x05\x00zz" + data[6:], "1.2.3", "structure", 0xC000),
        (lambda data: data, "1.2.4", "other_object", 0xA900),
        (lambda data: data, "../../etc/passwd", "hostile_uid", 0xC000),
        (lambda data: data, "", "hostile_uid", 0xC000),
        (lambda data: data, "1." * 40 + "1", "hostile_uid", 0xC000),
        (lambda data: b"\x10\x00\x10\x00PN\x02\x00A ", "1.2.3", "no_uid", 0xC000),
    ],
)
def test_what_cannot_be_understood_is_refused_and_kept_in_quarantine(
    receiver: Receiver, change: object, sop: str, reason: str, status: int
) -> None:
    data = change(split(dataset())[1])  # type: ignore[operator]
    outcome = arrive(receiver, data, sop)
    assert (outcome.reason, outcome.status) == (reason, status)
    assert rows(receiver) == [("quarantined", "receive", reason)]
    assert receiver.objects.read(outcome.sha256).endswith(data)
    assert arrive(receiver, split(dataset("1.9"))[1], "1.9").status == 0


@pytest.mark.parametrize("file", [b"", b"x" * 200, b"\0" * 128 + b"DICM", b"\0" * 128 + b"DICM\2\0\0\0UL\4\0\xff\xff\xff\xff" + b"x" * 99])
def test_what_is_no_file_is_refused(receiver: Receiver, file: bytes) -> None:
    arrival = receiver.begin_file(ORIGIN)
    arrival.write(file)
    assert arrival.finish().status == 0xC000
    assert rows(receiver) == []


def test_a_full_disk_and_a_long_queue_say_come_again(tmp_path: Path, wrapping: Wrapping, receiver: Receiver) -> None:
    data = split(dataset())[1]
    with Receiver(tmp_path / "full", wrapping, reserve=1 << 60) as full:
        outcome = arrive(full, data)
        assert (outcome.reason, outcome.status, rows(full)) == ("full", 0xA700, [])
    with Receiver(tmp_path / "queue", wrapping, reserve=0, backlog=1) as long:
        for number in range(3):
            sop = f"1.2.{number}"
            assert arrive(long, split(dataset(sop))[1], sop).status == 0
            long._counted = 0.0
            if number == 1:
                assert arrive(long, data).status == 0xA700
                break


def test_a_disk_that_fills_up_meanwhile(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("medmesh.store.objects.incoming.os.fsync", full)
    for frames in (1, 100):
        assert arrive(receiver, split(dataset(frames=frames))[1]).status == 0xA700
    assert rows(receiver) == []
    assert [path for path in receiver.objects.folder.rglob(".*") if path.is_file()] == []


def test_of_objects_kept_together_each_has_its_own_end(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [split(dataset(f"1.2.{number}"))[0] for number in range(4)]
    origin = Origin("brain", record=Growing("1", {"detail": {}}))
    sealed = []
    for file in (*files, files[0], files[1][:-1000], b"nothing"):
        arrival = receiver.begin_file(origin)
        arrival.write(file)
        sealed.append(arrival.seal())
    assert rows(receiver) == [], "whatever is answered before, nothing is stored yet"
    assert all((receiver.objects.folder / one.outcome.sha256[:2]).exists() for one in sealed if one.outcome.sha256)
    real = os.fsync
    (broken,) = sealed[2].incoming._unsynced  # type: ignore[union-attr]
    number = broken.fileno()

    def fsync(file: int) -> None:
        if file == number:
            raise OSError(5, "Input/output error")
        real(file)

    monkeypatch.setattr("medmesh.store.objects.incoming.os.fsync", fsync)
    outcomes = receiver.keep(sealed)
    assert [one.reason for one in outcomes] == ["", "", "full", "", "", "truncated", "not_dicom"]
    assert [one.known for one in outcomes] == [False] * 4 + [True] + [False] * 2
    assert outcomes[4].id == outcomes[0].id
    assert rows(receiver, "sha256, reason") == [(outcomes[n].sha256, outcomes[n].reason) for n in (0, 1, 3, 5)]
    assert [receiver.objects.read(outcomes[at].sha256) for at in (0, 1, 3)] == [files[at] for at in (0, 1, 3)]
    connection = open_archive(receiver.objects.folder.parent, read_only=True)
    assert json.loads(connection.execute("SELECT body FROM records").fetchone()[0])["detail"] == {"stored": 3, "known": 1, "failed": 1}
    connection.close()
    assert broken.closed


def test_what_is_broken_off_leaves_nothing_and_kills_leave_what_is_swept(receiver: Receiver, wrapping: Wrapping, tmp_path: Path) -> None:
    data = split(dataset(frames=200))[1]
    arrival = receiver.begin(ORIGIN, CT, "1.2.3", ExplicitVRLittleEndian)
    arrival.write(data[: 3 * PIECE])
    assert len(list(receiver.objects.folder.rglob(".*"))) == 1
    arrival.abandon()
    assert list(receiver.objects.folder.rglob(".*")) == []
    kept = arrive(receiver, data)
    killed = receiver.begin(ORIGIN, CT, "1.2.3", ExplicitVRLittleEndian)
    killed.write(data[: 3 * PIECE])  # and never ends
    orphan = receiver.objects.incoming()
    orphan.write(b"killed before its row was committed")
    orphan.keep()
    connection = open_archive(tmp_path / "archive", read_only=True)
    assert receiver.objects.sweep(connection) == 0, "what is new may still be on its way"
    assert receiver.objects.sweep(connection, older=-1) == 2
    connection.close()
    killed.abandon()
    assert hashlib.sha256(receiver.objects.read(kept.sha256)).hexdigest() == kept.sha256


# The structure of data sets: pydicom is the oracle.


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_every_encoding_is_walked(syntax: str) -> None:
    found = dataset()
    found.file_meta.TransferSyntaxUID = syntax
    buffer = BytesIO()
    pydicom.dcmwrite(buffer, found, implicit_vr=syntax == ImplicitVRLittleEndian, little_endian=syntax != ExplicitVRBigEndian)
    data = buffer.getvalue()
    data = data[144 + int.from_bytes(data[140:144], "little") :]
    head = scan(data, len(data), syntax)
    assert (head.sop_class, head.sop, head.study, head.series) == (CT, "1.2.3", found.StudyInstanceUID, found.SeriesInstanceUID)
    assert not scan(data[:2000], len(data), syntax).whole
    with pytest.raises(Malformed):
        scan(data, len(data) - 5000, syntax)


def test_pydicoms_files_are_walked_as_pydicom_reads_them() -> None:
    seen = 0
    for path in Path(get_testdata_file("CT_small.dcm")).parent.glob("*.dcm"):
        data = path.read_bytes()
        if data[128:140] != b"DICM\2\0\0\0UL\4\0":
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = pydicom.dcmread(path, stop_before_pixels=True, force=True)
        syntax = found.file_meta.get("TransferSyntaxUID", ExplicitVRLittleEndian)
        data = data[144 + int.from_bytes(data[140:144], "little") :]
        if "truncated" in path.name:
            with pytest.raises(Malformed):
                scan(data, len(data), syntax)
            continue
        head = scan(data[: 1 << 20], len(data), syntax)
        seen += 1
        if head.whole and syntax != DeflatedExplicitVRLittleEndian:
            assert (head.sop, head.study) == (found.get("SOPInstanceUID", ""), found.get("StudyInstanceUID", "")), path
    assert seen > 60


def test_sequences_however_deep_end() -> None:
    deep = struct.pack("<HHLHHL", 8, 0x1140, 0xFFFFFFFF, 0xFFFE, 0xE000, 0xFFFFFFFF) * 100_000
    with pytest.raises(Malformed, match="depth"):
        scan(deep, len(deep), ImplicitVRLittleEndian)
