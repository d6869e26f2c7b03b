"""A record as FHIR R4 AuditEvent, shaped after IHE Basic Audit Log Patterns (BALP): requester, application, entities, transaction."""

from __future__ import annotations

import base64
from typing import Any

from medmesh.auditing.vocabulary import CODES, DCM, PURPOSE, PURPOSES, SUBCODES
from medmesh.canonical import canonical

_ENTITY_TYPE = "http://terminology.hl7.org/CodeSystem/audit-entity-type"
_ENTITY_ROLE = "http://terminology.hl7.org/CodeSystem/object-role"
_SOURCE_TYPE = "http://terminology.hl7.org/CodeSystem/security-source-type"
_BALP_ENTITY = "https://profiles.ihe.net/ITI/BALP/CodeSystem/BasicAuditEntityType"
VERB = "urn:medmesh:audit:verb"


def audit_event(seq: int, record: dict[str, Any]) -> dict[str, Any]:
    """The resource of record `seq`. Lossless: the last entity carries the canonical record, whose commitment is in the log."""
    kind = record["type"]
    event: dict[str, Any] = {
        "resourceType": "AuditEvent",
        "id": record["id"],
        "type": {"system": kind["system"], "code": kind["code"], "display": CODES[kind["code"]][1]},
        "subtype": [
            {"system": kind["subsystem"], "code": kind["subcode"], "display": SUBCODES[kind["subcode"]][1]},
            {"system": VERB, "code": record["sub"]},
        ],
        "action": record["act"],
        "period": {"start": record["t"], "end": record["t"]},
        "recorded": record["tr"],
        "outcome": str(record["out"]),
        "purposeOfEvent": [_purpose(record["pou"])],
        "agent": _agents(record),
        "source": {
            "site": record["src"]["org"],
            "observer": {"identifier": _identifier("emitter", record["src"]["service"]), "display": record["src"]["instance"]},
            "type": [{"system": _SOURCE_TYPE, "code": "4", "display": "Application Server"}],
        },
        "entity": [*map(_entity, record["entities"]), *_transaction(record), _entry(seq, record)],
    }
    if record["why"]:
        event["outcomeDesc"] = record["why"]
    return event


def _identifier(kind: str, value: str) -> dict[str, str]:
    return {"system": f"urn:medmesh:{kind}", "value": value}


def _purpose(code: str) -> dict[str, Any]:
    return {"coding": [{"system": PURPOSE, "code": code, "display": PURPOSES[code][0]}]}


def _role(code: str, display: str) -> dict[str, Any]:
    return {"coding": [{"system": DCM, "code": code, "display": display}]}


def _agents(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Who asked, and the application that did it; the requester carries the rules that let it."""
    policy = record["policy"]
    rules = [f"urn:medmesh:policy:{policy['bundle']}:{policy['decision']}:{rule}" for rule in policy["rules"]]
    made: list[dict[str, Any]] = []
    for agent in record["agents"]:
        one: dict[str, Any] = {
            "type": _role("110153", "Source Role ID") if agent["req"] else _role("110150", "Application"),
            "who": {"identifier": _identifier("actor", agent["who"])},
            "requestor": agent["req"],
        }
        if agent["req"] and agent["role"]:
            one["role"] = [{"text": role} for role in agent["role"].split(",")]
        if agent["org"]:
            one["altId"] = f"{agent['who']}@{agent['org']}"
        if rules:
            one["policy"] = rules
        made.append(one)
    if all(agent["req"] for agent in record["agents"]):
        service = f"service:{record['src']['service']}"
        made.append(
            {"type": _role("110152", "Destination Role ID"), "who": {"identifier": _identifier("actor", service)}, "requestor": False}
        )
    return made


def _entity(entity: dict[str, str]) -> dict[str, Any]:
    patient = entity["type"] == "patient"
    code, display, role = ("1", "Person", ("1", "Patient")) if patient else ("2", "System Object", ("4", "Domain Resource"))
    details = [{"type": name, "valueString": entity[name]} for name in ("ver", "digest") if entity[name]]
    return {
        "what": {"identifier": _identifier(entity["type"], entity["id"])},
        "type": {"system": _ENTITY_TYPE, "code": code, "display": display},
        "role": {"system": _ENTITY_ROLE, "code": role[0], "display": role[1]},
        **({"detail": details} if details else {}),
    }


def _transaction(record: dict[str, Any]) -> list[dict[str, Any]]:
    """The BALP transaction entity: one id for everything that came of one request."""
    if not record["ctx"]["correlation"]:
        return []
    return [{"what": {"identifier": {"value": record["ctx"]["correlation"]}}, "type": {"system": _BALP_ENTITY, "code": "XrequestId"}}]


def _entry(seq: int, record: dict[str, Any]) -> dict[str, Any]:
    body = base64.b64encode(canonical(record)).decode()
    return {
        "what": {"identifier": _identifier("log:entry", str(seq))},
        "type": {"system": _ENTITY_TYPE, "code": "2", "display": "System Object"},
        "detail": [{"type": "record", "valueBase64Binary": body}],
    }
