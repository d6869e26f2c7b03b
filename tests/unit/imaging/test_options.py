"""What each option of PS3.15 Annex E.3 keeps, cleans and declares; the tables beside another library's copy of the standard."""

from __future__ import annotations

import importlib
from io import BytesIO

import pytest
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.sr.codedict import codes

from medmesh.errors import Problem
from medmesh.imaging.deidentify import Options, deidentify
from medmesh.imaging.deidentify.options import MEANINGS
from medmesh.imaging.deidentify.tables import Action, rules
from medmesh.imaging.reading import parse, write
from medmesh.imaging.verify import verify

KEY = b"the project's key, 32 bytes long"
LETTERS = {"X": "X", "Z": "Z", "D": "D", "U": "U", "Z_D": "D", "X_Z": "Z", "X_D": "D", "X_Z_D": "D", "X_Z_U_STAR": "U"}


def code(value: str, scheme: str, meaning: str) -> Sequence:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return Sequence([item])


def example(**values: object) -> Dataset:
    """A small object of one patient, read back from bytes as a file would be."""
    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.SOPClassUID, dataset.SOPInstanceUID = uid.MRImageStorage, "1.2.3.4444.3"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.3.4444.1", "1.2.3.4444.2"
    dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate = "Zhang^Qiming=张^启明", "P-7781-22", "19530917"
    for name, value in values.items():
        setattr(dataset, name, value)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    return parse(write(dataset))


def clean(dataset: Dataset, options: str) -> Dataset:
    """De-identified, written, read again."""
    return parse(write(deidentify(dataset, KEY, Options.parse(options)).dataset))


def test_the_basic_profile_is_what_another_library_reads_in_the_standard() -> None:
    """dicom-anonymizer's own reading of Table E.1-1, edition 2026c; 2026d added one attribute."""
    peer = importlib.import_module("dicomanonymizer.dicom_anonymization_databases.dicomfields_2026c")
    theirs = {tag[0] << 16 | tag[1]: letter for name, letter in LETTERS.items() for tag in getattr(peer, f"{name}_TAGS") if len(tag) == 2}
    ours = dict(rules(Options()).actions)
    assert {tag for tag in ours if tag not in theirs} == {0x3004007F, 0x0040A160, 0x00620005}  # new; and two that are ours
    assert {hex(tag): (letter, ours[tag]) for tag, letter in theirs.items() if ours[tag] != letter} == {}
    assert len(theirs) > 640


@pytest.mark.parametrize(
    ("option", "keyword_tag", "action"),
    [
        ("dates=keep", 0x00080020, Action.KEEP),
        ("dates=shift", 0x00080020, Action.CLEAN),
        ("dates=keep", 0x00100030, Action.EMPTY),
        ("uids", 0x00080018, Action.KEEP),
        ("uids", 0x04000100, Action.UID),
        ("device", 0x00181000, Action.KEEP),
        ("device", 0x00080055, Action.CLEAN),
        ("institution", 0x00080080, Action.KEEP),
        ("patient", 0x00101010, Action.KEEP),
        ("patient", 0x00100010, Action.EMPTY),
        ("descriptors", 0x0008103E, Action.CLEAN),
        ("structured", 0x0040A730, Action.CLEAN),
        ("graphics", 0x00700001, Action.CLEAN),
        ("device institution patient uids", 0x00100020, Action.DUMMY),
    ],
)
def test_an_option_changes_what_its_column_says(option: str, keyword_tag: int, action: Action) -> None:
    assert rules(Options.parse(option)).actions[keyword_tag] == action


def test_the_codes_are_those_of_the_standard_and_are_written() -> None:
    assert {entry.value: entry.meaning for entry in (getattr(codes.cid7050, name) for name in codes.cid7050.dir())} == MEANINGS
    everything = "dates=shift uids device institution patient private descriptors structured graphics"
    result = clean(example(), everything)
    assert [item.CodeValue for item in result.DeidentificationMethodCodeSequence] == [
        "113100", "113103", "113104", "113105", "113107", "113108", "113109", "113110", "113111", "113112",
    ]  # fmt: skip
    assert result.LongitudinalTemporalInformationModified == "MODIFIED"
    assert clean(example(), "dates=keep").LongitudinalTemporalInformationModified == "UNMODIFIED"


def test_options_are_read_as_they_are_written_and_others_refused() -> None:
    options = Options.parse("patient, dates=shift device")
    assert Options.parse(str(options)) == options == Options(dates="shift", patient=True, device=True)
    for wrong in ("dates=maybe", "everything", "patient=yes"):
        with pytest.raises(Problem) as refused:
            Options.parse(wrong)
        assert refused.value.code == "imaging.option_unknown"


def test_each_option_keeps_what_it_names_and_no_other() -> None:
    values = {
        "StudyDate": "20240229", "InstitutionName": "Union Hospital", "DeviceSerialNumber": "SER-99812", "PatientAge": "071Y",
        "PatientSex": "F", "StationAETitle": "SCANNER7", "SeriesDescription": "T2W_FLAIR Zhang 胸部平扫",
    }  # fmt: skip
    kept = {
        "": {},
        "dates=keep": {"StudyDate": "20240229"},
        "institution": {"InstitutionName": "Union Hospital"},
        "device": {"DeviceSerialNumber": "SER-99812"},
        "patient": {"PatientAge": "071Y", "PatientSex": "F"},
        "descriptors": {"SeriesDescription": "T2W FLAIR 胸部平扫"},
    }
    for option, expected in kept.items():
        result = clean(example(**values), option)
        found = {name: str(result.get(name)) for name in values if result.get(name) and str(result[name].value) not in ("REMOVED",)}
        assert found == expected, option
        assert not result.PatientBirthDate and result.PatientName == result.PatientID
    assert clean(example(), "uids").SOPInstanceUID == "1.2.3.4444.3"


def test_kept_text_that_repeats_the_patient_is_removed() -> None:
    assert "InstitutionName" not in clean(example(InstitutionName="ward of Zhang Qiming"), "institution")
    assert clean(example(ImageComments="chest of 张启明"), "descriptors").ImageComments == "chest of"


def test_safe_private_numbers_stay_and_nothing_else_of_their_group() -> None:
    dataset = example()
    block = dataset.private_block(0x0019, "SIEMENS MR HEADER", create=True)
    block.add_new(0x0C, "IS", "1000")
    block.add_new(0x0D, "CS", "DIRECTIONAL")
    block.add_new(0x27, "FD", [1.0] * 6)
    block.add_new(0x08, "CS", "IMAGE NUM 4")  # not on the list
    other = dataset.private_block(0x0043, "GEMS_PARM_01", create=True)
    other.add_new(0x27, "SH", "张启明")  # on the list, and not what the list promises
    dates = dataset.private_block(0x0071, "SIEMENS MED PT", create=True)
    dates.add_new(0x22, "DT", "20240229101112")
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    original = parse(buffer.getvalue())
    result = clean(original, "private")
    assert [(str(element.tag), element.value) for element in result if element.tag.is_private] == [
        ("(0019,0010)", "SIEMENS MR HEADER"),
        ("(0019,100C)", 1000),
        ("(0019,100D)", "DIRECTIONAL"),
        ("(0019,1027)", [1.0] * 6),
    ]
    assert not any(element.tag.is_private for element in clean(original, ""))


def report() -> Dataset:
    def item(kind: str, concept: tuple[str, str, str], **values: object) -> Dataset:
        made = Dataset()
        made.RelationshipType, made.ValueType, made.ConceptNameCodeSequence = "CONTAINS", kind, code(*concept)
        for name, value in values.items():
            setattr(made, name, value)
        return made

    number = Dataset()
    number.NumericValue, number.MeasurementUnitsCodeSequence = "12", code("mm", "UCUM", "mm")
    inner = item("TEXT", ("121071", "DCM", "Finding"), TextValue="患者张启明，男，71岁，右肺结节，报告医生：李建国，电话13800138000")
    items = [
        item("PNAME", ("121008", "DCM", "Person Observer Name"), PersonName="Li^Jianguo=李^建国"),
        item("TEXT", ("121022", "DCM", "Accession Number"), TextValue="ACC-55-1"),
        item("DATETIME", ("111526", "DCM", "DateTime Started"), DateTime="20240229101112"),
        item("UIDREF", ("112002", "DCM", "Series Instance UID"), UID="1.2.3.4444.2"),
        item("NUM", ("410668003", "SCT", "Length"), MeasuredValueSequence=Sequence([number])),
        item("CODE", ("121071", "DCM", "Finding"), ConceptCodeSequence=code("427359005", "SCT", "Solitary nodule of lung")),
        item("CONTAINER", ("121070", "DCM", "Findings"), ContentSequence=Sequence([inner])),
    ]
    return example(SOPClassUID=uid.BasicTextSRStorage, ValueType="CONTAINER", ContentSequence=Sequence(items))


def test_a_report_is_blanked_by_default_and_cleaned_by_option() -> None:
    original = report()
    blank, structured, described = (clean(original, text) for text in ("", "structured dates=shift", "structured descriptors dates=shift"))
    assert len(blank.ContentSequence) == 7 and blank.ContentSequence[5].ConceptCodeSequence[0].CodeMeaning == "REMOVED"
    kinds = [item.ValueType for item in structured.ContentSequence]
    assert "TEXT" not in kinds and kinds[-4:] == ["UIDREF", "NUM", "CODE", "CONTAINER"]
    found = {item.ValueType: item for item in structured.ContentSequence}
    assert found["CODE"].ConceptCodeSequence[0].CodeMeaning == "Solitary nodule of lung"
    assert found["NUM"].MeasuredValueSequence[0].NumericValue == 12
    assert structured.SeriesInstanceUID == found["UIDREF"].UID
    assert found["CONTAINER"].ContentSequence[0].TextValue == "REMOVED"
    text = described.ContentSequence[-1].ContentSequence[0].TextValue
    assert text == "患者[NAME]，男，71岁，右肺结节，报告医生：[NAME]，电话[PHONE]"
    for result in (blank, structured, described):
        assert verify(original, write(result)) == []
        assert "建国" not in str(result) and "20240229" not in str(result)


def test_items_that_are_referred_to_by_their_place_stay_in_it() -> None:
    original = report()
    original.ContentSequence[4].ReferencedContentItemIdentifier = [1, 5]
    result = clean(original, "structured")
    assert [item.ValueType for item in result.ContentSequence] == [item.ValueType for item in original.ContentSequence]
    assert result.ContentSequence[1].TextValue == "REMOVED"


def test_documents_are_refused_and_leave_nothing_elsewhere() -> None:
    with pytest.raises(Problem) as refused:
        deidentify(example(SOPClassUID=uid.EncapsulatedPDFStorage, EncapsulatedDocument=b"%PDF-1.4 Zhang"), KEY)
    assert refused.value.code == "imaging.encapsulated"
    assert clean(example(EncapsulatedDocument=b"%PDF-1.4 Zhang"), "").EncapsulatedDocument == b"\0\0"


def test_graphics_keep_their_geometry_and_lose_their_text() -> None:
    text, shape, annotation = Dataset(), Dataset(), Dataset()
    text.UnformattedTextValue = "Zhang, left"
    shape.GraphicData, shape.GraphicType = [1.0, 2.0], "POINT"
    annotation.TextObjectSequence, annotation.GraphicObjectSequence = Sequence([text]), Sequence([shape])
    result = clean(example(GraphicAnnotationSequence=Sequence([annotation])), "graphics").GraphicAnnotationSequence[0]
    assert result.GraphicObjectSequence[0].GraphicData == [1.0, 2.0]
    assert result.TextObjectSequence[0].UnformattedTextValue == "REMOVED"
