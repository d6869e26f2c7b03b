"""What is approved when a federation goes back to an earlier round: a digest that approvers sign, the coordinator executes, and every node
verifies for itself."""

from __future__ import annotations

from medmesh.contracts.federation import RoundOpened
from medmesh.errors import Problem
from medmesh.security import approvals
from medmesh.security.approvals import Approval, request_digest
from medmesh.security.roster import Roster

ACTION = "federation.rollback"


def rollback_target(federation: str, number: int) -> str:
    """How an approval names it."""
    return f"{federation}/{number}"


def rollback_digest(federation: str, plan_hash: str, number: int, model: str) -> str:
    """Of going on from the model (SHA-256) of committed round `number`, 0 for the first weights."""
    return request_digest({"action": ACTION, "federation": federation, "plan": plan_hash, "round": number, "model": model})


def proven(event: RoundOpened, model: str, governance_key: str, roster: Roster) -> Approval:
    """The approval by keys of the roster for that a federation goes on from an earlier `model` (SHA-256) with this round. Raises `Problem`
    (`federation.rollback_unproven`) with the reason."""
    about = {"federation": event.federation, "round": event.round}
    if (said := event.undoing) is None:
        raise Problem("federation.rollback_unproven", **about, reason="nothing was shown")
    digest = rollback_digest(event.federation, event.plan_hash, said.round, model)
    try:
        found = approvals.verify(said.approval, governance_key, roster, action=ACTION, digest=digest, at=None)
        if found.target != rollback_target(event.federation, said.round):
            raise Problem("security.approval_other", action=ACTION)
    except Problem as problem:
        raise Problem("federation.rollback_unproven", **about, reason=problem.detail()) from None
    return found
