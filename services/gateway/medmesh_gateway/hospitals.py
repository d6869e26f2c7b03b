"""What only a hospital's node uses: its inbox, and the hand-in of its audit records."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response, StreamingResponse
from pydantic import ValidationError

from medmesh.contracts.audit import AuditBatch, Receipts, Sighting, Sightings, record_subject
from medmesh.contracts.federation import HospitalAlive
from medmesh.errors import Problem
from medmesh.service.runtime import Runtime
from medmesh.store.objects.port import ENCLOSED
from medmesh.telemetry import log
from medmesh_gateway import inbox, sightings
from medmesh_gateway.auth import body_digest, certificate_of, revoked
from medmesh_gateway.bodies import read_body
from medmesh_gateway.objects import sent
from medmesh_gateway.ports import Ports
from medmesh_gateway.routes import ACTION, schema_of

Barred = Callable[[], bool]
"""Whether the node was revoked since it connected."""
MAX_AUDIT = 600_000
LONGEST_POLL = 30.0
_UNHELD = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
STREAM_SECONDS = 3600.0
"""A stream ends after an hour: the node comes back with a fresh token and is checked again."""


def mount(app: FastAPI, runtime: Runtime, ports: Ports, shared: dict[str, Any]) -> None:
    """Add the routes."""

    stream: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}}

    @app.get("/v1/inbox", tags=["hospital"], responses=stream, openapi_extra={ACTION: "inbox.read"})
    async def read_inbox(request: Request, after: int = 0, wait: float = 0, enclose: int = 0) -> Response:
        """Facts for this hospital after a cursor: as server-sent events where they are accepted, else as JSON (long polling).

        An event that is sent as it happens has the object it names with it, base64 in a field `object`, if that has at most `enclose` bytes
        (and not more than 2 MiB); it is to be fetched otherwise. Of the streams of a hospital the eight newest stay open: one that was
        displaced ends with a field `problem`.
        """
        actor, token = await ports.door.actor(request, body_digest(b""))
        await ports.door.permit(actor, "inbox.read")
        certificate = certificate_of(token)

        def barred() -> bool:
            return revoked(runtime, certificate)

        resumed = request.headers.get("last-event-id", "")
        after = int(resumed[:20]) if resumed.isdecimal() else after
        if not 0 <= after <= inbox.LAST:
            raise Problem("request.invalid", reason="after: the cursor of a fact that was read")
        if "text/event-stream" in request.headers.get("accept", ""):
            if enclose:
                await ports.door.permit(actor, "object.read")
            listen = partial(ports.doorbells.listen, actor.id, min(enclose, ENCLOSED), sent(runtime, actor))
            events = _stream(runtime, ports, listen, actor.id, after, barred)
            return StreamingResponse(events, media_type="text/event-stream", headers=_UNHELD)
        rows = await _poll(runtime, ports, actor.id, after, min(wait, LONGEST_POLL), barred)
        document = [{"cursor": row.cursor, "event": json.loads(row.body)} for row in rows]
        return Response(json.dumps({"events": document}, ensure_ascii=False), media_type="application/json")

    batch = {"required": True, "content": {"application/json": {"schema": schema_of(AuditBatch, shared)}}}

    receipts = {"200": {"content": {"application/json": {"schema": schema_of(Receipts, shared, sent=True)}}}}
    batches = {ACTION: "audit.append", "requestBody": batch, "responses": receipts}

    @app.post("/v1/audit/records", tags=["hospital"], openapi_extra=batches)
    async def hand_in(request: Request) -> Response:
        """A hospital's audit records, passed to the log as they are; the answer is the log's receipt."""
        await ports.door.known(request)
        body = await read_body(request, MAX_AUDIT)
        # The log takes a record once, however often it is handed in.
        actor, token = await ports.door.actor(request, body_digest(body), again=True)
        await ports.door.permit(actor, "audit.append")
        try:
            batch = AuditBatch.model_validate_json(body, extra="ignore").model_copy(update={"actor": token})
        except ValidationError:
            raise Problem("request.invalid", reason="not a batch of audit records") from None
        try:
            answer = await runtime.bus.request(record_subject("edge"), batch.model_dump_json().encode(), timeout=10)
        except TimeoutError:
            raise Problem("bus.no_responder", subject="audit") from None
        return Response(answer, media_type="application/json")

    one = {"required": True, "content": {"application/json": {"schema": schema_of(Sighting, shared)}}}
    some = {"200": {"content": {"application/json": {"schema": schema_of(Sightings, shared, sent=True)}}}}

    @app.post("/v1/audit/sightings", tags=["hospital"], openapi_extra={ACTION: "audit.append", "requestBody": one, "responses": some})
    async def show(request: Request) -> Response:
        """The checkpoint of the log this hospital was shown, against those of a few others: so that all are shown one log."""
        await ports.door.known(request)
        body = await read_body(request)
        actor, _ = await ports.door.actor(request, body_digest(body))
        await ports.door.permit(actor, "audit.append")
        async with runtime.unit(runtime.context(actor=actor)) as uow:
            answer = await sightings.exchange(uow, actor.id, sightings.read(body))
        return Response(answer.model_dump_json(), media_type="application/json")


async def _poll(runtime: Runtime, ports: Ports, hospital: str, after: int, wait: float, barred: Barred) -> Sequence[Any]:
    ear = ports.doorbells.listen(hospital)
    try:
        await runtime.signal(HospitalAlive(hospital=hospital))
        rows = await inbox.read(runtime.database, hospital, after)
        end = asyncio.get_running_loop().time() + wait
        while not rows and not ear.displaced and (left := end - asyncio.get_running_loop().time()) > 0 and not ports.stopping.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(min(left, ports.settings.alive_seconds)):
                    await ear.bell.wait()
            ear.bell.clear()
            if barred():
                raise Problem("security.certificate_revoked", hospital=hospital)
            await runtime.signal(HospitalAlive(hospital=hospital))
            rows = await inbox.read(runtime.database, hospital, after)
        return rows
    finally:
        ports.doorbells.leave(hospital, ear)


async def _stream(
    runtime: Runtime, ports: Ports, listen: Callable[[], inbox.Ear], hospital: str, after: int, barred: Barred
) -> AsyncIterator[bytes | memoryview]:
    ear, handed = listen(), list[inbox.Fact]()
    clock = asyncio.get_running_loop().time
    end, told = clock() + STREAM_SECONDS, float("-inf")
    try:
        yield b": welcome\n\n"
        while clock() < end and not ports.stopping.is_set() and not barred():
            if ear.displaced:
                log("gateway.stream.displaced", level=30, hospital=hospital)
                yield inbox.ended(Problem("inbox.displaced", hospital=hospital, most=inbox.MOST))
                return
            ear.bell.clear()
            if clock() - told >= ports.settings.alive_seconds / 2:
                told = clock()
                await runtime.signal(HospitalAlive(hospital=hospital))
            rows = handed or await inbox.read(runtime.database, hospital, after)
            for row in rows:
                after = row.cursor
                for part in inbox.written(row):
                    yield part
            if len(rows) < inbox.PAGE:
                with suppress(TimeoutError):
                    async with asyncio.timeout(ports.settings.alive_seconds):
                        await ear.bell.wait()
                if not ear.bell.is_set():
                    yield b": alive\n\n"
            handed = ear.after(after)
    finally:
        ports.doorbells.leave(hospital, ear)
