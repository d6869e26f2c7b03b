"""Who may do what: one table, deny by default. Adding an action is one line; the tests enumerate every cell.

The three administrators exclude each other (GB/T 22239-2019 8.1.4.2 d, 8.1.5.1-3).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from medmesh.canonical import digest
from medmesh.errors import Problem
from medmesh.security.tokens import Actor

ADMINISTRATORS = ("system_administrator", "security_administrator", "audit_administrator")
PERSON_ROLES = (*ADMINISTRATORS, "researcher", "approver", "annotator", "reviewer", "auditor", "clinician")

_ALL_PEOPLE = ("system_administrator", "security_administrator", "researcher", "approver")

TABLE: dict[str, tuple[str, ...]] = {
    "user.create": ("security_administrator",),
    "user.list": ("security_administrator", "audit_administrator"),
    "hospital.register": ("security_administrator",),
    "hospital.list": (*_ALL_PEOPLE, "auditor"),
    "approval.request": ("security_administrator", "researcher", "auditor", "audit_administrator"),
    "approval.decide": ("approver", "security_administrator"),
    "approval.list": (*_ALL_PEOPLE, "auditor", "audit_administrator"),
    "dataset.create": ("researcher",),
    "dataset.read": ("researcher", "annotator", "reviewer"),
    "catalogue.publish": ("hospital",),
    "catalogue.read": ("researcher", "approver", "hospital"),
    "annotation.create": ("researcher",),
    "annotation.label": ("annotator", "reviewer", "researcher"),
    "annotation.review": ("reviewer",),
    "annotation.export": ("researcher",),
    "training.submit": ("researcher",),
    "training.read": ("researcher",),
    "federation.create": ("researcher",),
    "federation.cancel": ("researcher", "system_administrator"),
    "federation.read": ("researcher", "approver", "auditor", "hospital", "system_administrator"),
    "federation.respond": ("hospital",),
    "federation.submit": ("hospital",),
    "model.register": ("researcher",),
    "model.convert": ("researcher",),
    "model.read": ("researcher", "approver", "auditor", "hospital", "clinician"),
    "model.release": ("researcher",),
    "model.install": ("hospital",),
    "inference.infer": ("researcher", "clinician", "hospital"),
    "audit.read": ("auditor", "audit_administrator", "hospital"),
    "audit.export": ("auditor", "audit_administrator"),
    "audit.report": ("auditor", "audit_administrator"),
    "audit.proof": ("auditor", "audit_administrator", "researcher", "approver", "hospital"),
    "audit.append": ("hospital",),
    "object.write": ("researcher", "hospital"),
    "object.read": ("researcher", "hospital", "auditor"),
    "operation.read": (*PERSON_ROLES, "hospital"),
    "inbox.read": ("hospital",),
    "dead.read": ("system_administrator", "service:operator"),
    "dead.replay": ("system_administrator", "service:operator"),
}
"""Action to the roles that may do it. Hospitals have the role `hospital`; a service has `service:<name>`."""

_SERVICES_MAY = frozenset({"dataset.read", "federation.read", "model.read", "hospital.list"})
"""What any service may ask on its own behalf: it needs it to do its part, and the answer holds no data of patients."""


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether it is allowed, and the rule that said so: recorded with the action."""

    allowed: bool
    rule: str


def allow(actor: Actor, action: str) -> Decision:
    """Decide; an unknown action is denied."""
    for role in TABLE.get(action, ()):
        if role in actor.roles:
            return Decision(True, f"role:{role}")
    if actor.kind == "service" and action in _SERVICES_MAY:
        return Decision(True, "service")
    return Decision(False, "default")


@cache
def policy_digest() -> str:
    """SHA-256 of the rules that decide here: it stands in every audit record, so that a changed table shows."""
    return digest({"table": {action: list(roles) for action, roles in TABLE.items()}, "services": sorted(_SERVICES_MAY)})


def check_roles(roles: Iterable[str]) -> frozenset[str]:
    """Roles a person may have together. Raises `Problem`."""
    wanted = frozenset(roles)
    if unknown := wanted - set(PERSON_ROLES):
        raise Problem("security.role_unknown", role=sorted(unknown)[0], known=", ".join(PERSON_ROLES))
    held = sorted(wanted & set(ADMINISTRATORS))
    if len(held) > 1:
        raise Problem("security.role_exclusive", first=held[0], second=held[1])
    return wanted
