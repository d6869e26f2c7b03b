"""Who a message is from and whether it may be, and what its owner answers to a command."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from medmesh.contracts.message import Envelope, OperationFinished
from medmesh.errors import Problem
from medmesh.security.access import Rules, decide, denial
from medmesh.security.roles import Decision
from medmesh.security.tokens import Actor, TrustBundle, verify_actor
from medmesh.store.unit import Context


def succeeded(context: Context, result: Any) -> OperationFinished:
    """The owner's answer to a command that was fulfilled."""
    assert context.cause is not None
    document = result.model_dump(mode="json") if isinstance(result, BaseModel) else result
    return OperationFinished(
        service=context.service, operation=context.cause.id, command=context.cause.data.TYPE, succeeded=True, result=document or {}
    )


def refused(context: Context, problem: Problem) -> OperationFinished:
    """The owner's answer to a command that was not."""
    assert context.cause is not None
    return OperationFinished(
        service=context.service, operation=context.cause.id, command=context.cause.data.TYPE, succeeded=False, problem=problem.document()
    )


def must_be_accounted(context: Context, records: int) -> None:
    """A command that succeeds leaves an audit record, or says that it changed nothing; one that forgot both commits nothing."""
    if not records:
        assert context.cause is not None
        raise TypeError(f"{context.service}: the handler of {context.cause.data.TYPE} left no audit record and did not say `unchanged`")


def identify(message: Envelope[Any], trust: TrustBundle, action: str | None, rules: Rules) -> tuple[Actor | None, Decision | None]:
    """The verified actor and what is decided about `action` before it is known what it is about; a None action leaves the check to the
    handler's own secret.

    Raises `Problem` for a token that is missing or not believed.
    """
    if message.actor is None:
        if action is None:
            return None, None
        raise Problem("actor.missing", type=message.type)
    actor = verify_actor(message.actor, trust, at=message.time)
    return actor, None if action is None else decide(actor, action, message.time, rules=rules)


def require(actor: Actor | None, decision: Decision | None, action: str | None) -> None:
    """Raises `Problem` (`access.denied`, `security.step_up`) unless it was allowed."""
    if actor is not None and decision is not None and not decision.allowed:
        raise denial(decision, actor, str(action))
