"""One record of every verb, as the recorder makes them, with fixed identifiers and times."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from medmesh.auditing.vocabulary import VERBS
from medmesh.security.roles import Decision
from medmesh.security.tokens import Actor
from medmesh.service.recording import recorder
from medmesh.store.unit import AuditEntry, Context, Entity

WHO = Actor("person", "li", "platform", frozenset(("researcher", "auditor")), "password")


def made(entry: AuditEntry, *, actor: Actor | None = WHO, decision: Decision | None = None, n: int = 7, node: str = "") -> dict[str, Any]:
    """The record of `entry`."""
    service, organisation = (f"edge:{node}", node) if node else ("federation", "medmesh")
    record = recorder(service=service, instance="host-1", organisation=organisation, version="0.1.0", node=bool(node))
    document: dict[str, Any] = json.loads(record(entry, Context(service, actor=actor, decision=decision), "0190-id", n, "0190-before"))
    return document


def fixed(verb: str) -> dict[str, Any]:
    """A record of `verb` that is the same at every run: for golden files."""
    denied = verb == "access.denied"
    entry = AuditEntry(
        verb,
        "C" if verb != "session.open" else "E",
        outcome=8 if denied else 0,
        why="access.denied" if denied else "",
        entities=(
            Entity("model", "mri-cnn", "2", "ab" * 32),
            Entity("patient", "p-5f21"),
            Entity("hospital", "renji"),
            Entity("user", "qian"),
        ),
        approval={"id": "0190-approval", "requester": "person:li@platform", "approvers": "person:zhao@platform"},
        detail={"hospitals": 3, "late": False, "note": "=1+1"},
    )
    record = made(entry, decision=Decision(not denied, "default" if denied else "role:researcher"))
    instant = datetime(2026, 11, 24, 3, 4, 5, 678901, tzinfo=UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    ctx = {"trace": "0af7651916cd43dd8448eb211c80319c", "correlation": "0190-correlation", "request": "0190-request"}
    return {**record, "t": instant, "tr": instant, "ctx": ctx, "policy": {**record["policy"], "bundle": "cd" * 32}}


ALL = {verb: fixed(verb) for verb in VERBS}
