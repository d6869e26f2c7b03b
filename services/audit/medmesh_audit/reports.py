"""Reports over HTTP: coverage of emitters, lineage, evidence for MLPS Level 3, and approved exports."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, Response, StreamingResponse

from medmesh.contracts.audit import ExportView
from medmesh.contracts.message import ObjectRef
from medmesh.errors import Problem
from medmesh.service.http import language, problem_response
from medmesh.service.runtime import Runtime
from medmesh.store.unit import AuditEntry, Entity
from medmesh_audit import evidence, exports, lineage, queries
from medmesh_audit.door import Visitor, may
from medmesh_audit.ports import Ports

_ZIP: dict[int | str, dict[str, Any]] = {200: {"content": {"application/zip": {"schema": {"type": "string", "format": "binary"}}}}}


def mount(app: FastAPI, runtime: Runtime, ports: Ports) -> None:
    """Add the routes."""

    @app.get("/v1/coverage", tags=["reports"])
    async def coverage(who: Visitor = may(runtime, "audit.report")) -> dict[str, Any]:
        """Each emitter, how many records it handed in and when the last."""
        async with runtime.unit(who.context) as uow:
            uow.audit(AuditEntry("audit.coverage", "R"))
            return {"emitters": await queries.coverage(uow)}

    @app.get("/v1/lineage/{kind}/{id:path}", tags=["reports"])
    async def trace(kind: Literal["model", "dataset"], id: str, who: Visitor = may(runtime, "audit.read")) -> dict[str, Any]:
        """The traceability matrix of YY/T 1833.4: each cell with the records that prove it."""
        async with runtime.unit(who.context) as uow:
            uow.audit(AuditEntry("audit.lineage", "R", entities=(Entity(kind, id),)))
            return await lineage.trace(uow, kind, id, who.scope)

    @app.get("/v1/mlps/evidence", tags=["reports"], responses={200: {"content": {"text/html": {"schema": {"type": "string"}}}}})
    async def mlps(request: Request, who: Visitor = may(runtime, "audit.report")) -> Response:
        """GB/T 22239-2019 Level 3, clause by clause: proven by something live, procedural, or not met. HTML where it is accepted."""
        async with runtime.unit(who.context) as uow:
            uow.audit(AuditEntry("audit.evidence", "R"))
            found = await evidence.collect(uow, ports)
        report = evidence.report(found)
        if "text/html" in request.headers.get("accept", ""):
            return HTMLResponse(evidence.page(report, language(request)))
        return Response(evidence.dumps(report), media_type="application/json")

    @app.get("/v1/exports/{export}", tags=["exports"])
    async def export(export: str, who: Visitor = may(runtime, "audit.report")) -> ExportView:
        """How an export stands."""
        async with runtime.unit(who.context) as uow:
            return exports.view(await exports.visible(uow, export, who.scope))

    @app.get("/v1/exports/{export}/content", tags=["exports"], response_class=StreamingResponse, responses=_ZIP)
    async def content(export: str, request: Request, who: Visitor = may(runtime, "audit.export")) -> Response:
        """The file of an approved export, for who asked for it; fetching it is recorded."""
        async with runtime.unit(who.context) as uow:
            row = await exports.visible(uow, export, who.scope)
        problem: Problem | None = None
        if row.requester != who.actor.text:
            problem = Problem("request.not_found", kind="export", id=export)
        elif row.object is None:
            problem = Problem("audit.export_pending", export=export, state=row.state)
        async with runtime.unit(who.context) as uow:
            if problem is not None:
                uow.audit(AuditEntry("audit.download", "R", 4, problem.code, (Entity("export", export),)))
                return problem_response(problem, language(request))
            made = ObjectRef.model_validate(row.object)
            about = (Entity("export", export, digest=row.digest), Entity("object", made.sha256, digest=made.sha256))
            uow.audit(AuditEntry("audit.download", "R", entities=about, hospitals=(row.scope,) if row.scope else ()))
        headers = {
            "Content-Length": str(made.bytes),
            "ETag": f'"{made.sha256}"',
            "Content-Disposition": f'attachment; filename="{export}.zip"',
        }
        return StreamingResponse(ports.stores.kept.read(made.sha256), media_type=made.media_type, headers=headers)
