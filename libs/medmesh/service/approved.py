"""Executing what was approved: verified offline and spent in the transaction that acts; one way for every service."""

from __future__ import annotations

from typing import Any

from medmesh.contracts.governance import ApprovalGranted
from medmesh.errors import Problem
from medmesh.security import approvals
from medmesh.security.approvals import Approval
from medmesh.security.roster import Roster
from medmesh.security.tokens import TrustBundle
from medmesh.store.unit import UnitOfWork


def target_of(name: str, version: int) -> str:
    """How an approval names one version of something."""
    return f"{name}/{version}"


def read_target(target: str, kind: str) -> tuple[str, int]:
    """(name, version) of a target. Raises `Problem`; no version has a number of more than 32 bits."""
    name, _, version = target.rpartition("/")
    if not version.isascii() or not version.isdecimal() or not 0 < int(version[:12]) < 2**31:
        raise Problem("request.not_found", kind=kind, id=target[:128])
    return name, int(version)


async def spend(
    uow: UnitOfWork[Any],
    grant: ApprovalGranted,
    trust: TrustBundle,
    roster: Roster,
    *,
    target: str,
    digest: str,
    maker: str = "",
    asked_by: str = "",
) -> Approval:
    """The approval of exactly this target and digest, used up. `maker`, who may not be among the approvers, whoever asked for them;
    `asked_by`, the only one who may have asked, where that matters. Raises `Problem`, and has changed nothing.
    """
    found = approvals.verify(grant.token, trust.governance, roster, action=grant.action, digest=digest, at=uow.now)
    if found.target != target or (asked_by and found.requester != asked_by):
        raise Problem("security.approval_other", action=grant.action)
    if maker in found.approvers:
        raise Problem("security.approval_maker", requester=maker)
    await uow.spend_approval(found.id)
    return found
