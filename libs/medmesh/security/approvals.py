"""Approvals (申请审批): maker is never checker, n of m, bound to the digest of the exact request, expiring, single use.

Governance signs a token that carries what each approver signed with a key of their own; the executing service verifies both offline,
the signatures against the roster, and spends its id in its own table in the same transaction (`UnitOfWork.spend_approval`). So neither
governance's key nor its database is enough to approve anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import jwt

from medmesh.canonical import digest
from medmesh.errors import Problem
from medmesh.security import statements
from medmesh.security.keys import Identity, public_key
from medmesh.security.roster import Roster
from medmesh.security.statements import Asking, Decision
from medmesh.security.tokens import LEEWAY

AUDIENCE = "medmesh-approval"
APPROVERS = ("approver", "security_administrator")
"""Who of the roster decides; the role table says the same of those who are signed in."""


def request_digest(document: Any) -> str:
    """SHA-256 of the canonical request: what approvers see, sign and what gets executed are the same."""
    return digest(document)


@dataclass(frozen=True, slots=True)
class Approval:
    """A verified approval: `statements` are the approvers' own signed notes."""

    id: str
    action: str
    target: str
    digest: str
    requester: str
    approvers: tuple[str, ...]
    statements: tuple[str, ...]
    expires: datetime
    asking: str = ""
    """What who asked signed, where they did."""

    def evidence(self) -> dict[str, str]:
        """As it stands in an audit record: everything with which anybody may check it against the roster, for ever."""
        return {
            "id": self.id,
            "target": self.target,
            "requester": self.requester,
            "approvers": ",".join(self.approvers),
            "digest": self.digest,
            "statements": ",".join(map(statements.pack, self.statements)),
            **({"asking": statements.pack(self.asking)} if self.asking else {}),
        }


def decided(
    signed: str, roster: Roster, *, approval: str, action: str, target: str, digest: str, requester: str, seen: datetime
) -> tuple[str, Decision]:
    """Who of the roster signed what, when it is about exactly this request. Raises `Problem` (`roster.*`, `statement.*`)."""
    who, found = roster.person(signed, Decision, seen, APPROVERS)
    wanted = {"approval": approval, "action": action, "target": target, "digest": digest, "requester": requester}
    for name, value in wanted.items():
        if getattr(found, name) != value:
            raise Problem("statement.other", what=name)
    if who == requester:
        raise Problem("security.approval_maker", requester=requester)
    if found.made > found.expires + LEEWAY:
        raise Problem("security.approval_expired")
    return who, found


def asked(signed: str, roster: Roster, *, action: str, target: str, digest: str, requester: str, seen: datetime) -> Asking | None:
    """What who asked signed, when it is about exactly this; None where nothing was signed and the roster does not want it. Raises
    `Problem` (`roster.*`, `statement.*`)."""
    if not signed:
        if action in roster.signed_requests:
            raise Problem("statement.missing", what=f"The request for {action}")
        return None
    who, found = roster.person(signed, Asking, seen, ())
    if who != requester:
        raise Problem("statement.other", what="requester")
    for name, value in {"action": action, "target": target, "digest": digest, "requester": requester}.items():
        if getattr(found, name) != value:
            raise Problem("statement.other", what=name)
    return found


def approvers_of(
    signed: Sequence[str], roster: Roster, *, approval: str, action: str, target: str, digest: str, requester: str, seen: datetime
) -> tuple[str, ...]:
    """Who approved by own signature, each once: as many as the roster wants of this action. Raises `Problem`."""
    found = set()
    for one in signed:
        who, decision = decided(one, roster, approval=approval, action=action, target=target, digest=digest, requester=requester, seen=seen)
        if not decision.approve:
            raise Problem("statement.other", what="approve")
        found.add(who)
    if len(found) < roster.needed(action):
        raise Problem("security.approval_unsigned", action=action, got=len(found), wanted=roster.needed(action))
    return tuple(sorted(found))


def issue(
    governance: Identity,
    *,
    approval: str,
    action: str,
    target: str,
    digest: str,
    requester: str,
    statements: Sequence[str],
    expires: datetime,
    asking: str = "",
) -> str:
    """The token over the approvers' signed statements. What it holds is verified by who executes it."""
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
        "sts": list(statements),
        **({"ask": asking} if asking else {}),
    }
    return jwt.encode(claims, governance.private_key, algorithm="EdDSA", headers={"kid": governance.public})


def verify(token: str, governance_key: str, roster: Roster, *, action: str, digest: str, at: datetime | None) -> Approval:
    """The approval in a token. Raises `Problem` (`security.approval_*`, `roster.*`, `statement.*`).

    `at` None skips the expiry: for what was executed in time.
    """
    options = {"require": ["iss", "aud", "exp", "jti"], "verify_exp": False, "verify_iat": False}
    try:
        claims = jwt.decode(token, public_key(governance_key), algorithms=["EdDSA"], audience=AUDIENCE, options=options)  # type: ignore[arg-type]
    except (jwt.PyJWTError, RecursionError):
        raise Problem("security.approval_signature") from None
    if claims.get("act") != action or claims.get("dig") != digest:
        raise Problem("security.approval_other", action=action)
    expires = datetime.fromtimestamp(int(claims["exp"]), UTC)
    if at is not None and at > expires + LEEWAY:
        raise Problem("security.approval_expired")
    approval, target, requester = str(claims["jti"]), str(claims.get("tgt", "")), str(claims.get("req", ""))
    given = claims.get("sts")
    signed = tuple(map(str, given)) if isinstance(given, list) else ()
    seen = at or datetime.now(UTC)
    about = {"approval": approval, "action": action, "target": target, "digest": digest, "requester": requester}
    approvers, asking = approvers_of(signed, roster, **about, seen=seen), str(claims.get("ask", ""))
    asked(asking, roster, action=action, target=target, digest=digest, requester=requester, seen=seen)
    return Approval(approval, action, target, digest, requester, approvers, signed, expires, asking)
