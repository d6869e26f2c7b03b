"""What each reader makes of the published form of its source, and what it says of what is wrong in it."""

from __future__ import annotations

import base64
import gzip
import io
import json
import zipfile
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from medmesh.errors import Problem
from medmesh.importing.port import Report
from medmesh.importing.sources import opened
from medmesh.timeline import readers
from medmesh.timeline.events import Draft, Identity, Merge
from medmesh.timeline.reading import Reading

LI = Identity("http://xiehe.example/mrn", "P100")


def write(folder: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def read(path: Path, name: str | None = None) -> tuple[list[Draft], list[Merge], Reading]:
    with opened(path) as source:
        reading = Reading(Report())
        found = list(readers.read(source, reading, name))
    return [one for one in found if isinstance(one, Draft)], [one for one in found if isinstance(one, Merge)], reading


def told(drafts: Iterable[Draft]) -> list[tuple[Any, ...]]:
    return [(one.code, one.time, one.numeric, one.text) for one in drafts]


def wrong(reading: Reading) -> list[tuple[str, str]]:
    return [(finding.code, finding.place) for finding in reading.report.findings]


# FHIR R4


def coding(system: str, code: str, **other: str) -> dict[str, Any]:
    return {"coding": [{"system": system, "code": code, **other}]}


PATIENT = {
    "resourceType": "Patient",
    "id": "1",
    "identifier": [
        {"system": "urn:id-card", "value": "11010119500203001X", "type": {"coding": [{"code": "NI"}]}},
        {"system": LI.authority, "value": LI.local_id, "type": {"coding": [{"code": "MR"}]}},
    ],
    "name": [{"text": "李四"}],
    "gender": "female",
    "birthDate": "1950-02-03",
    "link": [{"other": {"reference": "Patient/2"}, "type": "replaces"}],
}
OLD = {"resourceType": "Patient", "id": "2", "identifier": [{"system": LI.authority, "value": "P77"}]}
SUBJECT = {"reference": "Patient/1"}
RESOURCES: list[dict[str, Any]] = [
    PATIENT,
    OLD,
    {
        "resourceType": "Encounter", "id": "e", "status": "finished", "subject": SUBJECT, "class": {"code": "IMP"},
        "period": {"start": "2024-03-01T08:00:00+08:00", "end": "2024-03-05"},
    },
    {
        "resourceType": "Condition", "id": "c", "subject": SUBJECT, "recordedDate": "2024-03-02", "onsetDateTime": "2024",
        "code": coding("http://hl7.org/fhir/sid/icd-10", "i219"),
    },
    {
        "resourceType": "Observation", "id": "o", "meta": {"versionId": "4"}, "status": "final", "subject": SUBJECT,
        "category": [coding("x", "laboratory")], "code": coding("http://loinc.org", "2160-0"), "effectiveDateTime": "2024-03-01T01:30:00Z",
        "valueQuantity": {"value": 81.5, "unit": "umol/L"},
    },
    {
        "resourceType": "Observation", "id": "bp", "status": "final", "subject": SUBJECT, "category": [coding("x", "vital-signs")],
        "code": coding("http://loinc.org", "85354-9"), "effectiveDateTime": "2024-03-01T10:00:00+08:00",
        "component": [
            {"code": coding("http://loinc.org", "8480-6"), "valueQuantity": {"value": 120, "unit": "mm[Hg]"}},
            {"code": coding("http://loinc.org", "8462-4"), "valueQuantity": {"value": 80, "unit": "mm[Hg]"}},
        ],
    },
    {
        "resourceType": "Observation", "id": "less", "status": "entered-in-error", "subject": SUBJECT, "code": {"text": "troponin"},
        "effectiveDateTime": "2024-03-01", "valueQuantity": {"value": 0.01, "comparator": "<"},
    },
    {"resourceType": "Medication", "id": "asp", "code": coding("http://www.whocc.no/atc", "B01AC06")},
    {
        "resourceType": "MedicationRequest", "id": "m", "status": "active", "intent": "order", "subject": SUBJECT,
        "authoredOn": "2024-03-01",
        "medicationReference": {"reference": "Medication/asp"},
    },
    {
        "resourceType": "MedicationAdministration", "id": "ma", "status": "completed", "subject": SUBJECT,
        "effectivePeriod": {"start": "2024-03-01T11:00:00+08:00"}, "dosage": {"dose": {"value": 100, "unit": "mg"}},
        "medicationCodeableConcept": coding("http://www.whocc.no/atc", "B01AC06"),
    },
    {
        "resourceType": "Procedure", "id": "p", "status": "completed", "subject": SUBJECT, "performedDateTime": "2024-03-02T09:00:00+08:00",
        "code": coding("http://snomed.info/sct", "415070008"),
    },
    {
        "resourceType": "DiagnosticReport", "id": "d", "status": "final", "subject": SUBJECT, "issued": "2024-03-02T12:00:00.250+08:00",
        "code": coding("http://loinc.org", "24627-2"), "conclusion": "未见肺栓塞",
    },
    {
        "resourceType": "ImagingStudy", "id": "i", "status": "available", "subject": SUBJECT, "started": "2024-03-02T11:00:00+08:00",
        "identifier": [{"system": "urn:dicom:uid", "value": "urn:oid:1.2.3"}], "modality": [{"code": "CT"}],
    },
    {
        "resourceType": "DocumentReference", "id": "n", "status": "current", "subject": SUBJECT, "date": "2024-03-03T09:00:00+08:00",
        "type": coding("http://loinc.org", "11506-3"),
        "content": [{"attachment": {"contentType": "text/plain", "data": base64.b64encode("病程记录".encode()).decode()}}],
    },
    {"resourceType": "Practitioner", "id": "dr"},
]  # fmt: skip
FHIR = [
    ("MEDS_BIRTH", datetime(1950, 2, 3), None, None),
    ("GENDER//FEMALE", None, None, None),
    ("ENCOUNTER//IMP//START", datetime(2024, 3, 1, 8), None, None),
    ("ENCOUNTER//IMP//END", datetime(2024, 3, 5), None, None),
    ("DIAGNOSIS//ICD10//I21.9", datetime(2024, 3, 2), None, None),
    ("LAB//LOINC//2160-0", datetime(2024, 3, 1, 9, 30), 81.5, None),
    ("VITAL//LOINC//8480-6", datetime(2024, 3, 1, 10), 120.0, None),
    ("VITAL//LOINC//8462-4", datetime(2024, 3, 1, 10), 80.0, None),
    ("OBSERVATION//TEXT//TROPONIN", datetime(2024, 3, 1), None, "<0.01"),
    ("MEDICATION_ORDER//ATC//B01AC06", datetime(2024, 3, 1), None, None),
    ("MEDICATION//ATC//B01AC06", datetime(2024, 3, 1, 11), 100.0, None),
    ("PROCEDURE//SNOMED//415070008", datetime(2024, 3, 2, 9), None, None),
    ("REPORT//LOINC//24627-2", datetime(2024, 3, 2, 12, 0, 0, 250_000), None, "未见肺栓塞"),
    ("IMAGING_STUDY//CT", datetime(2024, 3, 2, 11), None, None),
    ("NOTE//LOINC//11506-3", datetime(2024, 3, 3, 9), None, "病程记录"),
]


def test_the_fixture_is_fhir_by_another_library() -> None:
    from fhir.resources.R4B import get_fhir_model_class

    for resource in RESOURCES:
        get_fhir_model_class(resource["resourceType"])(**resource)


@pytest.mark.parametrize("form", ["bundle", "ndjson", "zip"])
def test_fhir_gives_the_same_events_in_every_form(tmp_path: Path, form: str) -> None:
    bundle = json.dumps({"resourceType": "Bundle", "type": "collection", "entry": [{"resource": one} for one in RESOURCES]})
    by_kind: dict[str, str] = {}
    for one in RESOURCES:  # as a bulk export writes it: a file a kind, so that most come before the patients
        by_kind.setdefault(f"{one['resourceType']}.ndjson", "")
        by_kind[f"{one['resourceType']}.ndjson"] += json.dumps(one, ensure_ascii=False) + "\n"
    place = tmp_path / "in"
    if form == "bundle":
        write(place, {"all.json": bundle})
    elif form == "ndjson":
        write(place, {name: gzip.compress(text.encode()) if "Obs" in name else text for name, text in by_kind.items()})
    else:
        place = tmp_path / "in.zip"
        with zipfile.ZipFile(place, "w") as packed:
            packed.writestr("all.json", bundle)
    drafts, merges, reading = read(place)
    assert sorted(map(repr, told(drafts))) == sorted(map(repr, FHIR))
    assert {one.identity for one in drafts} == {LI}, "the hospital's number, not the card's and not the server's"
    assert merges == [Merge(LI, Identity(LI.authority, "P77"), "fhir", merges[0].key)]
    by = {one.key: one for one in drafts}
    assert (by["Observation/o"].revision, by["Observation/o"].unit, by["Observation/o"].code_system) == (4, "umol/L", "LOINC")
    assert by["Observation/less"].withdrawn and not by["Observation/o"].withdrawn
    assert by["ImagingStudy/i"].study_uid == "1.2.3"
    assert by["Patient/1#birth"].precision == "day" and by["DiagnosticReport/d"].precision == "microsecond"
    assert json.loads(by["Observation/o"].raw or b"") == RESOURCES[4], "what it was read from is at hand"
    assert wrong(reading) == []
    assert reading.left_out == {"Medication": 1, "Practitioner": 1}


def test_what_is_wrong_in_fhir_is_said_with_its_line_and_the_rest_is_read(tmp_path: Path) -> None:
    good = RESOURCES[4]
    lines = [
        json.dumps(good),
        '{"resourceType": "Observation", ',
        json.dumps(good | {"id": "t", "effectiveDateTime": "2024-13-01"}),
        json.dumps(good | {"id": "n", "subject": {"display": "李四"}}),
        json.dumps({key: value for key, value in good.items() if key != "code"}),
        json.dumps({key: value for key, value in good.items() if key != "effectiveDateTime"}),
        json.dumps(good | {"id": "s", "subject": {"identifier": {"system": "HIS", "value": "9"}}}),
        '{"a": 1}',
    ]
    drafts, _, reading = read(write(tmp_path / "in", {"x.ndjson": "\n".join(lines)}))
    assert [one.identity for one in drafts] == [Identity("fhir", "1"), Identity("HIS", "9")]
    assert wrong(reading) == [
        ("timeline.not_json", "x.ndjson:2"),
        ("timeline.bad_time", "x.ndjson:3"),
        ("timeline.no_patient", "x.ndjson:4"),
        ("timeline.no_code", "x.ndjson:5"),
        ("timeline.no_time", "x.ndjson:6"),
        ("timeline.not_fhir", "x.ndjson:8"),
    ]


# HL7 v2

ADT = (
    "MSH|^~\\&|HIS|XIEHE|MM|MM|{at}||ADT^{trigger}|{id}|P|2.5.1||||||{charset}\r"
    "EVN||20240301080500\r"
    "PID|1||11010119500203001X^^^MPS^NI~P100^^^HIS&1.2.3&ISO^MR||李^四||19500203|F\r"
    "PV1|1|I|CARD^01^2||||||||||||||||V9|||||||||||||||||||||||||20240301080000|{discharge}\r"
    "DG1|1||I21.900^急性心肌梗死^ICD-10-CN||20240301|A\r"
)
ORU = (
    "MSH|^~\\&|LIS|XIEHE|MM|MM|20240301100000||ORU^R01|L1|P|2.5.1\r"
    "PID|1||P100^^^HIS^MR\r"
    "OBR|1|PL1|F1^LIS|CREA^肌酐组套^L|||20240301093000\r"
    "OBX|1|NM|2160-0^Creatinine^LN||81.5|umol/L|||||F\r"
    "OBX|2|SN|10839-9^Troponin I^LN||<^0.01|ng/mL|||||F|||20240301094500\r"
    "OBX|3|CE|ABO^血型^L||A^A型^L||||||F\r"
    "NTE|1||复查\r"
    "OBR|2||F2^LIS|CT^胸部CT^L|||20240301110000|||||||||||||||||RAD\r"
    "OBX|1|TX|GDT^所见^L||两肺纹理清晰 \\T\\ 未见实变~第二段||||||F\r"
    "OBX|2|TX|GDT^所见^L||A\\.br\\B\\X41\\||||||F\r"
)
A40 = (
    "MSH|^~\\&|HIS|XIEHE|MM|MM|20240401||ADT^A40^ADT_A39|X1|P|2.5.1\rEVN||20240401\r"
    "PID|1||P100^^^HIS^MR\rMRG|P77^^^HIS^MR\rPID|2||P200^^^HIS^MR\rMRG|P201^^^HIS^MR\r"
)
HIS = Identity("HIS", "P100")
ADMITTED = [
    ("MEDS_BIRTH", datetime(1950, 2, 3), None, None),
    ("GENDER//F", None, None, None),
    ("ENCOUNTER//I//START", datetime(2024, 3, 1, 8), None, None),
    ("DIAGNOSIS//ICD10CN//I21.900", datetime(2024, 3, 1), None, None),
]


def adt(trigger: str = "A01", at: str = "20240301080600", charset: str = "", discharge: str = "", id: str = "1") -> str:
    return ADT.format(trigger=trigger, at=at, charset=charset, discharge=discharge, id=id)


@pytest.mark.parametrize(
    ("charset", "encoding"), [("", "utf-8"), ("", "gb18030"), ("UNICODE UTF-8", "utf-8"), ("GB 18030-2000", "gb18030"), ("~GBK", "gb18030")]
)
def test_an_admission_is_read_in_the_character_set_it_names(tmp_path: Path, charset: str, encoding: str) -> None:
    # 乗 ends in GB18030 with the byte of `|`, 乗's neighbours in that of `^`: whoever cuts fields out of bytes gets them wrong.
    tricky = "乗乣亅亊"
    assert b"|" in tricky.encode("gb18030")
    text = adt(charset=charset).replace("李^四", f"{tricky}^四")
    drafts, _, reading = read(write(tmp_path / "in", {"a.hl7": text.encode(encoding)}))
    assert told(drafts) == ADMITTED
    assert {one.identity for one in drafts} == {HIS}
    assert wrong(reading) == []


def test_a_message_in_another_character_set_than_it_names_is_refused(tmp_path: Path) -> None:
    broken = adt(charset="UNICODE UTF-8").encode("gb18030")
    odd = adt(charset="EBCDIC").encode()
    drafts, _, reading = read(write(tmp_path / "in", {"a.hl7": broken, "b.hl7": odd, "c.hl7": adt()}))
    assert len(drafts) == len(ADMITTED)
    assert wrong(reading) == [("timeline.charset", "a.hl7:1"), ("timeline.charset", "b.hl7:1")]


def test_results_are_numbers_texts_and_reports(tmp_path: Path) -> None:
    drafts, _, reading = read(write(tmp_path / "in", {"oru.hl7": ORU}))
    assert told(drafts) == [
        ("LAB//LOINC//2160-0", datetime(2024, 3, 1, 9, 30), 81.5, None),
        ("LAB//LOINC//10839-9", datetime(2024, 3, 1, 9, 45), None, "<0.01"),
        ("LAB//L//ABO", datetime(2024, 3, 1, 9, 30), None, "A型"),
        ("REPORT//L//GDT", datetime(2024, 3, 1, 11), None, "两肺纹理清晰 & 未见实变\n第二段\nA\nBA"),
    ]
    assert [one.unit for one in drafts] == ["umol/L", "ng/mL", None, None]
    assert [one.revision for one in drafts] == [20240301100000000] * 4
    assert len({one.key for one in drafts}) == 4
    assert wrong(reading) == []
    again, _, _ = read(write(tmp_path / "again", {"oru.hl7": ORU.replace("|L1|", "|L2|").replace("|||||F\r", "|||||D\r", 1)}))
    assert [one.key for one in again] == [one.key for one in drafts], "known again by order and code, not by the message"
    assert [one.withdrawn for one in again] == [True, False, False, False]


@pytest.mark.parametrize("end", ["\r", "\n", "\r\n"])
def test_batches_and_frames_and_every_line_end_are_the_same_messages(tmp_path: Path, end: str) -> None:
    parts = ["FHS|^~\\&|HIS\r", "BHS|^~\\&|HIS\r", adt(), "\x0b" + A40 + "\x1c\r", "garbage|1\r", ORU, "BTS|3\r", "FTS|1\r"]
    text = "".join(parts[:4] + parts[5:]).replace("\r", end)
    drafts, merges, reading = read(write(tmp_path / "in", {"batch.hl7": text}))
    assert len(drafts) == len(ADMITTED) + 4
    assert [(one.survivor.local_id, one.loser.local_id) for one in merges] == [("P100", "P77"), ("P200", "P201")]
    assert wrong(reading) == []
    _, _, reading = read(write(tmp_path / "torn", {"batch.hl7": "FHS|^~\\&|HIS\rPID|1||P1\r" + adt()}))
    assert wrong(reading) == [("timeline.no_msh", "batch.hl7:2")]


def test_a_discharge_and_what_takes_it_back(tmp_path: Path) -> None:
    end = adt("A03", "20240305", discharge="20240305100000", id="2")
    cancelled = adt("A13", "20240306", discharge="20240305100000", id="3")
    drafts, _, reading = read(write(tmp_path / "in", {"a.hl7": adt() + end + cancelled + adt("A99")}))
    visits = [one for one in drafts if one.code.startswith("ENCOUNTER")]
    assert [(one.code, one.withdrawn) for one in visits] == [
        ("ENCOUNTER//I//START", False),
        ("ENCOUNTER//I//END", False),
        ("ENCOUNTER//I//END", True),
    ]
    assert visits[1].key == visits[2].key and (visits[1].revision or 0) < (visits[2].revision or 0)
    assert reading.left_out == {"ADT.A99": 1}


# OMOP CDM 5.4

OMOP = {
    "PERSON.csv": "person_id,gender_concept_id,year_of_birth,month_of_birth,day_of_birth,birth_datetime\n"
    "7,8532,1950,2,3,\n8,8507,1960,,,\n",
    "visit_occurrence.csv": (
        "visit_occurrence_id,person_id,visit_concept_id,visit_start_date,visit_start_datetime,visit_end_date,visit_end_datetime\n"
        "1,7,9201,2024-03-01,2024-03-01 08:00:00,2024-03-05,\n"
    ),
    "condition_occurrence.csv": (
        "condition_occurrence_id,person_id,condition_concept_id,condition_start_date,condition_start_datetime,"
        "condition_source_value,condition_source_concept_id\n1,7,312327,2024-03-02,,I21.9,45576876\n2,7,0,2024-03-02,,院内码7,0\n"
        "3,7,312327,2024-02-31,,I21.9,0\n4,,312327,2024-03-02,,I21.9,0\n5,7,312327\n"
    ),
    "measurement.csv.gz": gzip.compress(
        b"measurement_id,person_id,measurement_concept_id,measurement_date,measurement_datetime,value_as_number,value_source_value,"
        b"unit_source_value\n1,7,3016723,2024-03-01,2024-03-01T09:30:00,81.5,81.5,umol/L\n2,7,3016723,2024-03-01,,,<10,\n"
        b"3,7,3016723,2024-03-01,,many,,\n"
    ),
    "death.csv": "person_id,death_date,death_datetime\n8,2024-04-01,\n",
    "concept.csv": (
        "concept_id\tconcept_name\tdomain_id\tvocabulary_id\tconcept_class_id\tstandard_concept\tconcept_code\n"
        '312327\tAcute "MI\tCondition\tSNOMED\tx\tS\t57054005\n45576876\tAcute MI\tCondition\tICD10CM\tx\t\tI21.9\n'
        "3016723\tCreatinine\tMeasurement\tLOINC\tx\tS\t2160-0\n1\tunused\tx\tx\tx\tx\tx\n"
    ),
    "cost.csv": "cost_id\n1\n",
}  # fmt: skip


def test_omop_tables_become_events_under_the_hospitals_own_coding(tmp_path: Path) -> None:
    drafts, _, reading = read(write(tmp_path / "in", OMOP))
    assert [(one.identity.local_id, *told([one])[0]) for one in drafts] == [
        ("7", "MEDS_BIRTH", datetime(1950, 2, 3), None, None),
        ("7", "GENDER//F", None, None, None),
        ("8", "MEDS_BIRTH", datetime(1960, 1, 1), None, None),
        ("8", "GENDER//M", None, None, None),
        ("7", "ENCOUNTER//IP//START", datetime(2024, 3, 1, 8), None, None),
        ("7", "ENCOUNTER//IP//END", datetime(2024, 3, 5), None, None),
        ("7", "DIAGNOSIS//ICD10CM//I21.9", datetime(2024, 3, 2), None, None),
        ("7", "DIAGNOSIS//LOCAL//院内码7", datetime(2024, 3, 2), None, None),
        ("7", "LAB//LOINC//2160-0", datetime(2024, 3, 1, 9, 30), 81.5, None),
        ("7", "LAB//LOINC//2160-0", datetime(2024, 3, 1), None, "<10"),
        ("8", "MEDS_DEATH", datetime(2024, 4, 1), None, None),
    ]
    assert [one.precision for one in drafts[:3]] == ["day", None, "year"]
    assert wrong(reading) == [
        ("timeline.bad_time", "condition_occurrence.csv:4"),
        ("timeline.no_patient", "condition_occurrence.csv:5"),
        ("timeline.row", "condition_occurrence.csv:6"),
        ("timeline.bad_number", "measurement.csv.gz:4"),
    ]
    assert reading.left_out == {"cost": 1}


# MIMIC-III v1.4

MIMIC = {
    "PATIENTS.csv": (
        "ROW_ID,SUBJECT_ID,GENDER,DOB,DOD,DOD_HOSP,DOD_SSN,EXPIRE_FLAG\n1,10006,F,2094-03-05 00:00:00,2165-08-12 00:00:00,,,1\n"
    ),
    "ADMISSIONS.csv": (
        "ROW_ID,SUBJECT_ID,HADM_ID,ADMITTIME,DISCHTIME,DEATHTIME,ADMISSION_TYPE\n"
        "1,10006,142345,2164-10-23 21:09:00,2164-11-01 17:15:00,,EMERGENCY\n"
    ),
    "DIAGNOSES_ICD.csv": "ROW_ID,SUBJECT_ID,HADM_ID,SEQ_NUM,ICD9_CODE\n"
    "1,10006,142345,1,99591\n2,10006,142345,2,E8497\n3,10006,999,3,0389\n",
    "PROCEDURES_ICD.csv": "ROW_ID,SUBJECT_ID,HADM_ID,SEQ_NUM,ICD9_CODE\n1,10006,142345,1,9749\n",
    "LABEVENTS.csv": (
        "ROW_ID,SUBJECT_ID,HADM_ID,ITEMID,CHARTTIME,VALUE,VALUENUM,VALUEUOM,FLAG\n"
        "1,10006,,50868,2164-09-24 20:21:00,19,19,mEq/L,\n2,10006,,50912,2164-09-24 20:21:00,HOLD,,,\n"
    ),
    "CHARTEVENTS.csv": (
        "ROW_ID,SUBJECT_ID,HADM_ID,ICUSTAY_ID,ITEMID,CHARTTIME,STORETIME,CGID,VALUE,VALUENUM,VALUEUOM,WARNING,ERROR,RESULTSTATUS,STOPPED\n"
        "1,10006,142345,,211,2164-10-24 01:00:00,,,88,88,BPM,0,1,,\n2,10006,142345,,211,2164-10-24 02:00:00,,,90,90,BPM,0,0,,\n"
    ),
    "NOTEEVENTS.csv": (
        "ROW_ID,SUBJECT_ID,HADM_ID,CHARTDATE,CHARTTIME,STORETIME,CATEGORY,DESCRIPTION,CGID,ISERROR,TEXT\n"
        '1,10006,142345,2164-11-01,,,Discharge summary,Report,,,"Line one\nline ""two"""\n'
        "2,10006,142345,bad,,,Nursing,Report,,,x\n"
    ),
    "D_LABITEMS.csv": "ROW_ID,ITEMID,LABEL,FLUID,CATEGORY,LOINC_CODE\n1,50868,Anion Gap,Blood,Chemistry,1863-0\n",
    "SERVICES.csv": "ROW_ID\n1\n",
}


def test_mimic_rows_become_events_and_codes_have_their_point(tmp_path: Path) -> None:
    drafts, _, reading = read(write(tmp_path / "in", MIMIC))
    out = datetime(2164, 11, 1, 17, 15)
    assert told(drafts) == [
        ("GENDER//F", None, None, None),
        ("MEDS_BIRTH", datetime(2094, 3, 5), None, None),
        ("MEDS_DEATH", datetime(2165, 8, 12), None, None),
        ("ENCOUNTER//EMERGENCY//START", datetime(2164, 10, 23, 21, 9), None, None),
        ("ENCOUNTER//EMERGENCY//END", out, None, None),
        ("DIAGNOSIS//ICD9CM//995.91", out, None, None),
        ("DIAGNOSIS//ICD9CM//E849.7", out, None, None),
        ("PROCEDURE//ICD9PROC//97.49", out, None, None),
        ("LAB//LOINC//1863-0", datetime(2164, 9, 24, 20, 21), 19.0, None),
        ("LAB//MIMIC3//50912", datetime(2164, 9, 24, 20, 21), None, "HOLD"),
        ("CHART//MIMIC3//211", datetime(2164, 10, 24, 2), 90.0, None),
        ("NOTE//DISCHARGE_SUMMARY", datetime(2164, 11, 1), None, 'Line one\nline "two"'),
    ]
    assert wrong(reading) == [("timeline.no_time", "DIAGNOSES_ICD.csv:4"), ("timeline.bad_time", "NOTEEVENTS.csv:4")]
    assert reading.left_out == {"services": 1}


def test_a_table_without_its_columns_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    drafts, _, reading = read(write(tmp_path / "in", MIMIC | {"LABEVENTS.csv": "ROW_ID,SUBJECT_ID,ITEMID\n1,2,3\n"}))
    assert not [one for one in drafts if one.code.startswith("LAB")]
    assert ("timeline.no_column", "LABEVENTS.csv:1") in wrong(reading)


# DICOM


def header(uid: str, patient: str, modality: str, n: int, **other: str) -> bytes:
    from pydicom.dataset import Dataset, FileMetaDataset

    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    made.SOPClassUID = made.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = f"{uid}.{n}"
    made.StudyInstanceUID, made.PatientID, made.Modality = uid, patient, modality
    for name, value in ({"StudyDate": "20240302", "StudyTime": "110000"} | other).items():
        setattr(made, name, value)
    out = io.BytesIO()
    made.save_as(out, enforce_file_format=True)
    return out.getvalue()


def test_a_study_is_one_event_wherever_its_objects_lie(tmp_path: Path) -> None:
    files: dict[str, str | bytes] = {f"{place}/{n}": header("2.25.1", "P100", "CT", n) for n, place in enumerate("aab")}
    files |= {"b/report": header("2.25.1", "P100", "SR", 9), "b/other": header("2.25.2", "P200", "PT", 1, StudyTime="")}
    files |= {"c/1": header("2.25.3", "P1", "MR", 1), "c/2": header("2.25.3", "P2", "MR", 2)}
    files |= {"d/none": header("2.25.4", "", "MR", 1), "d/text": "no DICOM", "d/torn": header("2.25.5", "P5", "MR", 1)[:150]}
    drafts, _, reading = read(write(tmp_path / "in", files))
    assert told(drafts) == [
        ("DICOM//CT//STUDY", datetime(2024, 3, 2, 11), 4.0, None),
        ("DICOM//PT//STUDY", datetime(2024, 3, 2), 1.0, None),
    ]
    assert [one.study_uid for one in drafts] == ["2.25.1", "2.25.2"]
    assert wrong(reading)[:2] == [("timeline.two_patients", "c/2"), ("timeline.no_patient", "d/none")]
    assert reading.left_out["not DICOM"] >= 1


def test_what_is_none_of_them_is_not_guessed(tmp_path: Path) -> None:
    for files in ({"a.csv": "x,y\n1,2\n"}, {"a.json": "{}"}, {"a.txt": "MSHAAA"}):
        with opened(write(tmp_path / next(iter(files)), files)) as source, pytest.raises(Problem) as caught:  # type: ignore[arg-type]
            readers.recognised(source)
        assert caught.value.code == "timeline.unrecognised"
    with pytest.raises(Problem) as caught:
        readers.named("xml")
    assert caught.value.code == "timeline.no_reader"
