"""What people and hospitals sign with keys of their own: signed notes whose first line says what kind of statement it is.

    medmesh-decision-v1
    {"action":"model.release","approval":"…","approve":true,"digest":"…",…}

    — person:wu@platform 8Jb…

The second line is canonical JSON. The first separates the kinds: no signature of one kind is ever one of another.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from datetime import datetime
from typing import ClassVar, TypeVar

from pydantic import Field, ValidationError

from medmesh.canonical import canonical, digest
from medmesh.contracts.message import Identifier, Record, Sha256
from medmesh.errors import Problem
from medmesh.security.signing import Signer


class Statement(Record):
    """`made` is when its signer says it was signed."""

    HEAD: ClassVar[str]

    made: datetime


class Decision(Statement):
    """An approver's decision on one exact request."""

    HEAD = "medmesh-decision-v1"

    approval: str
    action: str
    target: str
    digest: Sha256
    requester: str
    approve: bool
    expires: datetime


class Asking(Statement):
    """Somebody asks for the approval of one exact request, under their own name."""

    HEAD = "medmesh-asking-v1"

    action: str
    target: str
    digest: Sha256
    requester: str


class Acceptance(Statement):
    """A hospital takes part in a federation under exactly this plan. `seen` is the newest checkpoint of the platform's log it knew, as the
    log signed it: what two hospitals were shown must be one log."""

    HEAD = "medmesh-acceptance-v1"

    federation: str
    plan: Sha256
    hospital: Identifier
    seen: str = ""


class PlanApproval(Statement):
    """A hospital lets a training package run in its house under exactly this plan, in an environment with exactly this digest
    (`medmesh.learning.environment`); `by` is who decided there, a person or the file with the hospital's rules."""

    HEAD = "medmesh-plan-approval-v1"

    federation: str
    plan: Sha256
    package: Sha256
    environment: Sha256
    hospital: Identifier
    by: str


class CodeApproval(Statement):
    """As hospitals approved before decision 0152: a training package, whatever the plan."""

    HEAD = "medmesh-code-approval-v1"

    package: Sha256
    hospital: Identifier
    by: str


class CodeReview(Statement):
    """A person has read the code of a training package, found that it does what it declares and no more, and says so with their name."""

    HEAD = "medmesh-code-review-v1"

    package: Sha256
    note: str = Field(default="", max_length=500)


class SecureStatement(Statement):
    """What a hospital says within one attempt at a round under secure aggregation."""

    federation: str
    plan: Sha256
    round: int
    attempt: int
    hospital: Identifier


class Keys(Record):
    """X25519 keys (hexadecimal) of a hospital for one attempt, to seal shares and to agree on masks, and the SHA-256 of its own mask's
    seed: they stand in what it signs, so that who passes them on cannot put others in their place."""

    cipher: Sha256
    mask: Sha256
    seed: Sha256


class SecureKeys(SecureStatement, Keys):
    """Its keys for this attempt."""

    HEAD = "medmesh-secure-keys-v1"


class SecureSurvivors(SecureStatement):
    """Over whom the one sum of this round may be opened: the digest of the list of their names."""

    HEAD = "medmesh-secure-survivors-v1"

    survivors: Sha256


class SecureWhole(SecureSurvivors):
    """That list, of everybody whose masks are in the vector it goes with: it needs no further word when all their vectors arrive. With
    it the hospital's keys for the first attempt at the next round, where there is one."""

    HEAD = "medmesh-secure-whole-v2"

    following: Keys | None


S = TypeVar("S", bound=Statement)


def text(statement: Statement) -> str:
    """What is signed."""
    return f"{statement.HEAD}\n{canonical(statement.model_dump(mode='json')).decode()}\n"


def sign(statement: Statement, signer: Signer) -> str:
    """The signed note."""
    return signer.sign(text(statement))


def read(content: str, kind: type[S]) -> S:
    """The statement in the text of a note, whose signature is the caller's matter. Raises `Problem` (`statement.form`)."""
    head, _, body = content.partition("\n")
    if head != kind.HEAD:
        raise Problem("statement.kind", wanted=kind.HEAD, got=head[:60])
    try:
        found = kind.model_validate(json.loads(body), strict=False)
        if text(found) != content:
            raise ValueError("another spelling")
    except (ValidationError, ValueError, RecursionError):
        raise Problem("statement.form", kind=kind.HEAD) from None
    return found


def pack(signed: str) -> str:
    """A signed note as it stands in audit records: base64, because those are flat texts without line breaks."""
    return base64.b64encode(signed.encode()).decode()


def unpack(packed: str) -> str:
    """The note again. Raises `Problem` (`statement.form`)."""
    try:
        return base64.b64decode(packed, validate=True).decode()
    except (binascii.Error, ValueError):
        raise Problem("statement.form", kind="base64") from None


def enrolment_digest(hospital: str, node: str, organisation_key: str, request: str) -> str:
    """What is approved when a node enrols: the hospital's name, its own key, and exactly this signing request (its SHA-256)."""
    key = hashlib.sha256(organisation_key.encode()).hexdigest()
    return digest({"form": "medmesh-enrolment-v1", "hospital": hospital, "node": node, "organisation": key, "request": request})
