"""Approvals (申请审批): maker is never checker, n of m, bound to the digest of the exact request, expiring, single use.

Governance signs a token over the decision; the executing service verifies it offline and spends its id in its own table
in the same transaction (`UnitOfWork.spend_approval`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import jwt

from medmesh.canonical import digest
from medmesh.errors import Problem
from medmesh.security.keys import Identity, public_key
from medmesh.security.tokens import LEEWAY

AUDIENCE = "medmesh-approval"


def request_digest(document: Any) -> str:
    """SHA-256 of the canonical request: what approvers see, sign and what gets executed are the same."""
    return digest(document)


@dataclass(frozen=True, slots=True)
class Approval:
    """A verified approval."""

    id: str
    action: str
    target: str
    digest: str
    requester: str
    approvers: tuple[str, ...]


def issue(
    governance: Identity,
    *,
    approval: str,
    action: str,
    target: str,
    digest: str,
    requester: str,
    approvers: Sequence[str],
    expires: datetime,
) -> str:
    """The token; refuses an approver who is the requester."""
    if not approvers or requester in approvers:
        raise Problem("security.approval_maker", requester=requester)
    claims = {
        "iss": "service:governance",
        "aud": AUDIENCE,
        "jti": approval,
        "iat": int(datetime.now(UTC).timestamp()),
        "exp": int(expires.timestamp()),
        "act": action,
        "tgt": target,
        "dig": digest,
        "req": requester,
        "app": sorted(set(approvers)),
    }
    return jwt.encode(claims, governance.private_key, algorithm="EdDSA", headers={"kid": governance.public})


def verify(token: str, governance_key: str, *, action: str, digest: str, at: datetime | None, needed: int = 1) -> Approval:
    """The approval in a token. Raises `Problem` (`security.approval_*`). `at` None skips the expiry: for what was executed in time."""
    options = {"require": ["iss", "aud", "exp", "jti"], "verify_exp": False, "verify_iat": False}
    try:
        claims = jwt.decode(token, public_key(governance_key), algorithms=["EdDSA"], audience=AUDIENCE, options=options)  # type: ignore[arg-type]
    except (jwt.PyJWTError, RecursionError):
        raise Problem("security.approval_signature") from None
    if claims.get("act") != action or claims.get("dig") != digest:
        raise Problem("security.approval_other", action=action)
    approvers = tuple(str(a) for a in claims.get("app", ()))
    if claims.get("req") in approvers or len(set(approvers)) < needed:
        raise Problem("security.approval_maker", requester=str(claims.get("req")))
    if at is not None and at > datetime.fromtimestamp(int(claims["exp"]), UTC) + LEEWAY:
        raise Problem("security.approval_expired")
    return Approval(str(claims["jti"]), action, str(claims.get("tgt", "")), digest, str(claims["req"]), approvers)
