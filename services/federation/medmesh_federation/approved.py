"""What was approved and cannot be done any more."""

from __future__ import annotations

from typing import Any

from medmesh.contracts.federation import ApprovalFailed
from medmesh.contracts.governance import ApprovalGranted
from medmesh.errors import Problem
from medmesh.service.approved import spend
from medmesh.store.unit import AuditEntry, UnitOfWork
from medmesh_federation.handlers import entity, invited
from medmesh_federation.ports import Ports


async def not_done(uow: UnitOfWork[Ports], row: Any, grant: ApprovalGranted, problem: Problem, *, verb: str) -> None:
    """What was approved cannot be done any more: the approval is spent, so that it never will be, and everybody is told why. Raises
    `Problem` for an approval that is none."""
    found = await spend(uow, grant, uow.ports.trust(), uow.ports.roster(), target=grant.target, digest=grant.digest)
    uow.emit(ApprovalFailed(federation=row.federation, action=grant.action, target=grant.target, code=problem.code))
    about, who = (entity(row),), invited(row)
    detail: dict[str, str | int | bool] = {"reason": problem.detail()[:200]}
    uow.audit(AuditEntry(verb, "E", outcome=8, why=problem.code, entities=about, hospitals=who, approval=found.evidence(), detail=detail))
