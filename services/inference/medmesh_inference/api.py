"""The door of inference: the Open Inference Protocol for whoever holds a token for it."""

from __future__ import annotations

from datetime import UTC, datetime

from fastapi import FastAPI, Request

from medmesh.errors import Problem
from medmesh.security.access import require
from medmesh.security.tokens import Actor, verify_actor
from medmesh.service.guard import Refusal
from medmesh.service.http import handle_errors
from medmesh.service.runtime import Runtime
from medmesh.serving.app import router
from medmesh.serving.repository import Repository, Served
from medmesh.store.unit import AuditEntry, Entity
from medmesh_inference import queries

AUDIENCE = "inference"
ACTION = "inference.infer"


def application(runtime: Runtime, repository: Repository) -> FastAPI:
    """The HTTP application of inference."""
    app = FastAPI(title="medmesh inference", version="1", docs_url=None, redoc_url=None)
    handle_errors(app)

    def authorise(request: Request) -> Actor:
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not token:
            raise Problem("actor.missing", type=ACTION)
        who = verify_actor(token, runtime.trust(), datetime.now(UTC), audience=AUDIENCE)
        require(who, ACTION, datetime.now(UTC), rules=runtime.policies.rules)
        runtime.emission.check(ACTION)
        return who

    async def admit(who: Actor, served: Served) -> None:
        """The guard, in front of everything that is about one model."""
        name = f"{served.manifest.model}/{served.manifest.version}"
        try:
            async with runtime.unit(runtime.context(actor=who)) as uow:
                await runtime.guard.open(who, ACTION, datetime.now(UTC)).enter(uow, "model", name)
        except Refusal as refused:
            async with runtime.unit(runtime.context(actor=who, decision=refused.decision)) as uow:
                uow.audit(refused.entry)
            raise

    async def record(who: Actor, served: Served, inputs: int) -> None:
        """Who asked which model for how many answers: no pixels, and no findings.

        A version that was withdrawn meanwhile answers nobody, also where another instance heard of it first.
        """
        manifest = served.manifest
        model = Entity("model", manifest.model, version=str(manifest.version), digest=manifest.onnx.sha256)
        async with runtime.unit(runtime.context(actor=who)) as uow:
            if await queries.is_withdrawn(uow, manifest.model, manifest.version):
                raise Problem("serving.withdrawn", model=manifest.model, version=manifest.version)
            uow.audit(AuditEntry(ACTION, "E", entities=(model,), detail={"inputs": inputs}))

    app.include_router(router(repository, authorise, admit, record))
    return app
