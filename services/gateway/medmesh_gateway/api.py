"""The application: messages by the table in `routes`, operations, sessions. It validates and passes on; it computes nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from pydantic import ValidationError
from sqlalchemy import ARRAY, String, bindparam, column, false, func, select
from sqlalchemy.dialects.postgresql import insert
from starlette.types import ASGIApp

from medmesh.canonical import parse
from medmesh.contracts.governance import ActorToken, CloseSession, Done, ResolveSession
from medmesh.contracts.message import Command, Exchange, Message, OperationFinished, Query, Signal, new_id
from medmesh.contracts.refusals import stated
from medmesh.dicomweb.media import MULTIPART
from medmesh.errors import Problem
from medmesh.security.tokens import Actor
from medmesh.service.http import language, new_application, problem_response
from medmesh.service.runtime import Runtime
from medmesh.store.objects.port import CHUNK
from medmesh.store.postgres import is_transient
from medmesh.store.prepared import Prepared
from medmesh.store.unit import Context, UnitOfWork
from medmesh_gateway import hospitals, objects
from medmesh_gateway.auth import Door, body_digest, proven_key, shown_with
from medmesh_gateway.bodies import MAX_BODY, Unread, hung_up, read_body, read_parts
from medmesh_gateway.inbox import Recording
from medmesh_gateway.ports import Ports
from medmesh_gateway.routes import ACTION, OBJECTS, OPEN, OWN_SESSION, ROUTES, Route, schema_of
from medmesh_gateway.tables import operations

MAX_WAIT = 60.0
SESSION, CERTIFICATE = "session", "certificate"
"""The fields of a message that are filled with the request's own bearer, and with what its connection showed; never from the body."""
_ASKED = {"operation": String, "actor": String, "command": String, "idempotency_key": String}
_GIVEN = (
    func.unnest(*(bindparam(name, type_=ARRAY(kind)) for name, kind in _ASKED.items()))
    .table_valued(*(column(name, kind) for name, kind in _ASKED.items()), name="given")
    .render_derived()
)
_NOTE = Prepared(
    insert(operations)
    .from_select(
        [*_ASKED, "created_at", "finished"],
        # In order, so that two that share keys wait for each other instead of dead-locking.
        select(_GIVEN, bindparam("created_at", type_=operations.c.created_at.type), false()).order_by(
            _GIVEN.c.actor, _GIVEN.c.idempotency_key
        ),
    )
    .on_conflict_do_nothing()
    .returning(operations.c.operation)
)
_KNOWN = Prepared(
    select(operations.c.operation, operations.c.command).where(
        operations.c.actor == bindparam("actor"), operations.c.idempotency_key == bindparam("key")
    )
)
_OPERATION = Prepared(select(operations).where(operations.c.operation == bindparam("operation"), operations.c.actor == bindparam("actor")))


def application(runtime: Runtime, ports: Ports) -> FastAPI:
    """The gateway's HTTP application."""
    app = new_application("medmesh gateway", is_transient=is_transient)
    shared: dict[str, Any] = {"Operation": OPERATION_SCHEMA}

    @app.exception_handler(Unread)
    async def _unread(request: Request, problem: Unread) -> ASGIApp:
        return hung_up(problem, request)

    # What nodes ask for all the time is found first.
    objects.mount(app, runtime, ports)
    hospitals.mount(app, runtime, ports, shared)
    for route in ROUTES:
        app.add_api_route(
            route.path,
            _endpoint(runtime, ports, route),
            methods=[route.method],
            operation_id=route.message.TYPE.removesuffix(".v1").replace(".", "_").replace("-", "_"),
            summary=(route.message.__doc__ or "").strip().split("\n")[0],
            tags=[route.message.owner() if not issubclass(route.message, Signal) else "federation"],
            status_code=204 if issubclass(route.message, Signal) else 200,
            openapi_extra=_openapi(route, shared),
        )
    _mount_operations(app, runtime, ports)
    app.openapi()["components"]["schemas"].update(shared)  # kept by the application from here on
    return app


def _openapi(route: Route, shared: dict[str, Any]) -> dict[str, Any]:
    """A message's entry; the models inside it go to `shared`, where the entry refers to them."""
    schema = route.message.model_json_schema(ref_template="#/components/schemas/{model}")
    shared |= schema.pop("$defs", {})
    in_path = set(re.findall(r"{(\w+)}", route.path))
    unsaid = {SESSION, CERTIFICATE, *({"hospital"} if issubclass(route.message, Signal) else ())}  # of the credentials, not of the request
    fields = {name: field for name, field in schema.get("properties", {}).items() if name not in unsaid}
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": fields.get(name, {"type": "string"})} for name in sorted(in_path)
    ]
    said: dict[str, Any] = {ACTION: _action(route) or (OWN_SESSION if SESSION in route.message.model_fields else OPEN)}
    if not issubclass(route.message, Signal):
        said["responses"] = _answers(route.message, shared)
    if about := sorted({names.kind for names in route.message.OBJECTS} | ({route.message.LISTS} - {""})):
        said[OBJECTS] = about
    if route.method == "GET":
        parameters += [
            {"name": name, "in": "query", "required": name in schema.get("required", ()), "schema": field}
            for name, field in fields.items()
            if name not in in_path
        ]
        return {"parameters": parameters, **said}
    body = {**schema, "properties": {name: field for name, field in fields.items() if name not in in_path}}
    body["required"] = [name for name in schema.get("required", ()) if name in fields and name not in in_path]
    content: dict[str, Any] = {"application/json": {"schema": body}}
    if route.encloses:
        bytes_of = {"type": "string", "format": "binary", "description": f"What `{route.encloses}` names, where it was not uploaded before"}
        content[MULTIPART] = {"schema": {"type": "object", "properties": {"document": body, "bytes": bytes_of}}}
    return {**said, "parameters": parameters, "requestBody": {"required": True, "content": content}}


def _answers(message: type[Message], shared: dict[str, Any]) -> dict[str, Any]:
    """How a message is answered when it is fulfilled: a query with its reply, a command with its operation."""
    if issubclass(message, Query):
        return {"200": {"content": {"application/json": {"schema": schema_of(message.Reply, shared, sent=True)}}}}
    answer = {"application/json": {"schema": {"$ref": "#/components/schemas/Operation"}}}
    return {"200": {"content": answer}, "202": {"description": "It runs; ask again at `Location`", "content": answer}}


OPERATION_SCHEMA: dict[str, Any] = {
    "title": "Operation",
    "description": "A command on its way or fulfilled; a refused one is answered with its problem.",
    "type": "object",
    "properties": {
        "operation": {"type": "string"},
        "state": {"enum": ["running", "succeeded"]},
        "result": {"type": "object", "description": "There when it succeeded"},
    },
    "required": ["operation", "state"],
    "additionalProperties": False,
}


def bearer(request: Request) -> str:
    """The session a request came with. Raises `Problem`."""
    scheme, _, session = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not session:
        raise Problem("actor.missing", type=request.url.path)
    return session


def _message(route: Route, request: Request, body: bytes, actor: Actor | None) -> Message:
    """The validated message of a request. Raises `Problem` naming the fields at fault, never their values."""
    values: Any = dict(request.query_params)
    if route.method != "GET":
        try:
            values = parse(body or b"{}")
        except ValueError:
            raise Problem("request.invalid", reason="the body is not JSON") from None
        if not isinstance(values, dict):
            raise Problem("request.invalid", reason="the body is not an object")
    values.update(request.path_params)
    if issubclass(route.message, Signal) and actor is not None:
        if "hospital" in values:
            raise Problem("request.invalid", reason="hospital: it is the one that signed")
        values["hospital"] = actor.id
    if SESSION in route.message.model_fields:
        values[SESSION] = bearer(request)
    if CERTIFICATE in route.message.model_fields:
        values[CERTIFICATE] = shown_with(request)
    try:
        # JSON mode, because a path or query parameter is text: "3" is a version, and dates are ISO 8601.
        return route.message.model_validate_json(json.dumps(values))
    except ValidationError as error:
        if (problem := stated(error)) is not None:
            raise problem from None
        found = error.errors(include_input=False, include_url=False, include_context=False)[:5]
        where = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'request'}: {e['msg']}" for e in found)
        raise Problem("request.invalid", reason=where) from None


def _action(route: Route) -> str | None:
    return getattr(route.message, "ACTION", "federation.submit")


def _endpoint(runtime: Runtime, ports: Ports, route: Route) -> Any:
    action = _action(route)

    async def endpoint(request: Request) -> Response:
        if action is not None:
            await ports.door.known(request)
        body, bytes_with = await _read(route, request)
        actor: Actor | None = None
        token: str | None = None
        if action is not None:
            # That a command comes but once is seen to in its own transaction; a signal that comes again says nothing new.
            once = issubclass(route.message, Command | Signal)
            actor, token = await ports.door.actor(request, body_digest(body), action, again=once)
            await ports.door.permit(actor, action)
        async with runtime.doorstep.proving(request):
            message = _message(route, request, body, actor)
        if isinstance(message, Query):
            async with nullcontext() if isinstance(message, Exchange) else runtime.doorstep.proving(request):  # owners record exchanges
                answer = await runtime.ask(message, message.Reply, token=token)
            if SESSION in route.message.model_fields:
                ports.door.forget(bearer(request))  # what it may do has just changed
            return Response(answer.model_dump_json(), media_type="application/json")
        assert actor is not None
        if isinstance(message, Signal):
            await runtime.signal(message)
            return Response(status_code=204)
        assert isinstance(message, Command)
        recording = None
        if bytes_with is not None:
            recording = await objects.enclosed(runtime, ports, actor, getattr(message, route.encloses), bytes_with)
        return await _command(runtime, ports, _Asked(new_id(), request, message, actor, token, _key(request), recording))

    endpoint.__name__ = route.message.__name__
    return endpoint


async def _read(route: Route, request: Request) -> tuple[bytes, list[memoryview] | None]:
    """A request's document, and the bytes it names where they come with it. Raises `Problem`."""
    kind = request.headers.get("content-type", "") if route.encloses else ""
    if not kind.lower().startswith(MULTIPART):
        return await read_body(request), None
    body, bytes_with = objects.apart(kind, await read_parts(request, MAX_BODY + CHUNK))
    if len(body) > MAX_BODY:
        raise Problem("request.too_large", limit=MAX_BODY)
    return body, bytes_with


@dataclass(frozen=True)
class _Asked:
    """A command, and who asks for it how."""

    operation: str
    request: Request
    command: Command
    actor: Actor
    token: str | None
    key: str | None = None
    """Under which a repetition is known."""
    recording: Recording | None = None
    """What is recorded in the transaction that begins the operation."""


def _key(request: Request) -> str | None:
    key = request.headers.get("idempotency-key")
    if key is not None and not 8 <= len(key) <= 128:
        raise Problem("request.invalid", reason="Idempotency-Key: 8 to 128 characters")
    return key


async def _command(runtime: Runtime, ports: Ports, asked: _Asked) -> Response:
    operation, request, actor = asked.operation, asked.request, asked.actor
    waiting = ports.waiting.expect(operation)  # from before the commit on
    try:
        fresh, known = await runtime.gathering.run(_begin, runtime.context(actor=actor, token=asked.token), asked)
        if not fresh:
            raise Problem("security.request_replayed")
        if known is None:
            found: Any = await waiting.within(wait) if (wait := _wait(request)) else None
            return _answer(operation, found or await _operation(runtime, operation, actor), request)
    finally:
        ports.waiting.forget(operation)
    return await _answered(runtime, ports, request, known, actor)


async def _answered(runtime: Runtime, ports: Ports, request: Request, operation: str, actor: Actor) -> Response:
    """What became of an operation that began before; held for as long as the request says."""
    waiting = ports.waiting.expect(operation)
    try:
        found: Any = await _operation(runtime, operation, actor)
        if not found.finished and (wait := _wait(request)):
            found = await waiting.within(wait) or await _operation(runtime, operation, actor)
    finally:
        ports.waiting.forget(operation)
    return _answer(operation, found, request)


async def _begin(uow: UnitOfWork[Ports], wanted: Sequence[tuple[Context, _Asked]]) -> list[tuple[bool, str | None]]:
    """Write operations and their commands in one transaction: of each, whether its request is no replay, and the operation that a repeated
    key began before."""
    unseen = await uow.ports.door.unseen(uow, [(context, asked.request) for context, asked in wanted])
    fresh = [one for one, is_fresh in zip(wanted, unseen, strict=True) if is_fresh]
    noted = await _note(uow, [asked for _, asked in fresh])
    known: dict[str, str | None] = {}
    for uow.context, asked in fresh:
        if asked.recording is not None:
            asked.recording(uow)
        if asked.operation in noted:
            uow.emit(asked.command, hospital=asked.actor.id if asked.actor.kind == "hospital" else None, id=asked.operation)
        else:
            known[asked.operation] = await _known(uow, asked)
    return [(is_fresh, known.get(asked.operation)) for is_fresh, (_, asked) in zip(unseen, wanted, strict=True)]


async def _note(uow: UnitOfWork[Ports], begun: Sequence[_Asked]) -> set[str]:
    """Write operations down; answers those that did not begin with their key before. Of two at once the second waits here for the first."""
    if not begun:
        return set()
    values = {
        "operation": [asked.operation for asked in begun],
        "actor": [asked.actor.text for asked in begun],
        "command": [asked.command.TYPE for asked in begun],
        "idempotency_key": [asked.key for asked in begun],
    }
    return {row.operation for row in await uow.rows(_NOTE, **values, created_at=uow.now)}


async def _known(uow: UnitOfWork[Ports], asked: _Asked) -> str:
    """The operation that began with this key before."""
    if (known := await uow.one(_KNOWN, actor=asked.actor.text, key=asked.key)) is None:
        raise Problem("request.in_progress")
    if known.command != asked.command.TYPE:
        raise Problem("request.key_reused", key=asked.key)
    return str(known.operation)


def _wait(request: Request) -> float:
    """Seconds from `Prefer: wait=N` (RFC 7240 §4.3)."""
    found = re.search(r"\bwait=(\d{1,4})\b", request.headers.get("prefer", ""))
    return min(float(found.group(1)), MAX_WAIT) if found else 0.0


async def _operation(runtime: Runtime, operation: str, actor: Actor) -> Any:
    found = await runtime.database.look(_OPERATION, operation=operation, actor=actor.text)
    if not found:
        raise Problem("request.not_found", kind="operation", id=operation)
    return found[0]


def _answer(operation: str, found: Any, request: Request) -> Response:
    """202 while it runs, 200 with the result, or the owner's problem. `found` is the owner's answer, or the operation's row."""
    where = {"Location": f"/v1/operations/{operation}", "Operation-Id": operation}
    if not isinstance(found, OperationFinished) and not found.finished:
        return JSONResponse({"operation": operation, "state": "running"}, status_code=202, headers={**where, "Retry-After": "1"})
    if found.succeeded:
        document = {"operation": operation, "state": "succeeded", "result": found.result or {}}
        return JSONResponse(document, headers=where)
    return problem_response(Problem.from_document(found.problem), language(request), where)


def _mount_operations(app: FastAPI, runtime: Runtime, ports: Ports) -> None:
    door: Door = ports.door

    answered = {"application/json": {"schema": {"$ref": "#/components/schemas/Operation"}}}
    answers = {"200": {"content": answered}, "202": {"description": "It still runs", "content": answered}}

    @app.get("/v1/operations/{operation}", tags=["operations"], openapi_extra={ACTION: "operation.read", "responses": answers})
    async def operation(operation: str, request: Request) -> Response:
        """What became of a command; with `Prefer: wait=N` the answer waits."""
        actor, _ = await door.actor(request, body_digest(b""))
        await door.permit(actor, "operation.read")
        return await _answered(runtime, ports, request, operation, actor)

    @app.post("/v1/tokens/{audience}", tags=["governance"], openapi_extra={ACTION: OWN_SESSION})
    async def token(audience: str, request: Request) -> ActorToken:
        """Exchange the session for a short-lived token for the audit or the inference service. With a `DPoP` header (RFC 9449) it is good
        only together with that key; without one, only where the session's certificate is shown, or where the door takes unbound ones."""
        async with runtime.doorstep.proving(request):
            session = bearer(request)
            if audience not in ("audit", "inference"):
                raise Problem("request.not_found", kind="audience", id=audience)
            return await runtime.ask(
                ResolveSession(session=session, audience=audience, certificate=shown_with(request), key=proven_key(request)), ActorToken
            )

    @app.delete("/v1/sessions", tags=["governance"], status_code=204, openapi_extra={ACTION: OWN_SESSION})
    async def sign_out(request: Request) -> None:
        """Sign out."""
        async with runtime.doorstep.proving(request):
            session = bearer(request)
        await runtime.ask(CloseSession(session=session), Done)
        door.forget(session)

    @app.get("/v1/trust", tags=["governance"], openapi_extra={ACTION: OPEN})
    async def trust() -> dict[str, Any]:
        """Public keys of the platform: whoever verifies offline compares them with what was handed over at installation."""
        return runtime.trust().document()

    @app.get("/v1/roster", tags=["governance"], openapi_extra={ACTION: OPEN})
    async def roster() -> dict[str, Any]:
        """Every version of the roster: whoever has pinned one believes those after it by their signatures alone."""
        return {"versions": list(runtime.roster.chain().notes)}
