"""Deciding as a person with a key of their own: what is signed is what was looked at."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from medmesh.client.gateway import Gateway
from medmesh.contracts.governance import Approvals, ApprovalView
from medmesh.errors import Problem
from medmesh.security.signing import Signer
from medmesh.security.statements import Decision, enrolment_digest, sign


async def look(gateway: Gateway, approval: str) -> ApprovalView:
    """One approval as the platform tells it; whether its digest is that of what it says, where that can be computed. Raises `Problem`."""
    found = (await gateway.ask("/v1/approvals", Approvals)).approvals
    view = next((one for one in found if one.approval == approval), None)
    if view is None:
        raise Problem("request.not_found", kind="approval", id=approval)
    if view.action == "hospital.enrol":
        said = view.summary
        names = ("hospital", "node", "organisation_key", "request")
        if view.digest != enrolment_digest(*(said.get(name, "") for name in names)):
            raise Problem("statement.other", what="digest")
    return view


def statement(view: ApprovalView, signer: Signer, *, approve: bool = True) -> str:
    """The decision on exactly this request, signed."""
    said = Decision(
        made=datetime.now(UTC),
        approval=view.approval,
        action=view.action,
        target=view.target,
        digest=view.digest,
        requester=view.requester,
        approve=approve,
        expires=view.expires,
    )
    return sign(said, signer)


async def decide(gateway: Gateway, approval: str, signer: Signer, *, approve: bool = True, comment: str = "") -> dict[str, Any]:
    """Look at an approval, sign the decision and send it. Raises `Problem`."""
    view = await look(gateway, approval)
    body = {"approve": approve, "comment": comment, "statement": statement(view, signer, approve=approve)}
    return await gateway.command("POST", f"/v1/approvals/{approval}/decision", body)
