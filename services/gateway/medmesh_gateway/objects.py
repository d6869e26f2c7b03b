"""Objects by SHA-256: uploads in pieces that can be resumed, downloads in ranges, both streamed."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel

from medmesh.contracts.message import ObjectRef
from medmesh.dicomweb import media, multipart
from medmesh.errors import Problem
from medmesh.security.access import decide
from medmesh.security.tokens import Actor
from medmesh.service.guard import Refusal
from medmesh.service.runtime import Runtime
from medmesh.store.objects.port import CHUNK, ObjectStore
from medmesh.store.unit import AuditEntry, Context, Entity, UnitOfWork
from medmesh_gateway.auth import body_digest
from medmesh_gateway.bodies import read_parts
from medmesh_gateway.inbox import Recording
from medmesh_gateway.ports import Ports
from medmesh_gateway.routes import ACTION

_BYTES = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
STORED: dict[int | str, dict[str, Any]] = {201: {"description": "The last piece: the object is stored"}}
PARTS: dict[int | str, dict[str, Any]] = {200: {"content": _BYTES}, 206: {"description": "A part", "content": _BYTES}}
READS = {ACTION: "object.read"}
WRITES = {
    ACTION: "object.write",
    "requestBody": {"required": True, "content": _BYTES},
    "parameters": [
        {"name": name, "in": "header", "required": False, "schema": {"type": "string"}} for name in ("Content-Digest", "Upload-Digest")
    ],
}


def mount(app: FastAPI, runtime: Runtime, ports: Ports) -> None:
    """Add the routes."""
    door = ports.door

    async def enter(request: Request, action: str, digest: str = "") -> Actor:
        # Sending a piece again is harmless, and so is reading.
        actor, _ = await door.actor(request, digest or body_digest(b""), again=True)
        await door.permit(actor, action)
        runtime.emission.check(action)
        return actor

    async def admit(actor: Actor, *named: str) -> None:
        """The guard, in front of stored files that are part of labelled objects; what it refuses is recorded here. What lies in scratch and
        is part of nothing is a single hospital's update, or a step of one: no person's to read. A hospital's node is not asked: it learns
        names only from what it was sent."""
        if actor.kind == "hospital":
            return
        access = runtime.guard.open(actor, "object.read", datetime.now(UTC))
        try:
            async with runtime.unit() as uow:
                for sha256 in named:
                    if not await access.read_file(uow, _name(sha256), "object.read") and await ports.stores.kept.size(sha256) is None:
                        raise Problem("objects.missing", sha256=sha256)
        except Refusal as refused:
            async with runtime.unit(runtime.context(actor=actor, decision=refused.decision)) as uow:
                uow.audit(refused.entry)
            raise

    async def transferred(actor: Actor, verb: str, kind: str, sha256: str, problem: Problem | None = None, **detail: int) -> None:
        await runtime.gathering.record(_context(runtime, actor, verb), _transferred(verb, kind, sha256, problem, **detail))

    @app.head("/v1/uploads/{sha256}", tags=["objects"], status_code=204, openapi_extra={ACTION: "object.write"})
    async def progress(sha256: str, request: Request) -> Response:
        """Where to go on: `Upload-Offset`, and `Upload-Complete: ?1` when the object is stored already."""
        actor = await enter(request, "object.write")
        size = await _target(ports, actor).size(_name(sha256))
        offset = size if size is not None else await ports.uploads.offset(actor.text, sha256)
        return Response(status_code=204, headers={"Upload-Offset": str(offset), "Upload-Complete": "?1" if size is not None else "?0"})

    @app.put("/v1/uploads/{sha256}", tags=["objects"], status_code=204, responses=STORED, openapi_extra=WRITES)
    async def upload(sha256: str, offset: int, total: int, request: Request, base: str = "", length: int = 0) -> Response:
        """One piece of at most 8 MiB with its `Content-Digest` (RFC 9530) or, in the same form, as `Upload-Digest` that of everything up to
        its end, which is what a node signs and needs no second hash; the last one stores the object.

        With `base` and `length` nothing is sent: the piece is what the object `base` has at the same place.
        """
        await door.known(request)
        piece = await read_parts(request, CHUNK)
        upto = "upload-digest" in request.headers
        digest = _digest(request, "upload-digest" if upto else "content-digest")
        actor = await enter(request, "object.write", digest)
        if base:
            await door.permit(actor, "object.read")
            await admit(actor, base)
            piece, digest = await _copied(ports, base, offset, length), ""
        elif not digest:
            raise Problem("request.invalid", reason="give the piece's Content-Digest or Upload-Digest")
        reached = await ports.uploads.append(actor.text, _name(sha256), offset, total, piece, digest, upto=upto)
        if reached == total:
            await transferred(actor, "object.write", "C", sha256, bytes=total)  # before: whoever is killed between leaves no unknown object
            try:
                await ports.uploads.finish(actor.text, sha256, _target(ports, actor))
            except Problem as problem:
                await transferred(actor, "object.write", "C", sha256, problem, bytes=total)
                raise
        headers = {"Upload-Offset": str(reached), "Upload-Complete": "?1" if reached == total else "?0"}
        return Response(status_code=201 if reached == total else 204, headers=headers)

    @app.get("/v1/objects/{sha256}", tags=["objects"], response_class=StreamingResponse, responses=PARTS, openapi_extra=READS)
    async def download(sha256: str, request: Request) -> Response:
        """The bytes; with `Range: bytes=a-b` a part of them."""
        actor = await enter(request, "object.read")
        await admit(actor, sha256)
        store = await ports.stores.holding(_name(sha256))
        size = await store.size(sha256) or 0
        start, end = _range(request, size)
        headers = {"Content-Length": str(end - start), "Accept-Ranges": "bytes", "ETag": f'"{sha256}"'}
        partial = (start, end) != (0, size)
        if partial:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        await transferred(actor, "object.read", "R", sha256, start=start, end=end)
        body = store.read(sha256, start, end)
        return StreamingResponse(body, status_code=206 if partial else 200, headers=headers, media_type="application/octet-stream")

    @app.get("/v1/objects/{sha256}/unchanged", tags=["objects"], openapi_extra=READS)
    async def unchanged(sha256: str, request: Request, since: str = "") -> Unchanged:
        """At which places an object is what the older object `since` was: who has that need not fetch them."""
        await admit(await enter(request, "object.read"), sha256, since)
        return Unchanged(bytes=CHUNK, pieces=await ports.comparing.same(_name(sha256), _name(since)))


async def enclosed(runtime: Runtime, ports: Ports, actor: Actor, ref: ObjectRef, parts: Sequence[bytes | memoryview]) -> Recording:
    """Store an object that came with the message that names it. What that message leads to is to record it: until then nobody but who sent
    it knows its name. Raises `Problem`."""
    await ports.door.permit(actor, "object.write")
    runtime.emission.check("object.write")
    await ports.uploads.whole(ref, parts, _target(ports, actor))
    return _recording(_context(runtime, actor, "object.write"), _transferred("object.write", "C", ref.sha256, bytes=ref.bytes))


def sent(runtime: Runtime, actor: Actor) -> Callable[[ObjectRef], Recording]:
    """What is recorded of an object that goes to a hospital with the fact that names it. Raises `Problem` when nothing can be."""

    def record(ref: ObjectRef) -> Recording:
        runtime.emission.check("object.read")
        return _recording(_context(runtime, actor, "object.read"), _transferred("object.read", "R", ref.sha256, start=0, end=ref.bytes))

    return record


def _recording(context: Context, entry: AuditEntry) -> Recording:
    """In a transaction that another asked for."""

    def recording(uow: UnitOfWork[Any]) -> None:
        before, uow.context = uow.context, context
        uow.audit(entry)
        uow.context = before

    return recording


def apart(content_type: str, body: Sequence[bytes]) -> tuple[bytes, list[memoryview]]:
    """(document, the bytes that it names) of a body in parts as they came (`multipart/related`). Raises `Problem`."""
    found: list[list[memoryview]] = []
    try:
        parser = multipart.Parser(media.parse(content_type).parameters.get("boundary", ""))
        for part in body:
            for event in parser.feed(part):
                match event:
                    case multipart.Headers():
                        found.append([])
                    case multipart.Data(data):
                        found[-1].append(data)
        parser.close()
    except Problem as problem:
        raise Problem("request.invalid", reason=f"{media.MULTIPART}: {problem.params.get('reason', 'its media type')}") from None
    if len(found) != 2:
        raise Problem("request.invalid", reason=f"{media.MULTIPART}: not a document and the bytes it names")
    return b"".join(found[0]), found[1]


class Unchanged(BaseModel):
    """The places that did not change, counted in pieces of `bytes` from the beginning."""

    bytes: int
    pieces: tuple[int, ...]


async def _copied(ports: Ports, base: str, offset: int, length: int) -> list[bytes]:
    """A piece of an object that is here. Raises `Problem` (`objects.missing`, `objects.piece`)."""
    if not 0 < length <= CHUNK or offset < 0:
        raise Problem("objects.piece", bytes=length, limit=CHUNK)
    store = await ports.stores.holding(_name(base))
    found = [part async for part in store.read(base, offset, offset + length)]
    if (size := sum(map(len, found))) != length:
        raise Problem("objects.piece", bytes=size, limit=CHUNK)
    return found


def _context(runtime: Runtime, actor: Actor, verb: str) -> Context:
    return runtime.context(actor=actor, decision=decide(actor, verb, datetime.now(UTC), rules=runtime.policies.rules))


def _transferred(verb: str, kind: str, sha256: str, problem: Problem | None = None, **detail: int) -> AuditEntry:
    """That bytes come or go."""
    outcome, why = (4, problem.code) if problem else (0, "")
    return AuditEntry(verb, kind, outcome, why, (Entity("object", sha256, digest=sha256),), detail=detail)


def _target(ports: Ports, actor: Actor) -> ObjectStore:
    """A hospital's upload is an update of a round: scratch, because the hospital keeps its copy. A person's is kept."""
    return ports.stores.scratch if actor.kind == "hospital" else ports.stores.kept


def _name(sha256: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise Problem("request.invalid", reason="an object's name is its SHA-256: 64 hexadecimal digits")
    return sha256


def _digest(request: Request, header: str) -> str:
    found = re.fullmatch(r"sha-256=:([A-Za-z0-9+/=]+):", request.headers.get(header, ""))
    try:
        return base64.b64decode(found.group(1), validate=True).hex() if found else ""
    except binascii.Error:
        return ""


def _range(request: Request, size: int) -> tuple[int, int]:
    header = request.headers.get("range")
    if header is None:
        return 0, size
    found = re.fullmatch(r"bytes=(\d+)-(\d*)", header.strip())
    if not found or int(found.group(1)) >= max(size, 1):
        raise Problem("request.range", size=size)
    return int(found.group(1)), min(size, int(found.group(2)) + 1) if found.group(2) else size
