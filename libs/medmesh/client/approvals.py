"""Deciding as a person with a key of their own: what is signed is what was looked at."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from medmesh.client.gateway import Gateway
from medmesh.contracts.governance import Approvals, ApprovalView
from medmesh.errors import Problem
from medmesh.security import approvals
from medmesh.security.roster import Roster
from medmesh.security.signing import Signer
from medmesh.security.statements import Asking, Decision, enrolment_digest, sign


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


def asking(wanted: Mapping[str, Any], signer: Signer) -> str:
    """A request under one's own name, signed."""
    said = {name: wanted[name] for name in ("action", "target", "digest")}
    return sign(Asking(made=datetime.now(UTC), requester=signer.name, **said), signer)


async def ask(gateway: Gateway, wanted: Mapping[str, Any], key: Callable[[], Signer] | None = None) -> dict[str, Any]:
    """Ask for an approval of `wanted` (action, target, digest, summary). `key` answers the own key, and is called when a signature is
    needed. Raises `Problem`."""
    try:
        return await gateway.command("POST", "/v1/approvals", dict(wanted))
    except Problem as problem:
        if problem.code != "statement.missing" or key is None:
            raise
    return await gateway.command("POST", "/v1/approvals", {**wanted, "asking": asking(wanted, key())})


def asked(view: ApprovalView, roster: Roster) -> bool:
    """Whether who is said to ask signed exactly this; False where they did not and need not. Raises `Problem`."""
    about = {"action": view.action, "target": view.target, "digest": view.digest, "requester": view.requester}
    return approvals.asked(view.asking, roster, **about, seen=datetime.now(UTC)) is not None
