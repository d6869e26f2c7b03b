"""Records over HTTP: search, one record, its proof, bodies for a copy. Reading the log is itself logged."""

from __future__ import annotations

import json
from typing import Annotated, Literal

from fastapi import FastAPI, Query

from medmesh.contracts.audit import MOST_EVENTS, Bodies, EventFilter, Events, Evidence, LoggedEvent
from medmesh.contracts.message import Instant
from medmesh.service.runtime import Runtime
from medmesh_audit import handlers, search
from medmesh_audit.door import Visitor, may
from medmesh_audit.ports import Ports


def mount(app: FastAPI, runtime: Runtime, ports: Ports) -> None:
    """Add the routes."""

    @app.get("/v1/events", tags=["events"], response_model_exclude_none=True)
    async def find(
        who: Visitor = may(runtime, "audit.read"),
        since: Annotated[Instant | None, Query(alias="from")] = None,
        until: Annotated[Instant | None, Query(alias="to", description="Not included")] = None,
        actor: Annotated[str | None, Query(description="For example person:li")] = None,
        org: Annotated[str | None, Query(description="Whose data it is about")] = None,
        patient: Annotated[str | None, Query(description="A patient's pseudonym")] = None,
        entity: Annotated[str | None, Query(description="KIND:ID")] = None,
        verb: Annotated[str | None, Query(description="A verb, or the beginning of one with *")] = None,
        type: Annotated[str | None, Query(description="DICOM event id, or rest")] = None,
        outcome: Literal["0", "4", "8", "12"] | None = None,
        purpose: Annotated[str | None, Query(description="HL7 v3 PurposeOfUse")] = None,
        correlation: str | None = None,
        cursor: Annotated[int | None, Query(ge=0, lt=2**53)] = None,
        limit: Annotated[int, Query(ge=1, le=MOST_EVENTS)] = 100,
    ) -> Events:
        """Records that fit, oldest first; the next page begins after `next`."""
        given = EventFilter(
            since=since, until=until, actor=actor, org=org, patient=patient, entity=entity, verb=verb, type=type, outcome=outcome,
            purpose=purpose, correlation=correlation,
        )  # fmt: skip
        async with runtime.unit(who.context) as uow:
            return await handlers.find(uow, given, who.scope, cursor, limit)

    @app.get("/v1/events/{event}", tags=["events"])
    async def one(event: str, who: Visitor = may(runtime, "audit.read")) -> LoggedEvent:
        """One record by its id or its number."""
        async with runtime.unit(who.context) as uow:
            row = await search.entry(uow, event, who.scope)
            handlers.looked(uow, "audit.read", row.seq)
            return LoggedEvent(seq=row.seq, record=json.loads(row.body))

    @app.get("/v1/events/{event}/proof", tags=["events"])
    async def proof(event: str, who: Visitor = may(runtime, "audit.read")) -> Evidence:
        """Leaf, salt, body and `.tlog-proof`: everything that proves it offline."""
        async with runtime.unit(who.context) as uow:
            return await handlers.prove(uow, ports, event, who.scope)

    @app.get("/v1/bodies", tags=["events"], response_model_exclude_none=True)
    async def copy(
        who: Visitor = may(runtime, "audit.read"),
        first: Annotated[int, Query(ge=0)] = 0,
        limit: Annotated[int, Query(ge=1, le=MOST_EVENTS)] = 500,
    ) -> Bodies:
        """Salt and body of every record one may read, for a copy that is verified offline; the beginning is recorded."""
        async with runtime.unit(who.context) as uow:
            return await handlers.copy(uow, who.scope, first, limit)
