"""FHIR R4: `GET /fhir/AuditEvent` with the search parameters of IHE BALP, and what this server can do."""

from __future__ import annotations

import calendar
import json
import re
from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Query, Request
from fastapi.responses import Response
from sqlalchemy import ColumnElement, select

from medmesh.auditing.fhir import audit_event
from medmesh.contracts.audit import MOST_EVENTS, EventFilter
from medmesh.errors import Problem
from medmesh.service.runtime import Runtime
from medmesh_audit import handlers, search
from medmesh_audit.door import OPEN, Visitor, may
from medmesh_audit.tables import entries, facts

MEDIA_TYPE = "application/fhir+json"
_ANSWERS: dict[int | str, dict[str, Any]] = {200: {"content": {MEDIA_TYPE: {"schema": {"type": "object"}}}}}
PARAMETERS = {
    "date": ("date", "When it was recorded; prefixes eq, ge, gt, le, lt"),
    "agent": ("token", "Who took part, for example person:li"),
    "entity": ("token", "What it was about: KIND:ID or urn:medmesh:KIND|ID"),
    "patient": ("token", "A patient's pseudonym"),
    "outcome": ("token", "0, 4, 8 or 12"),
    "type": ("token", "DICOM event id, or rest"),
}
_DATE = re.compile(r"(eq|ge|gt|le|lt)?(\d{4}(?:-\d\d(?:-\d\d)?)?|\d{4}-\d\d-\d\dT\d\d:\d\d(?::\d\d(?:\.\d+)?)?(?:Z|[+-]\d\d:\d\d))")


def mount(app: FastAPI, runtime: Runtime) -> None:
    """Add the routes."""

    @app.get("/fhir/metadata", tags=["fhir"], response_class=Response, responses=_ANSWERS, openapi_extra=OPEN)
    async def metadata(request: Request) -> Response:
        """The CapabilityStatement; open to everybody, as FHIR asks."""
        return _fhir(capabilities(str(request.base_url).rstrip("/") + "/fhir"))

    @app.get("/fhir/AuditEvent", tags=["fhir"], response_class=Response, responses=_ANSWERS)
    async def find(
        request: Request,
        who: Visitor = may(runtime, "audit.read"),
        date: Annotated[list[str] | None, Query(max_length=8)] = None,
        agent: str | None = None,
        entity: str | None = None,
        patient: str | None = None,
        outcome: Literal["0", "4", "8", "12"] | None = None,
        type: str | None = None,
        count: Annotated[int, Query(alias="_count", ge=1, le=MOST_EVENTS)] = 100,
        cursor: Annotated[int | None, Query(alias="_cursor", ge=0, lt=2**53)] = None,
    ) -> Response:
        """A searchset Bundle; the link `next` leads on."""
        if unknown := set(request.query_params) - {*PARAMETERS, "_count", "_cursor", "_format"}:
            raise Problem("request.invalid", reason=f"{min(unknown)}: this server searches by {', '.join(PARAMETERS)}")
        given = EventFilter(
            actor=_value(agent, "actor"), entity=_entity(entity), patient=_value(patient, "patient"), outcome=outcome,
            type=type.rpartition("|")[2] if type else None,
        )  # fmt: skip
        wanted = search.conditions(select(facts.c.seq, entries.c.body).join(entries, entries.c.seq == facts.c.seq), given)
        for text in date or ():
            wanted = wanted.where(*recorded(text))
        async with runtime.unit(who.context) as uow:
            found = await search.read(uow, search.restrict(wanted, who.scope), cursor, count)
            if cursor is None:
                handlers.asked(uow, given, len(found.events))
        return _fhir(bundle(str(request.url), request, [(event.seq, event.record) for event in found.events], found.next))

    @app.get("/fhir/AuditEvent/{event}", tags=["fhir"], response_class=Response, responses=_ANSWERS)
    async def one(event: str, who: Visitor = may(runtime, "audit.read")) -> Response:
        """One resource."""
        async with runtime.unit(who.context) as uow:
            row = await search.entry(uow, event, who.scope)
            handlers.looked(uow, "audit.read", row.seq)
            return _fhir(audit_event(row.seq, json.loads(row.body)))


def bundle(url: str, request: Request, found: list[tuple[int, dict[str, Any]]], following: int | None) -> dict[str, Any]:
    """The answer to a search."""
    base = str(request.base_url).rstrip("/") + "/fhir/AuditEvent"
    links = [{"relation": "self", "url": url}]
    if following is not None:
        links.append({"relation": "next", "url": str(request.url.include_query_params(_cursor=following))})
    matches = [
        {"fullUrl": f"{base}/{record['id']}", "resource": audit_event(seq, record), "search": {"mode": "match"}} for seq, record in found
    ]
    return {"resourceType": "Bundle", "type": "searchset", "link": links, **({"entry": matches} if matches else {})}


def capabilities(base: str) -> dict[str, Any]:
    """What this server can do."""
    parameters = [{"name": name, "type": kind, "documentation": said} for name, (kind, said) in PARAMETERS.items()]
    resource = {
        "type": "AuditEvent",
        "interaction": [{"code": "read"}, {"code": "search-type"}],
        "searchParam": parameters,
    }
    return {
        "resourceType": "CapabilityStatement",
        "status": "active",
        "date": "2026-11-26",
        "kind": "instance",
        "implementation": {"description": "medmesh audit log: read only, every answer is itself recorded", "url": base},
        "fhirVersion": "4.0.1",
        "format": ["json"],
        "rest": [{"mode": "server", "resource": [resource]}],
    }


def recorded(text: str) -> list[ColumnElement[bool]]:
    """The conditions of one `date` parameter: a value stands for the whole of its day, month or year. Raises `Problem`."""
    match = _DATE.fullmatch(text.replace(" ", "+"))  # a plus sign that a client forgot to escape
    try:
        if match is None:
            raise ValueError
        start, end = _interval(match.group(2))
    except ValueError:
        raise Problem("request.invalid", reason="date: eq, ge, gt, le or lt before a FHIR date or instant") from None
    column = facts.c.recorded
    return {
        "eq": [column >= start, column < end],
        "ge": [column >= start],
        "gt": [column >= end],
        "le": [column < end],
        "lt": [column < start],
    }[match.group(1) or "eq"]


def _interval(value: str) -> tuple[datetime, datetime]:
    if "T" in value:
        start = datetime.fromisoformat(value)
        seconds = value[11:].partition("Z")[0].split("+")[0].split("-")[0]
        step = (
            timedelta(minutes=1) if seconds.count(":") == 1 else timedelta(seconds=1) if "." not in seconds else timedelta(microseconds=1)
        )
        return start, start + step
    parts = [int(part) for part in value.split("-")]
    first = date(*[*parts, 1, 1][:3])
    days = 1 if len(parts) == 3 else calendar.monthrange(*parts)[1] if len(parts) == 2 else 366 if calendar.isleap(parts[0]) else 365
    start = datetime(first.year, first.month, first.day, tzinfo=UTC)
    return start, start + timedelta(days=days)


def _value(token: str | None, kind: str) -> str | None:
    """The value of a token; a system other than ours fits nothing."""
    if token is None:
        return None
    system, bar, value = token.rpartition("|")
    return value if not bar or system in ("", f"urn:medmesh:{kind}") else f"{system}|{value}"


def _entity(token: str | None) -> str | None:
    if token is None or "|" not in token:
        return token
    system, _, value = token.rpartition("|")
    return f"{system.removeprefix('urn:medmesh:')}:{value}"


def _fhir(document: dict[str, Any]) -> Response:
    return Response(json.dumps(document, ensure_ascii=False), media_type=MEDIA_TYPE)
