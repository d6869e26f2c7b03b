"""The auditor's door: C2SP tlog-tiles, searches, proofs, and bodies for whoever may read them."""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Query, Request
from fastapi.responses import PlainTextResponse, Response

from medmesh.errors import Problem
from medmesh.ledger import tiles
from medmesh.security.roles import allow, denial
from medmesh.security.tokens import Actor, verify_actor
from medmesh.service.http import handle_errors
from medmesh.service.runtime import Runtime
from medmesh.store.postgres import is_transient
from medmesh.store.unit import AuditEntry, Entity
from medmesh_audit import queries

AUDIENCE = "audit"


def application(runtime: Runtime) -> FastAPI:
    """The HTTP application of audit."""
    app = FastAPI(title="medmesh audit", version="1", docs_url=None, redoc_url=None)
    handle_errors(app, is_transient=is_transient)

    def actor(request: Request) -> Actor:
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not token:
            raise Problem("actor.missing", type="audit")
        return verify_actor(token, runtime.trust(), datetime.now(UTC), audience=AUDIENCE)

    def may(action: str) -> Any:
        async def check(who: Actor = Depends(actor)) -> Actor:
            decision = allow(who, action)
            if not decision.allowed:
                problem = denial(decision, who, action)
                async with runtime.unit(runtime.context(actor=who)) as uow:
                    uow.audit(AuditEntry("access.denied", "E", outcome=8, why=problem.code, detail={"action": action}))
                raise problem
            return who

        check.action = action  # type: ignore[attr-defined]  # read by the matrix of roles and routes
        return Depends(check)

    @app.get("/log/checkpoint", response_class=PlainTextResponse)
    async def checkpoint(response: Response, who: Actor = may("audit.proof")) -> str:
        async with runtime.unit() as uow:
            shown = await runtime.ports.witnesses.newest(uow)
        response.headers["Medmesh-Witnesses"] = shown.state
        return str(shown.note)

    @app.get("/log/tile/{rest:path}")
    async def tile(rest: str, who: Actor = may("audit.proof")) -> Response:
        level, *parts = rest.split("/")
        try:
            number, width = tiles.parse(parts)
            chosen = int(level) if level != "entries" else -1
        except ValueError:
            raise Problem("request.not_found", kind="tile", id=rest) from None
        async with runtime.unit() as uow:
            if chosen < 0:
                body = await queries.entry_bundle(uow, number, width)
            else:
                body = await queries.tile_bytes(uow, chosen, number, width)
        return Response(body, media_type="application/octet-stream")

    @app.get("/v1/records")
    async def records(
        who: Actor = may("audit.read"),
        entity: str | None = None,
        actor: str | None = None,
        verb: Annotated[str | None, Query(description="A verb, or the beginning of one with *")] = None,
        since: datetime | None = None,
        until: datetime | None = None,
        org: str | None = None,
        after: int = -1,
        limit: int = 100,
    ) -> dict[str, Any]:
        async with runtime.unit(runtime.context(actor=who)) as uow:
            found = await queries.search(
                uow, entity=entity, who=actor, verb=verb, since=since, until=until, org=org, after=after, limit=limit
            )
            # Reading the log is itself logged: what was asked, not what was found.
            asked: dict[str, str | int | bool] = {"verb": verb or "", "actor": actor or "", "found": len(found["records"])}
            about = (Entity(*entity.split(":", 1)),) if entity and ":" in entity else ()
            uow.audit(AuditEntry("audit.search", "R", entities=about, detail=asked))
            return found

    @app.get("/v1/records/{seq}/proof")
    async def proof(seq: int, who: Actor = may("audit.read")) -> dict[str, Any]:
        async with runtime.unit(runtime.context(actor=who)) as uow:
            uow.audit(AuditEntry("audit.prove", "R", entities=(Entity("record", str(seq)),)))
            return await queries.record_proof(uow, seq, await runtime.ports.witnesses.newest(uow, covering=seq))

    @app.get("/v1/consistency")
    async def consistency(old: int, new: int, who: Actor = may("audit.proof")) -> dict[str, Any]:
        async with runtime.unit() as uow:
            size = (await queries.checkpoint(uow)).size
            if not 0 <= old <= new <= size:
                raise Problem("request.invalid", reason=f"0 <= old <= new <= {size}")
            path = await queries.consistency(uow, old, new)
            return {"old": old, "new": new, "proof": [base64.b64encode(p).decode() for p in path]}

    @app.get("/v1/bodies")
    async def bodies(first: int = 0, limit: int = 500, who: Actor = may("audit.read")) -> dict[str, Any]:
        async with runtime.unit(runtime.context(actor=who)) as uow:
            if first == 0:
                uow.audit(AuditEntry("audit.export", "R"))
            return {"bodies": await queries.bodies(uow, first, limit)}

    @app.get("/v1/coverage")
    async def coverage(who: Actor = may("audit.read")) -> dict[str, Any]:
        async with runtime.unit() as uow:
            return {"emitters": await queries.coverage(uow)}

    return app
