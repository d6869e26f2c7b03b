"""The verifier beside data that still holds what it looks for, in every disguise that was thought of; and how seldom it cries wolf."""

from __future__ import annotations

from io import BytesIO

import pytest
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence

from medmesh.imaging import chinese
from medmesh.imaging.deidentify import Options, deidentify, gate
from medmesh.imaging.reading import parse, write
from medmesh.imaging.verify import verify

KEY = b"the project's key, 32 bytes long"


def made(**values: object) -> Dataset:
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.SpecificCharacterSet = uid.SecondaryCaptureImageStorage, "1.2.3.4", "ISO_IR 192"
    for name, value in values.items():
        setattr(dataset, name, value)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    return dataset


def residue(original: dict[str, object], result: dict[str, object], *, kept: tuple[str, ...] = ("uids",)) -> list[str]:
    return verify(parse(write(made(**original))), write(made(**result)), kept=kept)


@pytest.mark.parametrize(
    "text",
    [
        "王丽", "患者王丽胸部", "王 丽", "王·丽", "王^丽",  # as it is, apart, as DICOM writes it
        "Wang Li", "WANG LI", "wangli", "Wang, Li", "Li Wang", "LI^WANG", "liwang",  # pinyin, both orders
        "Wáng Lì", "wang2 li4", "Wang2Li4", "ＷＡＮＧ ＬＩ",  # tones as marks and numbers, full width
    ],
)  # fmt: skip
def test_a_chinese_name_of_two_characters_is_found(text: str) -> None:
    assert residue({"PatientName": "=王^丽"}, {"ImageComments": text}) == ["PatientName"]


@pytest.mark.parametrize(
    ("name", "text"),
    [("=单^田芳", "Shan Tianfang"), ("=单^田芳", "dan tian fang"), ("=吕^布", "Lyu Bu"), ("=吕^布", "LV BU"),
     ("=欧阳^修远", "xiuyuan ouyang"),
     ("=欧阳修远", "Ouyang Xiu Yuan"), ("=乐^嘉", "Yue Jia")],
)  # fmt: skip
def test_every_reading_of_a_character_is_looked_for(name: str, text: str) -> None:
    assert residue({"PatientName": name}, {"ImageComments": text}) == ["PatientName"]


@pytest.mark.parametrize("text", ["Wangling line", "salient", "body wang", "liver", "左上肺", "ALIGNED", "丽王", "Liwangsheng"])
def test_words_that_only_resemble_the_name_are_none(text: str) -> None:
    assert residue({"PatientName": "=王^丽"}, {"ImageComments": text}) == []


def test_a_name_in_a_false_character_set_is_found_in_any(planted: tuple[Dataset, dict[str, str]]) -> None:
    """GBK inside ISO_IR 100, as many Chinese devices write it."""
    source = made(PatientID="P1")
    source.SpecificCharacterSet = "ISO_IR 100"
    buffer = BytesIO()
    source.add_new(0x00100010, "UN", "王丽 ".encode("gb18030"))
    source.save_as(buffer, enforce_file_format=True)
    original = parse(buffer.getvalue().replace(b"\x10\x00\x10\x00UN\0\0\x06\0\0\0", b"\x10\x00\x10\x00PN\x06\0") + b"")
    assert "王" not in str(original.PatientName)
    for encoding in ("gb18030", "utf-8", "utf-16-le"):
        result = made()
        result.add_new(0x00091010, "OB", b"..".join([b"", "王丽".encode(encoding), b""]))
        assert verify(original, write(result), kept=("uids",)) == ["PatientName"], encoding
    result = made()
    result.ImageComments = "wang li"
    assert verify(original, write(result), kept=("uids",)) == ["PatientName"]


def test_personal_numbers_are_hits_though_the_source_held_none() -> None:
    for text, kind in (
        ("id 11010519491231002X.", "identity card"),
        ("tel +86 138 0013 8000", "mobile telephone"),
        ("13800138000", "mobile telephone"),
    ):
        assert residue({}, {"ImageComments": text}) == [kind]
        item = made(ImageComments=text)
        assert verify(made(), write(made(ReferencedImageSequence=Sequence([item]))), kept=("uids",)) == [kind]
    for text in ("110105194912310021", "1380013800", "2.25.138001380001105194912310021234", "0.13800138000"):
        assert residue({}, {"ImageComments": text}) == [], text


def test_the_check_character_of_identity_numbers() -> None:
    assert chinese.identity_card("11010519491231002X")  # the example of GB 11643
    assert not chinese.identity_card("110105194912310021")


@pytest.mark.parametrize("text", ["1953-09-17", "born 17.09.1953", "1953年9月17日", "1953/09/17", "19530917"])
def test_a_date_is_found_as_people_write_it(text: str) -> None:
    assert residue({"PatientBirthDate": "19530917"}, {"ImageComments": text}) == ["PatientBirthDate"]


def test_a_document_is_a_hit_whatever_it_holds() -> None:
    assert residue({}, {"EncapsulatedDocument": b"%PDF-1.7 compressed"}) == ["EncapsulatedDocument"]
    assert residue({}, {"EncapsulatedDocument": b"\0\0"}) == []


def test_what_an_option_keeps_is_excused_and_no_more() -> None:
    values: dict[str, object] = {
        "StudyDate": "20240229", "PatientBirthDate": "19530917", "InstitutionName": "Union Hospital", "StationName": "SCANNER-7",
        "StudyInstanceUID": "1.2.3.4444", "PatientID": "P-7781-22",
    }  # fmt: skip
    assert residue(values, values, kept=()) == sorted([*values, "SOPInstanceUID"])
    assert residue(values, values, kept=("dates", "uids", "institution", "device")) == ["PatientBirthDate", "PatientID"]
    assert residue(values, values, kept=("device", "uids", "dates")) == ["InstitutionName", "PatientBirthDate", "PatientID"]


def test_what_options_keep_passes_for_every_real_file(parsed: dict[str, Dataset]) -> None:
    options = Options.parse("dates=keep uids device institution patient private descriptors structured graphics")
    alarms = {
        name: verify(dataset, write(deidentify(dataset, KEY, options, rules=gate.OPEN).dataset), kept=options.kept)
        for name, dataset in parsed.items()
    }
    assert {name: found for name, found in alarms.items() if found} == {}
