"""A record as DICOM PS3.15 A.5.1 AuditMessage (the payload of IHE ATNA ITI-20), and its RFC 5424 frame."""

from __future__ import annotations

import base64
from typing import Any
from xml.etree.ElementTree import Element, SubElement, tostring

from medmesh.auditing.vocabulary import CODES, DCM, SUBCODES
from medmesh.canonical import canonical

_LIFE = {"C": "1", "R": "6", "U": "3", "D": "14", "E": "6"}
_FACILITY_SECURITY = 10
_NOTICE, _WARNING, _ERROR = 5, 4, 3


def audit_message(seq: int, record: dict[str, Any]) -> bytes:
    """The XML document of record `seq`, UTF-8 without declaration. Lossless: the last object carries the canonical record."""
    message = Element("AuditMessage")
    event = SubElement(
        message,
        "EventIdentification",
        EventActionCode=record["act"],
        EventDateTime=record["t"],
        EventOutcomeIndicator=str(record["out"]),
    )
    kind = record["type"]
    _coded(event, "EventID", kind["code"], _scheme(kind["system"]), CODES[kind["code"]][1])
    _coded(event, "EventTypeCode", kind["subcode"], _scheme(kind["subsystem"]), SUBCODES[kind["subcode"]][1])
    _coded(event, "EventTypeCode", record["sub"], "medmesh", record["sub"])
    if record["why"]:
        SubElement(event, "EventOutcomeDescription").text = record["why"]
    _participants(message, record)
    source = SubElement(
        message, "AuditSourceIdentification", AuditEnterpriseSiteID=record["src"]["org"], AuditSourceID=record["src"]["service"]
    )
    SubElement(source, "AuditSourceTypeCode", {"csd-code": "4"})
    for entity in record["entities"]:
        details = {name: entity[name].encode() for name in ("ver", "digest") if entity[name]}
        _object(message, entity["type"], entity["id"], _LIFE[record["act"]], details)
    _object(message, "log-entry", str(seq), "13", {"record": canonical(record)})
    return tostring(message, encoding="utf-8")


def syslog(seq: int, record: dict[str, Any]) -> bytes:
    """The message framed as RFC 5424, message id `DICOM+RFC3881` as ITI-20 asks; without the transport's octet count."""
    severity = _NOTICE if record["out"] == 0 else _WARNING if record["out"] == 4 else _ERROR
    priority = _FACILITY_SECURITY * 8 + severity
    source = record["src"]
    head = f"<{priority}>1 {record['tr']} {_printable(source['instance'])} {_printable(source['service'])} - DICOM+RFC3881 - "
    return head.encode("ascii") + b"\xef\xbb\xbf" + audit_message(seq, record)


def _printable(name: str) -> str:
    """A header field of RFC 5424 §6.2: printable US-ASCII, at most 48 characters, or the nil value."""
    return "".join(sign for sign in name if "!" <= sign <= "~")[:48] or "-"


def _scheme(system: str) -> str:
    return "DCM" if system == DCM else system


def _coded(parent: Element, name: str, code: str, scheme: str, text: str) -> None:
    SubElement(parent, name, {"csd-code": code, "codeSystemName": scheme, "originalText": text})


def _participants(message: Element, record: dict[str, Any]) -> None:
    requested = False
    for agent in record["agents"]:
        requested = requested or agent["req"]
        attributes = {"UserID": agent["who"], "UserIsRequestor": str(agent["req"]).lower()}
        if agent["org"]:
            attributes["AlternativeUserID"] = f"{agent['who']}@{agent['org']}"
        one = SubElement(message, "ActiveParticipant", attributes)
        if agent["req"]:
            for role in filter(None, agent["role"].split(",")):
                _coded(one, "RoleIDCode", role, "medmesh", role)
        else:
            _coded(one, "RoleIDCode", "110150", "DCM", "Application")
    if requested:
        attributes = {"UserID": f"service:{record['src']['service']}", "UserIsRequestor": "false"}
        _coded(SubElement(message, "ActiveParticipant", attributes), "RoleIDCode", "110152", "DCM", "Destination Role ID")


def _object(message: Element, kind: str, id_: str, life: str, details: dict[str, bytes]) -> None:
    patient = kind == "patient"
    attributes = {
        "ParticipantObjectID": id_,
        "ParticipantObjectTypeCode": "1" if patient else "2",
        "ParticipantObjectTypeCodeRole": "1" if patient else "26",
        "ParticipantObjectDataLifeCycle": life,
    }
    made = SubElement(message, "ParticipantObjectIdentification", attributes)
    code, scheme, text = ("2", "RFC-3881", "Patient Number") if patient else (kind, "medmesh", kind)
    _coded(made, "ParticipantObjectIDTypeCode", code, scheme, text)
    SubElement(made, "ParticipantObjectName").text = f"{kind}:{id_}"
    for name, value in details.items():
        SubElement(made, "ParticipantObjectDetail", type=name, value=base64.b64encode(value).decode())
