"""What a hospital demands to see before it trains: approvers of the roster approved exactly this plan, and every hospital that is named
with it accepted that plan with its own key. Neither the platform's keys nor its database can make that up.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from medmesh.contracts.federation import FederationStarted
from medmesh.errors import Problem
from medmesh.security import approvals
from medmesh.security.roster import Roster
from medmesh.security.statements import Acceptance

ACTION = "federation.start"


def accepted(signed: str, roster: Roster, *, federation: str, plan_hash: str, hospital: str, seen: datetime) -> Acceptance:
    """A hospital's acceptance of exactly this plan. Raises `Problem` (`roster.*`, `statement.*`)."""
    if not signed:
        raise Problem("statement.missing", what=f"The acceptance of {hospital}")
    found = roster.hospital(signed, Acceptance, seen, hospital)
    for name, value in {"federation": federation, "plan": plan_hash, "hospital": hospital}.items():
        if getattr(found, name) != value:
            raise Problem("statement.other", what=name)
    return found


def verify_start(started: FederationStarted, governance_key: str, roster: Roster, seen: datetime) -> None:
    """Raise a `Problem` unless this start is proven: `started.acceptances` are those of `started.hospitals`, in their order."""
    found = approvals.verify(started.approval, governance_key, roster, action=ACTION, digest=started.plan_hash, at=None)
    if found.target != started.federation:
        raise Problem("security.approval_other", action=ACTION)
    if len(started.acceptances) != len(started.hospitals):
        raise Problem("statement.missing", what="The acceptance of every hospital")
    for hospital, signed in zip(started.hospitals, started.acceptances, strict=True):
        accepted(signed, roster, federation=started.federation, plan_hash=started.plan_hash, hospital=hospital, seen=seen)


def check_round(started: FederationStarted, hospitals: Iterable[str]) -> None:
    """Raise a `Problem` when a round names a hospital whose acceptance was not shown."""
    if strangers := sorted(set(hospitals) - set(started.hospitals)):
        raise Problem("federation.stranger", hospital=strangers[0])
