"""DICOM JSON against two oracles that read the same files: pydicom, and DCMTK's dcm2json where it is installed."""

from __future__ import annotations

import io
import json
import random
import shutil
import subprocess
import warnings
from typing import Any

import pydicom
import pytest
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian
from tests.unit.archive.objects import FILES, made

from medmesh.archive import dicomjson
from medmesh.errors import Problem

CORPUS = sorted(path for path in FILES.rglob("*") if path.is_file())
NO_OBJECTS = {
    "README.txt",
    "README",
    "crayons.icc",
    "rtplan.dump",
    "rtstruct.dump",
    "test1.json",
    "test_PN.json",
    "zipMR.gz",
    "no_meta.dcm",
}
DAMAGED = {"rtplan_truncated.dcm", "DICOMDIR-nooffset"}
"""One ends within its header; in the other an item is longer than its sequence."""


def read(data: bytes) -> dict[str, Any]:
    members = dicomjson.read(io.BytesIO(data)).members
    assert list(members) == sorted(members)  # PS3.18 F.2.2
    found: dict[str, Any] = json.loads("{" + ",".join(members.values()) + "}", strict=False)
    return found


def alike(value: Any) -> Any:
    """Numbers to six places however they are spelt; what was left out, and what is empty, is not there."""
    if isinstance(value, dict):
        inside = {key: alike(inner) for key, inner in value.items() if key not in ("BulkDataURI", "InlineBinary", "00080005")}
        return {key: inner for key, inner in inside.items() if inner not in ("", [], {}, [{}])}
    if isinstance(value, list):
        return [alike(inner) for inner in value]
    try:
        return float(f"{float(value):.6g}")
    except (TypeError, ValueError):
        return (value or "").strip(" ^")


def differences(mine: dict[str, Any], theirs: dict[str, Any], *, private: bool) -> list[str]:
    tags = {tag for tag in mine.keys() | theirs.keys() if "00080005" != tag < "7FE00008" and tag[4:] != "0000"}
    return [
        f"{tag}: {mine.get(tag)} {theirs.get(tag)}"
        for tag in sorted(tags)
        if (private or int(tag[3], 16) % 2 == 0) and alike(mine.get(tag)) != alike(theirs.get(tag))
    ]


def test_the_corpus_is_read_as_pydicom_reads_it() -> None:
    wrong, compared = [], 0
    for path in CORPUS:
        data = path.read_bytes()
        if path.name in NO_OBJECTS | DAMAGED:
            with pytest.raises(Problem):
                dicomjson.read(io.BytesIO(data))
            continue
        mine = read(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True, force=True)
            theirs = json.loads(json.dumps(found.to_json_dict(suppress_invalid_tags=True)))
        # What pydicom cannot turn into JSON it leaves out.
        left_out = [tag for tag in mine if tag not in theirs and tag in ("00280008", "300C0002")]
        wrong += [f"{path.name} {one}" for one in differences({t: e for t, e in mine.items() if t not in left_out}, theirs, private=True)]
        compared += 1
    assert wrong == []
    assert compared > 150


@pytest.mark.skipif(shutil.which("dcm2json") is None, reason="DCMTK is not installed")
def test_the_corpus_is_read_as_dcmtk_reads_it() -> None:
    wrong, compared = [], 0
    for path in CORPUS[::3]:
        found = subprocess.run(["dcm2json", "-q", "-fc", "-ee", str(path)], capture_output=True, check=False)
        if found.returncode or path.name in NO_OBJECTS | DAMAGED:
            continue  # it refuses compressed pixels
        wrong += [f"{path.name} {one}" for one in differences(read(path.read_bytes()), json.loads(found.stdout), private=False)]
        compared += 1
    assert wrong == []
    assert compared > 20


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian])
def test_a_header_says_the_same_in_every_encoding(syntax: str) -> None:
    plain = dicomjson.read(io.BytesIO(made()))
    other = dicomjson.read(io.BytesIO(made(syntax)))
    assert other.syntax == syntax
    assert {t: m for t, m in other.members.items() if t < 0x7FE00000} == {t: m for t, m in plain.members.items() if t < 0x7FE00000}
    assert other.pixel_bytes == 4


class Counting(io.BytesIO):
    taken = 0

    def read(self, size: int | None = -1, /) -> bytes:
        part = super().read(size)
        self.taken += len(part)
        return part


def test_pixels_are_not_read_and_large_values_are_told_by_their_place() -> None:
    table = bytes(range(256)) * 8
    data = made(PixelData=bytes(8 << 20), ICCProfile=table)
    source = Counting(data)
    found = dicomjson.read(source)
    assert source.taken <= 2 * dicomjson.READ
    assert data[found.pixels :] == bytes(8 << 20)
    place, _, length = (
        json.loads("{" + found.members[0x00282000] + "}", strict=False)["00282000"]["BulkDataURI"]
        .removeprefix(dicomjson.MARK)
        .partition("+")
    )
    assert data[int(place) : int(place) + int(length)] == table
    assert found.members[0x7FE00010] == f'"7FE00010":{{"vr":"OB","BulkDataURI":"{dicomjson.MARK}7FE00010"}}'


@pytest.mark.parametrize(
    ("declared", "encoded"),
    [
        ("GB18030", "王^小东".encode("gb18030")),
        ("GBK", "王^小东".encode("gbk")),
        ("ISO_IR 192", "王^小东".encode()),
        ("", "王^小东".encode("gbk")),  # as makers send it, who declare nothing
        ("", "王^小东".encode()),
        ("\\ISO 2022 IR 58", b"\x1b$)A\xcd\xf5^\x1b$)A\xd0\xa1\xb6\xab"),
    ],
)
def test_chinese_names_in_their_character_sets(declared: str, encoded: bytes) -> None:
    padded = encoded + b" " * (len(encoded) % 2)
    data = made(PatientName="X" * len(padded)).replace(b"X" * len(padded), padded)
    charset = declared.encode() + b" " * (len(declared) % 2)
    data = data.replace(b"\x08\x00\x05\x00CS\x0a\x00ISO_IR 192", b"\x08\x00\x05\x00CS" + len(charset).to_bytes(2, "little") + charset)
    found = dicomjson.read(io.BytesIO(data), frozenset((0x00100010,)))
    assert found.values[0x00100010] == "王^小东"
    assert '{"Alphabetic":"王^小东"}' in found.members[0x00100010]


def test_a_double_byte_letter_that_ends_like_a_backslash_is_one_letter() -> None:
    letter = b"\x81\x5c"  # 乗 is "乗", whose second byte is a backslash
    data = made(StudyDescription="X" * 4).replace(b"XXXX", letter * 2).replace(b"ISO_IR 192", b"GB18030   ")
    found = read(data)
    assert found["00081030"]["Value"] == [(letter * 2).decode("gb18030")]


def test_json_is_unharmed_by_what_is_in_a_value() -> None:
    hostile = 'a"b\\\\c\x01\x02</script>\ud7ff'
    found = read(made(StudyDescription=hostile.replace("\\", ""), PatientComments='x"\n\t\x01'))
    assert found["00081030"]["Value"] == ['a"bc\x01\x02</script>\ud7ff']
    text = "".join(dicomjson.read(io.BytesIO(made(StudyDescription="a\x01b\nc"))).members.values())
    assert dicomjson.MARK not in text.replace('"BulkDataURI":"' + dicomjson.MARK, "")
    assert "\n" not in text


def test_damaged_objects_are_problems_and_nothing_else() -> None:
    """1,000 of them, each read to its end or refused."""
    random.seed(20)
    refused = 0
    seeds = [
        (FILES / name).read_bytes()[:6000] for name in ("CT_small.dcm", "rtplan.dcm", "image_dfl.dcm", "ExplVR_BigEnd.dcm", "test-SR.dcm")
    ]
    for number in range(1000):
        data = bytearray(seeds[number % len(seeds)])
        for _ in range(random.choice((1, 3, 20))):
            data[random.randrange(len(data))] = random.choice((0, 0xFF, 0x5C, random.randrange(256)))
        try:
            read(bytes(data[: random.choice((len(data), random.randrange(132, len(data))))]))
        except Problem:
            refused += 1
    assert 50 < refused < 950


def test_nesting_and_claimed_lengths_are_bounded() -> None:
    start = made(PixelData=None)
    deep = start + b"\x08\x70\x01\x00SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff" * 100
    huge = start + b"\x09\x70\x01\x10OB\0\0\xf0\xff\xff\xff" + b"x" * 100
    for data in (deep, huge):
        with pytest.raises(Problem) as caught:
            dicomjson.read(io.BytesIO(data))
        assert caught.value.code == "imaging.unreadable"
