"""Who stands at the auditors' door, and what they may see."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from fastapi import Depends, Request

from medmesh.security.access import decide
from medmesh.security.roles import Decision
from medmesh.security.tokens import Actor
from medmesh.service.runtime import Runtime
from medmesh.store.unit import Context
from medmesh_audit.domain import scope

OPEN = {"x-medmesh-action": "open"}
"""Said by a route that anybody may use."""


@dataclass(frozen=True, slots=True)
class Visitor:
    """Somebody whom the role table lets in for one action."""

    actor: Actor
    decision: Decision
    context: Context

    @property
    def scope(self) -> str | None:
        """The one organisation whose records they see; None for all."""
        return scope(self.actor)


def may(runtime: Runtime, action: str) -> Any:
    """A FastAPI dependency: the visitor, or a refusal that is recorded."""

    async def check(request: Request) -> Visitor:
        actor = await runtime.bearer.actor(request)
        await runtime.doorstep.placed(request, runtime.context(actor=actor), actor)
        decision = decide(actor, action, datetime.now(UTC), rules=runtime.policies.rules)
        context = runtime.context(actor=actor, decision=decision)
        if not decision.allowed:
            await runtime.doorstep.denied(context, actor, action, decision)
        return Visitor(actor, decision, context)

    check.action = action  # type: ignore[attr-defined]  # read by the matrix of roles and routes
    return Depends(check)
