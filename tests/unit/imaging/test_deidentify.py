"""De-identification against real files and planted canaries. The verifier is first shown to find what is there."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from io import BytesIO
from itertools import pairwise

import pytest
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence

from medmesh.errors import Problem
from medmesh.imaging.deidentify import Options, deidentify, gate
from medmesh.imaging.deidentify.tables import Action, rules
from medmesh.imaging.reading import parse, pixels, read, write
from medmesh.imaging.verify import verify

KEY = b"the project's key, 32 bytes long"
Planted = tuple[Dataset, dict[str, str]]


def elements(dataset: Dataset) -> Iterator[object]:
    for element in dataset:
        yield element
        if element.VR == "SQ":
            for item in element.value:
                yield from elements(item)


def forms(canary: str) -> list[bytes]:
    parts = {canary, *canary.replace("=", "^").split("^")}
    return [
        part.encode(encoding, "ignore") for part in parts if len(part) > 1 for encoding in ("utf-8", "gb18030", "utf-16-le", "utf-16-be")
    ]


def test_the_verifier_finds_every_planted_identity_in_an_untouched_file(planted: Planted) -> None:
    dataset, canaries = planted
    assert set(canaries) <= set(verify(dataset, write(dataset)))


@pytest.mark.parametrize("encoding", ["utf-8", "gb18030", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("tag", [0x7FE00010, 0x00091010])
def test_the_verifier_finds_one_name_hidden_in_bytes(planted: Planted, encoding: str, tag: int) -> None:
    dataset, _ = planted
    result = deidentify(dataset, KEY).dataset
    hidden = "canaryNAME^zoe".encode(encoding)
    old = result.PixelData if tag == 0x7FE00010 else b"\0" * 64
    result.add_new(tag, "OB", old[:10] + hidden + old[10 + len(hidden) :])
    assert verify(dataset, write(result)) == ["PatientName"]


def test_the_verifier_finds_a_two_letter_chinese_name_in_another_character_set() -> None:
    original = Dataset()
    original.PatientName = "Wang^Li=王^丽"
    result = Dataset()
    result.SOPClassUID, result.SOPInstanceUID = uid.SecondaryCaptureImageStorage, "1.2.3.4"
    result.SpecificCharacterSet, result.ImageComments = "GB18030", "患者王丽"
    result.file_meta = FileMetaDataset()
    result.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    assert verify(original, write(result)) == ["PatientName"]


def test_the_verifier_looks_into_a_deflated_file(planted: Planted) -> None:
    dataset, _ = planted
    result = deidentify(dataset, KEY).dataset
    result.ImageComments = "CANARYACC42"
    result.file_meta.TransferSyntaxUID = uid.DeflatedExplicitVRLittleEndian
    buffer = BytesIO()
    result.save_as(buffer, enforce_file_format=True)
    assert b"CANARYACC42" not in buffer.getvalue()
    assert verify(dataset, buffer.getvalue()) == ["AccessionNumber"]


def test_short_numbers_are_found_in_text_and_not_by_chance_in_numbers(planted: Planted) -> None:
    dataset, _ = planted
    dataset.StudyID = "2000"
    result = deidentify(dataset, KEY).dataset
    result.RepetitionTime = "2000"
    assert verify(dataset, write(result)) == []
    result.ImageComments = "study 2000"
    assert verify(dataset, write(result)) == ["StudyID"]


@pytest.mark.parametrize("dates", ["remove", "shift"])
def test_no_canary_survives(planted: Planted, dates: str) -> None:
    dataset, canaries = planted
    output = write(deidentify(dataset, KEY, Options(dates=dates)).dataset)  # type: ignore[arg-type]
    assert verify(dataset, output) == []
    for canary in canaries.values():
        for form in forms(canary):
            assert form not in output
    assert b"CANARY" not in output.upper().replace(b"REMOVED", b"")
    assert read(output).PixelData == dataset.PixelData


@pytest.mark.parametrize("dates", ["remove", "shift"])
def test_no_identity_survives_in_any_real_file(parsed: dict[str, Dataset], dates: str) -> None:
    found_before = 0
    for name, dataset in parsed.items():
        result = deidentify(dataset, KEY, Options(dates=dates), rules=gate.OPEN)  # type: ignore[arg-type]
        output = write(result.dataset)
        assert verify(dataset, output) == [], name
        found_before += bool(verify(dataset, write(dataset)))
        again = parse(output)
        assert again.PatientIdentityRemoved == "YES"
        assert [item.CodeValue for item in again.DeidentificationMethodCodeSequence] == ["113100", "113107"][: 1 + (dates == "shift")]
        assert again.PatientID == result.patient and again.SOPInstanceUID == result.sop_uid == again.file_meta.MediaStorageSOPInstanceUID
        assert not any(element.tag.is_private or element.tag.group >> 8 in (0x50, 0x60) for element in elements(again)), name  # type: ignore[attr-defined]
        assert again.get("PixelData") == dataset.get("PixelData"), name
        assert result.actions > 0
    assert found_before > 0.95 * len(parsed)


def test_the_images_stay_the_same(parsed: dict[str, Dataset]) -> None:
    seen = 0
    for dataset in parsed.values():
        try:
            before = pixels(dataset)
        except Problem:
            continue
        assert (pixels(read(write(deidentify(dataset, KEY, rules=gate.OPEN).dataset))) == before).all()
        seen += 1
    assert seen > 30


def test_the_original_is_left_alone(planted: Planted) -> None:
    dataset, _ = planted
    before = write(dataset)
    deidentify(dataset, KEY)
    assert write(dataset) == before


def test_one_patient_stays_one_patient_within_a_project_only(parsed: dict[str, Dataset], planted: Planted) -> None:
    dataset, _ = planted
    first, again, elsewhere = deidentify(dataset, KEY), deidentify(dataset, KEY), deidentify(dataset, b"another project's key, 32 bytes!")
    assert write(first.dataset) == write(again.dataset)
    assert first.patient != elsewhere.patient and first.sop_uid != elsewhere.sop_uid
    patients: dict[str, set[str]] = {}
    for other in parsed.values():
        patients.setdefault(str(other.get("PatientID") or "").strip(), set()).add(deidentify(other, KEY, rules=gate.OPEN).patient)
    del patients[""]
    assert all(len(pseudonyms) == 1 for pseudonyms in patients.values())
    assert len({next(iter(pseudonyms)) for pseudonyms in patients.values()}) == len(patients) > 10


def test_patients_without_an_id_are_not_thrown_together(planted: Planted) -> None:
    dataset, _ = planted
    dataset.PatientID = ""
    first = deidentify(dataset, KEY).patient
    dataset.StudyInstanceUID = "1.2.3.4444.99"
    assert deidentify(dataset, KEY).patient != first


def test_references_still_lead_to_their_object(planted: Planted) -> None:
    result = deidentify(planted[0], KEY)
    item = result.dataset.ReferencedImageSequence[0]
    assert item.ReferencedSOPInstanceUID == result.sop_uid
    assert result.sop_uid.startswith("2.25.") and len(result.sop_uid) <= 64 and uid.UID(result.sop_uid).is_valid
    assert item.ReferencedSOPClassUID == uid.MRImageStorage


def test_shifted_dates_keep_their_distance_and_lose_their_place(planted: Planted) -> None:
    dataset, _ = planted
    dataset.SeriesDate, dataset.AcquisitionDate, dataset.ContentDate = "20240301", "2024.03.05", "not a date"
    result = deidentify(dataset, KEY, Options(dates="shift")).dataset
    moved = [date.fromisoformat(result[name].value) for name in ("StudyDate", "SeriesDate", "AcquisitionDate")]
    assert [(late - early).days for early, late in pairwise(moved)] == [1, 4]
    assert 365 <= (date(2024, 2, 29) - moved[0]).days < 365 + 3287
    assert result.AcquisitionDateTime.endswith("101112.5")
    assert not result.PatientBirthDate and not result.ContentDate


def test_what_a_model_needs_stays_and_characteristics_go(planted: Planted) -> None:
    result = deidentify(planted[0], KEY).dataset
    assert (result.Modality, result.SequenceName, result.Rows, result.Columns) == ("MR", "se2d1", 36, 40)
    assert "PatientAge" not in result and "SoftwareVersions" not in result and not result.StudyDate


def test_text_where_a_number_or_a_term_should_be_is_removed(planted: Planted) -> None:
    dataset, _ = planted
    data = write(dataset).replace(b"IS\x02\x001 ", b"IS\x02\x00Al")  # SeriesNumber and InstanceNumber
    broken = parse(data)
    broken.add_new(0x00080060, "CS", "Dr. Zoe")
    result = deidentify(broken, KEY).dataset
    assert not {"SeriesNumber", "InstanceNumber", "Modality"} & set(result.dir())


def test_an_attribute_under_a_false_kind_is_removed(planted: Planted) -> None:
    dataset, _ = planted
    dataset.add_new(0x00280030, "LO", "Zoe")  # PixelSpacing is DS
    dataset.add_new(0x00280106, "OB", b"Zoe!")  # SmallestImagePixelValue is US or SS
    dataset.add_new(0x00200052, "CS", "ZOE")  # FrameOfReferenceUID is UI
    assert b"ZOE" not in write(deidentify(dataset, KEY).dataset).upper()


def test_a_short_key_is_refused(planted: Planted) -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        deidentify(planted[0], b"short")


def test_a_sequence_that_must_be_a_dummy_keeps_no_text(planted: Planted) -> None:
    dataset, _ = planted
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "77", "99STAFF", "Senior radiographer"
    dataset.VerifyingObserverSequence = Sequence([Dataset()])
    dataset.VerifyingObserverSequence[0].PersonIdentificationCodeSequence = Sequence([code])
    item = deidentify(dataset, KEY).dataset.VerifyingObserverSequence[0].PersonIdentificationCodeSequence[0]
    assert {item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning} == {"REMOVED"}


@pytest.mark.parametrize(
    ("tag", "action"),
    [
        (0x00100010, Action.EMPTY),
        (0x00100030, Action.EMPTY),
        (0x00080090, Action.EMPTY),
        (0x00081030, Action.REMOVE),
        (0x0008103E, Action.REMOVE),
        (0x00101010, Action.REMOVE),
        (0x00181030, Action.DUMMY),
        (0x00181000, Action.DUMMY),
        (0x00080018, Action.UID),
        (0x00081140, Action.UID),
    ],
)
def test_the_table_says_what_the_standard_says(tag: int, action: Action) -> None:
    assert rules(Options()).actions[tag] == action
