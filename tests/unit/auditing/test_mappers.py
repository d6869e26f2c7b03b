"""What other tools read of our records: golden files, and each format's own schema as the judge."""

from __future__ import annotations

import base64
import csv
import io
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import xmlschema
from fhir.resources.R4B.auditevent import AuditEvent
from jsonschema import Draft202012Validator, ValidationError
from ocsf_json_schema import OcsfJsonSchemaEmbedded, get_ocsf_schema
from tests.unit.auditing.records import ALL

from medmesh.auditing import dicom, fhir, ocsf, sheet
from medmesh.auditing.vocabulary import VERBS

GOLDEN = Path(__file__).parent / "golden"
SHOWN = ("model.release", "access.denied", "session.open", "user.create")
XSD = xmlschema.XMLSchema(Path(__file__).parent / "dicom-audit.xsd")
OCSF = OcsfJsonSchemaEmbedded(get_ocsf_schema(ocsf.SCHEMA))
CLASSES = {6003: "api_activity", 3002: "authentication", 3001: "account_change"}
Json = dict[str, Any]


def test_golden_files() -> None:
    """A change of what other tools get is seen in a review: delete the file and run again to accept it."""
    for verb in SHOWN:
        compare(f"{verb}.fhir.json", json.dumps(fhir.audit_event(41, ALL[verb]), indent=1, ensure_ascii=False) + "\n")
        compare(f"{verb}.dicom.xml", dicom.audit_message(41, ALL[verb]).decode() + "\n")
        compare(f"{verb}.ocsf.json", json.dumps(ocsf.event(41, ALL[verb]), indent=1, ensure_ascii=False) + "\n")
    compare("all.csv", sheet.head() + "".join(sheet.line(41, ALL[verb]) for verb in SHOWN))


def compare(name: str, content: str) -> None:
    file = GOLDEN / name
    if not file.exists():
        file.write_bytes(content.encode())
        pytest.fail(f"{name} was written: look at it and keep it")
    assert file.read_bytes().decode() == content


@pytest.mark.parametrize("verb", VERBS)
def test_fhir_takes_it(verb: str) -> None:
    document = fhir.audit_event(41, ALL[verb])
    read = AuditEvent.model_validate_json(json.dumps(document))
    assert read.id == ALL[verb]["id"]
    assert read.outcome == str(ALL[verb]["out"])
    assert [agent.requestor for agent in read.agent] == [True, False]
    carried = base64.b64decode(document["entity"][-1]["detail"][0]["valueBase64Binary"])
    assert json.loads(carried) == ALL[verb]


def test_fhir_would_refuse_what_lacks_a_mandatory_element() -> None:
    for missing in ("type", "recorded", "agent", "source"):
        document = fhir.audit_event(41, ALL["model.release"])
        del document[missing]
        with pytest.raises(ValueError, match=missing):
            AuditEvent.model_validate_json(json.dumps(document))


@pytest.mark.parametrize("verb", VERBS)
def test_dicom_takes_it(verb: str) -> None:
    message = dicom.audit_message(41, ALL[verb]).decode()
    XSD.validate(message)
    root = ElementTree.fromstring(message)
    carried = root.findall("ParticipantObjectIdentification")[-1].find("ParticipantObjectDetail")
    assert carried is not None
    assert json.loads(base64.b64decode(carried.attrib["value"])) == ALL[verb]


def test_dicom_would_refuse_what_breaks_the_schema() -> None:
    good = dicom.audit_message(41, ALL["model.release"]).decode()
    for old, new in (
        ('EventOutcomeIndicator="0"', 'EventOutcomeIndicator="1"'),
        ("csd-code", "code"),
        ("ActiveParticipant", "Participant"),
    ):
        with pytest.raises(xmlschema.XMLSchemaValidationError):
            XSD.validate(good.replace(old, new))


def test_the_syslog_frame_is_rfc_5424() -> None:
    frame = dicom.syslog(41, ALL["access.denied"])
    head, _, message = frame.partition(b"\xef\xbb\xbf")
    assert head == b"<83>1 2026-11-24T03:04:05.678901Z host-1 federation - DICOM+RFC3881 - "
    XSD.validate(message.decode())


@pytest.mark.parametrize("verb", VERBS)
def test_ocsf_takes_it(verb: str) -> None:
    event = ocsf.event(41, ALL[verb])
    checked(event)
    assert event["type_uid"] == event["class_uid"] * 100 + event["activity_id"]
    assert json.loads(event["raw_data"]) == ALL[verb]


def checked(event: Json) -> None:
    Draft202012Validator(OCSF.get_class_schema(CLASSES[event["class_uid"]])).validate(event)


def test_ocsf_would_refuse_what_breaks_the_schema() -> None:
    for change in ({"severity_id": "high"}, {"unknown": 1}, {"time": None}):
        with pytest.raises(ValidationError):
            checked({**ocsf.event(41, ALL["model.release"]), **change})


def test_a_spreadsheet_reads_chinese_and_computes_nothing() -> None:
    text = sheet.head() + "".join(sheet.line(41, record) for record in ALL.values())
    assert text.encode().startswith(b"\xef\xbb\xbf")
    rows = list(csv.DictReader(io.StringIO(text.removeprefix(sheet.BOM))))
    assert len(rows) == len(VERBS)
    assert {row["结果"] for row in rows} == {"成功", "严重失败"}
    for row, record in zip(rows, ALL.values(), strict=True):
        assert None not in row
        assert row["操作"] == VERBS[record["sub"]].zh
        assert row["所属机构"] == "renji"
        assert json.loads(row["规范记录"]) == record
        assert not any(str(cell).startswith(("=", "+", "-", "@")) for cell in row.values())
    assert sheet._line(("=1+1",)).startswith("'=1+1")
