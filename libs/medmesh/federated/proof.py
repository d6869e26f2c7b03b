"""What a hospital demands to see before it trains: approvers of the roster approved exactly this plan, and every hospital that is named
with it accepted that plan with its own key. Neither the platform's keys nor its database can make that up.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from pydantic import ValidationError

from medmesh.canonical import canonical, parse
from medmesh.contracts.federation import FederationStarted
from medmesh.contracts.message import Identifier, Record
from medmesh.errors import Problem
from medmesh.security import approvals
from medmesh.security.roster import Roster
from medmesh.security.statements import Acceptance

ACTION = "federation.start"
MOST_BYTES = 16 * 2**20
"""A proof that claims to be larger is not fetched: ten thousand acceptances have 5 MB."""


class StartProof(Record):
    """The approval (a token as governance signs it) and each hospital's acceptance (a signed note). An object of its own: with more than
    a hundred hospitals it is larger than a message may be."""

    approval: str
    acceptances: dict[Identifier, str]


def pack(proof: StartProof) -> bytes:
    """The object's bytes."""
    return canonical(proof.model_dump())


def unpack(data: bytes) -> StartProof:
    """Raises `Problem` (`federation.start_form`)."""
    try:
        return StartProof.model_validate(parse(data))
    except (ValueError, ValidationError):
        raise Problem("federation.start_form") from None


def accepted(signed: str, roster: Roster, *, federation: str, plan_hash: str, hospital: str, seen: datetime) -> Acceptance:
    """A hospital's acceptance of exactly this plan. Raises `Problem` (`roster.*`, `statement.*`)."""
    if not signed:
        raise Problem("statement.missing", what=f"The acceptance of {hospital}")
    found = roster.hospital(signed, Acceptance, seen, hospital)
    for name, value in {"federation": federation, "plan": plan_hash, "hospital": hospital}.items():
        if getattr(found, name) != value:
            raise Problem("statement.other", what=name)
    return found


def verify_start(started: FederationStarted, proof: StartProof, governance_key: str, roster: Roster, seen: datetime) -> None:
    """Raise a `Problem` unless this start is proven: approved, and accepted by every one of `started.hospitals`."""
    found = approvals.verify(proof.approval, governance_key, roster, action=ACTION, digest=started.plan_hash, at=None)
    if found.target != started.federation:
        raise Problem("security.approval_other", action=ACTION)
    for hospital in started.hospitals:
        signed = proof.acceptances.get(hospital, "")
        accepted(signed, roster, federation=started.federation, plan_hash=started.plan_hash, hospital=hospital, seen=seen)


def check_round(started: FederationStarted, hospitals: Iterable[str]) -> None:
    """Raise a `Problem` when a round names a hospital whose acceptance was not shown."""
    if strangers := sorted(set(hospitals) - set(started.hospitals)):
        raise Problem("federation.stranger", hospital=strangers[0])
