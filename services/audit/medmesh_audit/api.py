"""The auditors' door: C2SP tlog-tiles here; records, FHIR and reports in modules of their own."""

from __future__ import annotations

import base64
from typing import Any

from fastapi import FastAPI
from fastapi.responses import PlainTextResponse, Response

from medmesh.errors import Problem
from medmesh.service.http import new_application
from medmesh.service.runtime import Runtime
from medmesh.store.postgres import is_transient
from medmesh_audit import events, fhir, queries, reports, second
from medmesh_audit.door import Visitor, may
from medmesh_audit.ports import Ports

_BYTES: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}
}


def application(runtime: Runtime, ports: Ports) -> FastAPI:
    """The HTTP application of audit."""
    app = new_application("medmesh audit", is_transient=is_transient)
    events.mount(app, runtime, ports)
    fhir.mount(app, runtime)
    reports.mount(app, runtime, ports)

    @app.get("/log/checkpoint", response_class=PlainTextResponse, tags=["log"])
    async def checkpoint(response: Response, who: Visitor = may(runtime, "audit.proof")) -> str:
        async with runtime.unit() as uow:
            shown = await ports.witnesses.newest(uow)
        response.headers["Medmesh-Witnesses"] = shown.state
        return str(shown.note)

    @app.get("/log/sm3/{rest:path}", tags=["log"], response_class=Response, responses=_BYTES)
    async def second_tree(rest: str, who: Visitor = may(runtime, "audit.proof")) -> Response:
        """The second tree over the same entries (SM3, SM2), where there is one: `checkpoint`, `tile/…`."""
        async with runtime.unit() as uow:
            return Response(await second.log_file(uow, rest), media_type="application/octet-stream")

    @app.get("/log/tile/{rest:path}", tags=["log"], response_class=Response, responses=_BYTES)
    async def tile(rest: str, who: Visitor = may(runtime, "audit.proof")) -> Response:
        async with runtime.unit() as uow:
            return Response(await queries.log_file(uow, f"tile/{rest}"), media_type="application/octet-stream")

    @app.get("/v1/consistency", tags=["log"])
    async def consistency(old: int, new: int, who: Visitor = may(runtime, "audit.proof")) -> dict[str, Any]:
        async with runtime.unit() as uow:
            size = (await queries.checkpoint(uow)).size
            if not 0 <= old <= new <= size:
                raise Problem("request.invalid", reason=f"0 <= old <= new <= {size}")
            path = await queries.consistency(uow, old, new)
            return {"old": old, "new": new, "proof": [base64.b64encode(p).decode() for p in path]}

    return app
