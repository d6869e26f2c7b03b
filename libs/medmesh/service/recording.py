"""From what a handler says of an action to the canonical audit record (`medmesh.ledger.record`)."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from medmesh.ledger.record import record_bytes
from medmesh.security.tokens import Actor
from medmesh.store.unit import AuditEntry, Context, Recorder

_KINDS = {"C": "create", "R": "read", "U": "update", "D": "delete", "E": "execute"}


def recorder(*, service: str, instance: str, organisation: str, version: str) -> Recorder:
    """The recorder of one emitter."""
    source = {"service": service, "instance": instance, "node": "", "org": organisation, "ver": version}

    def record(entry: AuditEntry, context: Context, record_id: str, n: int, previous: str) -> bytes:
        now = datetime.now(UTC)
        occurred = context.cause.time if context.cause is not None else now
        document: dict[str, Any] = {
            "v": 1,
            "id": record_id,
            "t": _instant(occurred),
            "tr": _instant(now),
            "src": source,
            "type": {"system": "http://terminology.hl7.org/CodeSystem/audit-event-type", "code": "rest"},
            "sub": entry.verb,
            "act": entry.action,
            "out": entry.outcome,
            "why": entry.why,
            "agents": [_agent(context.actor, service)],
            "pou": entry.purpose,
            "entities": [{"type": e.kind, "id": e.id, "ver": e.version, "digest": e.digest} for e in entry.entities],
            "approval": dict(entry.approval or {}),
            "ctx": {
                "trace": (context.traceparent or "--").split("-")[1],
                "correlation": (context.cause.correlationid or context.cause.id) if context.cause is not None else "",
                "request": context.cause.id if context.cause is not None else "",
            },
            "detail": dict(entry.detail),
            "prev": previous,
            "n": n,
        }
        return record_bytes(document)

    return record


def _agent(actor: Actor | None, service: str) -> dict[str, Any]:
    if actor is None:
        return {"who": f"service:{service}", "role": "110150", "org": "", "req": False}
    return {"who": f"{actor.kind}:{actor.id}", "role": ",".join(sorted(actor.roles)), "org": actor.organisation, "req": True}


def _instant(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
