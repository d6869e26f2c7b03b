"""The door of inference: the Open Inference Protocol for whoever holds a token for it."""

from __future__ import annotations

from datetime import UTC, datetime

from fastapi import FastAPI, Request

from medmesh.errors import Problem
from medmesh.security.access import decide
from medmesh.security.roles import Decision
from medmesh.security.tokens import Actor
from medmesh.service.guard import Refusal
from medmesh.service.http import new_application
from medmesh.service.runtime import Runtime
from medmesh.serving.app import about, router
from medmesh.serving.repository import Repository, Served
from medmesh.store.unit import AuditEntry
from medmesh_inference import queries

ACTION = "inference.infer"


def application(runtime: Runtime, repository: Repository) -> FastAPI:
    """The HTTP application of inference."""
    app = new_application("medmesh inference")

    def decided(who: Actor) -> Decision:
        return decide(who, ACTION, datetime.now(UTC), rules=runtime.policies.rules)

    async def authorise(request: Request) -> Actor:
        who = await runtime.bearer.actor(request)
        decision = decided(who)
        if not decision.allowed:
            await runtime.doorstep.denied(runtime.context(actor=who, decision=decision), who, ACTION, decision)
        runtime.emission.check(ACTION, emergency=who.emergency is not None)
        return who

    async def admit(who: Actor, served: Served) -> Decision:
        """The guard, in front of everything that is about one model; what it refuses is recorded here."""
        access = runtime.guard.open(who, ACTION, datetime.now(UTC))
        try:
            async with runtime.unit() as uow:
                return await access.enter(uow, "model", f"{served.manifest.model}/{served.manifest.version}")
        except Refusal as refused:
            async with runtime.unit(runtime.context(actor=who, decision=refused.decision)) as uow:
                uow.audit(refused.entry)
            raise

    async def record(who: Actor, served: Served, inputs: int) -> None:
        """Who asked which model for how many answers: no pixels, and no findings.

        A version that was withdrawn or labelled higher meanwhile answers nobody, also where another instance heard of it first.
        """
        manifest = served.manifest
        async with runtime.unit(runtime.context(actor=who, decision=await admit(who, served))) as uow:
            if await queries.is_withdrawn(uow, manifest.model, manifest.version):
                raise Problem("serving.withdrawn", model=manifest.model, version=manifest.version)
            uow.audit(AuditEntry(ACTION, "E", entities=about(served), detail={"inputs": inputs}))

    async def refused(who: Actor, served: Served | None, problem: Problem) -> None:
        if isinstance(problem, Refusal):
            return  # by the guard, which recorded it
        async with runtime.unit(runtime.context(actor=who, decision=decided(who))) as uow:
            uow.audit(AuditEntry(ACTION, "E", outcome=4, why=problem.code, entities=about(served)))

    app.include_router(router(repository, authorise, admit, record, refused))
    return app
