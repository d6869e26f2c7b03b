"""Another oracle than the verifier: identities planted in every kind of value, nesting and character set, and searched for as bytes.

What may stay because the standard says so (a shape, a number, a code) carries no canary; everything that can hold text does.
"""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator
from hashlib import sha256
from io import BytesIO
from pathlib import Path

import pytest
from pydicom import uid
from pydicom.datadict import DicomDictionary, dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence

from medmesh.errors import Problem
from medmesh.imaging.deidentify import Options, deidentify, gate
from medmesh.imaging.deidentify.tables import rules
from medmesh.imaging.reading import parse, write
from medmesh.imaging.verify import verify

KEY = b"the project's key, 32 bytes long"
EVERYTHING = "dates=shift patient private descriptors structured graphics"
CHARSETS = {"ISO_IR 192": ("utf-8", "Kanari=金丝雀"), "GB18030": ("gb18030", "Kanari=金丝雀"), "GBK": ("gbk", "Kanari=金丝雀"),
            "ISO_IR 100": ("latin-1", "Känari"), "ISO_IR 144": ("iso8859_5", "Канарейка")}  # fmt: skip
_NONE = {0x00080005, 0x00080016, 0x00080018, *rules(Options()).keep_bytes}
_TEXT = ("LO", "SH", "ST", "LT", "UT", "UC", "PN", "UR", "AE")
_BYTES = ("OB", "OW", "UN", "OF", "OD", "OL")


def canary(number: int, name: str, kind: str) -> str:
    """A name that stands nowhere else, with the attribute's number in it."""
    text = f"{name.split('=')[-1]}{number:05d}"
    if kind in ("AE", "UR"):
        return f"KANARI{number:05d}"
    return f"Kanari{number:05d}^X={text}" if kind == "PN" and "=" in name else text


def stuffed(charset: str, syntax: str, options: Options) -> tuple[Dataset, list[bytes]]:
    """An object with a canary in every attribute that DICOM defines and that can hold text or bytes, at the top, two deep in sequences
    and in private elements; and each canary as bytes. Text that may stay (the maker's name, codes) holds the patient's name instead; bytes
    that may stay (colour tables, waveforms) hold none. Read back from its file."""
    encoding, name = CHARSETS[charset]
    stays = rules(options).keep_text | rules(options).kept_text | ({0x0040A160} if options.descriptors else set())  # a report's free text
    patient = sorted(DicomDictionary).index(0x00100010)
    dataset, planted = Dataset(), []
    dataset.SpecificCharacterSet = charset
    inner, outer = Dataset(), Dataset()
    for number, tag in enumerate(sorted(DicomDictionary)):
        kind = dictionary_VR(tag)
        if tag >> 16 < 8 or tag >> 16 == 0x7FE0 or tag in _NONE or tag >> 16 in (0xFFFA, 0xFFFC, 0xFFFE):
            continue
        if kind in _TEXT:
            text = canary(patient if tag in stays else number, name, "LO" if tag in stays else kind)
            value: object = text
            planted += [part.encode(encoding, "replace") for part in text.split("=") if len(part) > 5]
        elif kind in _BYTES:
            value = f"KANARI{number:05d}x".encode()
            planted.append(value)
        else:
            continue
        for place in (dataset, inner):
            place[tag] = DataElement(tag, kind, value)
    private = inner.private_block(0x0071, "Kanari creator", create=True)
    private.add_new(0x01, "LO", "Kanari private")
    private.add_new(0x02, "DT", "20240229101112")
    private.add_new(0x03, "UN", b"KANARI unknown kind.")
    planted += [b"Kanari private", b"KANARI unknown", b"Kanari creator", b"20240229101112"]
    outer.RequestAttributesSequence = Sequence([inner])
    outer.ContentSequence = Sequence([inner])
    dataset.ReferencedImageSequence = dataset.AcquisitionContextSequence = dataset.ProcedureCodeSequence = Sequence([outer])
    dataset.ContentSequence = dataset.GraphicAnnotationSequence = dataset.SegmentSequence = Sequence([outer])
    dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.Modality = uid.MRImageStorage, "1.2.3.4444.3", "MR"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = uid.UID(syntax)
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    data = buffer.getvalue()
    if not dataset.file_meta.TransferSyntaxUID.is_deflated:
        assert sum(one in data for one in planted) > 0.99 * len(planted) > 700  # they are there to be found
    return parse(data), planted


@pytest.mark.parametrize(
    ("charset", "syntax", "options"),
    [
        ("ISO_IR 192", uid.ExplicitVRLittleEndian, ""),
        ("GB18030", uid.ImplicitVRLittleEndian, EVERYTHING),
        ("GBK", uid.DeflatedExplicitVRLittleEndian, ""),
        ("ISO_IR 100", uid.ExplicitVRBigEndian, EVERYTHING),
        ("ISO_IR 144", uid.ExplicitVRLittleEndian, EVERYTHING),
    ],
)
def test_no_canary_of_any_kind_in_any_place_and_character_set_survives(charset: str, syntax: str, options: str) -> None:
    original, planted = stuffed(charset, syntax, Options.parse(options))
    result = write(deidentify(original, KEY, Options.parse(options), rules=gate.OPEN).dataset)
    kept = {one for one in planted if one in result}
    assert {one.decode("latin-1") for one in kept} == set()
    assert b"kanari" not in result.lower()
    assert verify(original, result) == []
    again = parse(result)
    assert again.PatientIdentityRemoved == "YES" and len(again.DeidentificationMethodCodeSequence) == len(Options.parse(options).codes)


def uids(dataset: Dataset) -> Iterator[tuple[str, str]]:
    for element in dataset:
        if element.VR == "SQ":
            for item in element.value:
                yield from uids(item)
        elif element.VR == "UI" and element.value:
            for one in [element.value] if isinstance(element.value, str) else element.value:
                yield element.keyword, str(one)


def test_over_a_whole_set_references_lead_where_they_led(parsed: dict[str, Dataset]) -> None:
    """Objects, series, studies and frames of reference of pydicom's files: one new UID for each old one, in whatever file it is named."""
    names = ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "FrameOfReferenceUID")
    mapped: dict[str, str] = {}
    led: list[tuple[set[str], set[str]]] = []
    for dataset in parsed.values():
        result = deidentify(dataset, KEY, rules=gate.OPEN).dataset
        for name in names:
            if dataset.get(name) and result.get(name):
                assert mapped.setdefault(str(dataset[name].value), str(result[name].value)) == str(result[name].value)
        pointers = {one for keyword, one in uids(dataset) if keyword == "ReferencedSOPInstanceUID"}
        led.append((pointers, {one for keyword, one in uids(result) if keyword == "ReferencedSOPInstanceUID"}))
        assert all(one in uid.UID_dictionary or (one.startswith("2.25.") and len(one) <= 44) for _, one in uids(result))
    assert len(set(mapped.values())) == len(mapped) > 150
    inside = [(mapped[one], after) for pointers, after in led for one in pointers if one in mapped and after]
    assert len(inside) > 5 and all(new in after for new, after in inside)


def test_another_process_makes_the_same_of_it(parsed: dict[str, Dataset]) -> None:
    names = sorted(parsed)[::25]
    code = (
        "import hashlib, sys\nfrom pathlib import Path\nfrom medmesh.imaging.deidentify import Options, deidentify, gate\n"
        "from medmesh.imaging.reading import parse, write\n"
        "for name in sys.argv[2:]:\n"
        "    result = deidentify(parse((Path(sys.argv[1]) / name).read_bytes()), b\"the project's key, 32 bytes long\", "
        "Options.parse('dates=shift'), rules=gate.OPEN)\n"
        "    print(hashlib.sha256(write(result.dataset)).hexdigest())\n"
    )  # fmt: skip
    from tests.unit.imaging.conftest import FOLDER

    printed = subprocess.run(
        [sys.executable, "-c", code, str(FOLDER), *names], capture_output=True, text=True, check=True, timeout=100
    ).stdout
    here = [
        sha256(write(deidentify(parsed[name], KEY, Options.parse("dates=shift"), rules=gate.OPEN).dataset)).hexdigest() for name in names
    ]
    assert printed.split() == here and len(here) > 4


def test_what_cannot_be_decoded_is_refused_and_never_half_done() -> None:
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.Modality = uid.CTImageStorage, "1.2.3.4", "CT"
    dataset.RecommendedDisplayFrameRateInFloat = 1.5
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    data = write(dataset).replace(b"FL\x04\x00", b"FL\x06\x00\0\0")
    with pytest.raises(Problem) as refused:
        deidentify(parse(data, lazily=True), KEY)
    assert refused.value.code == "imaging.unreadable"


def test_files_with_broken_bytes_are_cleaned_or_refused_and_raise_nothing_else(folder: Path) -> None:
    """120 mutants of pydicom's small files: bytes flipped, some cut; half of them masked."""
    files = [path.read_bytes() for path in sorted(folder.rglob("*.dcm")) if path.stat().st_size < 20_000]
    mask = gate.read('[[rules]]\nname = "m"\npixels = true\nthen = "mask"\nblank = [[0, 0, 5, 5]]')
    made, chance = 0, random.Random(7)
    for number in range(120):
        data = bytearray(chance.choice(files))
        for _ in range(chance.choice((1, 2, 8, 40))):
            data[chance.randrange(min(len(data), 3000))] = chance.randrange(256)
        cut = bytes(data[: chance.randrange(len(data))] if number % 10 == 0 else data)
        try:
            original = parse(cut, lazily=True)
            result = write(deidentify(original, KEY, Options.parse(EVERYTHING), rules=(*(mask if number % 2 else ()), *gate.OPEN)).dataset)
            verify(original, result)
        except Problem:
            continue
        parse(result)
        made += 1
    assert 20 < made < 110
