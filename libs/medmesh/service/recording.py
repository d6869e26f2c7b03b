"""From what a handler says of an action to the canonical audit record (`medmesh.ledger.record`)."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from medmesh.auditing.vocabulary import PURPOSES, VERBS, coding
from medmesh.ledger.record import VERSION, record_bytes
from medmesh.security.access import HIDDEN, policy_digest
from medmesh.security.tokens import Actor
from medmesh.store.unit import AuditEntry, Context, Entity, Recorder

UNKNOWN = "unknown"
"""The organisation of a name that nobody has: whoever tries it belongs to none."""
PLATFORM = "platform"
"""The compartment of what is about nobody's data in particular."""


def recorder(
    *, service: str, instance: str, organisation: str, version: str, node: bool = False, bundle: Callable[[], str] | None = None
) -> Recorder:
    """The recorder of one emitter; `bundle` is the digest of the rules it decides by. It raises `ValueError` for a verb or a purpose
    outside `medmesh.auditing.vocabulary`."""
    source = {"service": service, "instance": instance, "node": instance if node else "", "org": organisation, "ver": version}

    def record(entry: AuditEntry, context: Context, record_id: str, n: int, previous: str) -> bytes:
        if entry.verb not in VERBS or (entry.purpose and entry.purpose not in PURPOSES):
            raise ValueError(f"the audit vocabulary has no verb {entry.verb} with the purpose {entry.purpose or 'of its own'}")
        now = datetime.now(UTC)
        occurred = entry.at or (context.cause.time if context.cause is not None else now)
        document: dict[str, Any] = {
            "v": VERSION,
            "id": record_id,
            "t": _instant(occurred),
            "tr": _instant(now),
            "src": source,
            "type": coding(entry.verb),
            "sub": entry.verb,
            "act": entry.action,
            "out": entry.outcome,
            "why": entry.why,
            "agents": [_agent(context.actor, service)],
            "pou": _purpose(entry, context.actor),
            "entities": [{"type": e.kind, "id": e.id, "ver": e.version, "digest": e.digest} for e in _entities(entry, context.actor)],
            "orgs": _compartments(entry, context.actor, organisation if node else ""),
            "policy": _policy(context, (bundle or policy_digest)()),
            "approval": _approval(entry, context.actor),
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
        return {"who": f"service:{service}", "role": "110150", "org": "", "req": False, "method": ""}
    who = {"who": f"{actor.kind}:{actor.id}", "role": ",".join(sorted(actor.roles)), "org": actor.organisation, "req": True}
    return {**who, "method": f"{actor.method} sha256:{actor.certificate}" if actor.certificate else actor.method}


def _purpose(entry: AuditEntry, actor: Actor | None) -> str:
    """Whatever is done under an emergency access is done for that."""
    return "BTG" if actor is not None and actor.emergency else entry.purpose or VERBS[entry.verb].purpose


def _entities(entry: AuditEntry, actor: Actor | None) -> tuple[Entity, ...]:
    """The emergency access is among them, so that whoever reviews it finds everything that was done under it by one search."""
    return (*entry.entities, Entity("emergency", actor.emergency.id)) if actor is not None and actor.emergency else tuple(entry.entities)


def _approval(entry: AuditEntry, actor: Actor | None) -> dict[str, str]:
    return {**(entry.approval or {}), **({"emergency": actor.emergency.id} if actor is not None and actor.emergency else {})}


def _compartments(entry: AuditEntry, actor: Actor | None, own: str) -> list[str]:
    """Whose data a record is about. What a node records is its hospital's alone, whoever else is named in it."""
    if own:
        return [own]
    if entry.verb == "access.denied" and entry.why == HIDDEN:
        return [PLATFORM]  # it tells that the object exists: nothing for the organisation that may not know
    found = {*entry.hospitals, *(entity.id for entity in entry.entities if entity.kind == "hospital")}
    if actor is not None and actor.kind != "service":
        found.add(actor.organisation)
        found |= {actor.emergency.organisation} if actor.emergency else set()
    named = found - {PLATFORM, UNKNOWN}
    return sorted(named) or [PLATFORM]


def _policy(context: Context, bundle: str) -> dict[str, Any]:
    """`internal` is what nobody asked for: a timer, a start, a fact of another service."""
    decided = context.decision
    if decided is None:
        return {"decision": "internal", "rules": [], "bundle": bundle}
    return {"decision": "permit" if decided.allowed else "deny", "rules": list(decided.rules), "bundle": decided.policy or bundle}


def _instant(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
