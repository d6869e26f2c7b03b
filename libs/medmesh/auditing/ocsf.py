"""A record as an OCSF 1.6.0 event: Authentication (3002), Account Change (3001), and API Activity (6003) for everything else."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from medmesh.canonical import canonical

SCHEMA = "1.6.0"
_SEVERITY = {0: 1, 4: 3, 8: 4, 12: 5}
_ACTIVITY = {"C": 1, "R": 2, "U": 3, "D": 4}
_ACCOUNT = {"user.create": 1, "governance.bootstrap": 1, "user.activate": 2}
_SESSION = {"session.open": 1, "session.close": 2}


def event(seq: int, record: dict[str, Any]) -> dict[str, Any]:
    """The event of record `seq`. Lossless: `raw_data` is the canonical record."""
    agent, source, verb = record["agents"][0], record["src"], record["sub"]
    who = {"uid": agent["who"], "name": agent["who"], **({"org": {"uid": agent["org"], "name": agent["org"]}} if agent["org"] else {})}
    made: dict[str, Any] = {
        "time": _milliseconds(record["t"]),
        "severity_id": _SEVERITY[record["out"]],
        "status_id": 1 if record["out"] == 0 else 2,
        "message": verb,
        "actor": {"user": who},
        "metadata": {
            "version": SCHEMA,
            "product": {"name": "medmesh", "vendor_name": "medmesh", "version": source["ver"]},
            "uid": record["id"],
            "sequence": seq,
            "event_code": record["type"]["code"],
            "logged_time": _milliseconds(record["tr"]),
            "log_name": "medmesh audit",
            "tenant_uid": ",".join(record["orgs"]),
        },
        "unmapped": {name: record[name] for name in ("pou", "policy", "approval", "detail", "ctx")},
        "raw_data": canonical(record).decode(),
    }
    if record["ctx"]["correlation"]:
        made["metadata"]["correlation_uid"] = record["ctx"]["correlation"]
    if record["why"]:
        made["status_code"] = record["why"]
    endpoint = {"svc_name": source["service"], "instance_uid": source["instance"]}
    if verb in _SESSION:
        return made | _class(3002, 3, _SESSION[verb]) | {"user": who, "service": {"name": source["service"]}}
    if verb in _ACCOUNT:
        changed = next((entity["id"] for entity in record["entities"] if entity["type"] == "user"), agent["who"])
        return made | _class(3001, 3, _ACCOUNT[verb]) | {"user": {"uid": f"person:{changed}", "name": changed}}
    resources = [_resource(entity) for entity in record["entities"]]
    return (
        made
        | _class(6003, 6, _ACTIVITY.get(record["act"], 99))
        | {"api": {"operation": verb, "service": {"name": source["service"]}}, "src_endpoint": endpoint}
        | ({"resources": resources} if resources else {})
    )


def _class(uid: int, category: int, activity: int) -> dict[str, int]:
    return {"class_uid": uid, "category_uid": category, "activity_id": activity, "type_uid": uid * 100 + activity}


def _resource(entity: dict[str, str]) -> dict[str, Any]:
    made: dict[str, Any] = {"uid": entity["id"], "name": f"{entity['type']}:{entity['id']}", "type": entity["type"]}
    if entity["ver"]:
        made["version"] = entity["ver"]
    if entity["digest"]:
        made["labels"] = [f"sha256:{entity['digest']}"]
    return made


def _milliseconds(instant: str) -> int:
    return int(datetime.fromisoformat(instant).timestamp() * 1000)
