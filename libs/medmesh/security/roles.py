"""Who may do what: one table, deny by default. Adding an action is one line; the tests enumerate every cell.

The three administrators exclude each other (GB/T 22239-2019 8.1.4.2 d, 8.1.5.1-3).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache

from medmesh.canonical import digest
from medmesh.errors import Problem
from medmesh.security import emergency
from medmesh.security.tokens import Actor

ADMINISTRATORS = ("system_administrator", "security_administrator", "audit_administrator")
PERSON_ROLES = (*ADMINISTRATORS, "researcher", "approver", "annotator", "reviewer", "auditor", "clinician")

_ALL_PEOPLE = ("system_administrator", "security_administrator", "researcher", "approver")

TABLE: dict[str, tuple[str, ...]] = {
    "user.create": ("security_administrator",),
    "user.manage": ("security_administrator",),
    "user.list": ("security_administrator", "audit_administrator"),
    "hospital.register": ("security_administrator",),
    "hospital.revoke": ("security_administrator",),
    "revocation.list": ("security_administrator",),
    "clearance.set": ("security_administrator",),
    "label.change": ("security_administrator",),
    "object.describe": (),
    "policy.read": ("security_administrator", "system_administrator", "auditor", "audit_administrator"),
    "policy.propose": ("security_administrator",),
    "system.register": ("security_administrator",),
    "hospital.list": (*_ALL_PEOPLE, "auditor"),
    "approval.request": ("security_administrator", "researcher", "auditor", "audit_administrator"),
    "approval.decide": ("approver", "security_administrator"),
    "approval.list": (*_ALL_PEOPLE, "auditor", "audit_administrator"),
    "key.register": PERSON_ROLES,
    "key.list": (*_ALL_PEOPLE, "auditor", "audit_administrator"),
    "emergency.open": ("clinician",),
    "emergency.end": ("clinician", "security_administrator"),
    "emergency.list": ("clinician", "approver", "security_administrator", "audit_administrator", "auditor"),
    "emergency.review": ("approver", "security_administrator"),
    "dataset.create": ("researcher",),
    "dataset.read": ("researcher", "annotator", "reviewer"),
    "timeline.import": ("researcher",),
    "timeline.define": ("researcher",),
    "timeline.ask": ("researcher",),
    "timeline.export": ("researcher",),
    "catalogue.publish": ("hospital",),
    "catalogue.read": ("researcher", "approver", "hospital"),
    "annotation.create": ("researcher",),
    "annotation.label": ("annotator", "reviewer", "researcher"),
    "annotation.review": ("reviewer",),
    "annotation.export": ("researcher",),
    "training.submit": ("researcher",),
    "training.read": ("researcher",),
    "training.rehearse": ("researcher",),
    "rehearsal.read": ("researcher", "approver", "auditor", "hospital"),
    "federation.create": ("researcher",),
    "federation.cancel": ("researcher", "system_administrator"),
    "federation.pause": ("researcher", "system_administrator"),
    "federation.adjust": ("researcher",),
    "federation.invite": ("researcher",),
    "federation.quarantine": ("researcher", "security_administrator", "system_administrator"),
    "federation.read": ("researcher", "approver", "auditor", "hospital", "system_administrator"),
    "federation.respond": ("hospital",),
    "federation.submit": ("hospital",),
    "model.register": ("researcher",),
    "model.convert": ("researcher",),
    "model.read": ("researcher", "approver", "auditor", "hospital", "clinician", "system"),
    "model.release": ("researcher",),
    "model.install": ("hospital",),
    "inference.infer": ("researcher", "clinician", "hospital", "system"),
    "audit.read": ("auditor", "audit_administrator", "hospital"),
    "audit.export": ("auditor", "audit_administrator"),
    "audit.report": ("auditor", "audit_administrator"),
    "audit.proof": ("auditor", "audit_administrator", "researcher", "approver", "hospital"),
    "audit.append": ("hospital",),
    "log.hold": ("audit_administrator",),
    "maintenance.record": ("service:operator",),
    "log.prune": ("audit_administrator",),
    "retention.change": ("audit_administrator",),
    "object.write": ("researcher", "hospital"),
    "object.read": ("researcher", "hospital", "auditor"),
    "operation.read": (*PERSON_ROLES, "hospital"),
    "inbox.read": ("hospital",),
    "dead.read": ("system_administrator", "service:operator"),
    "dead.replay": ("system_administrator", "service:operator"),
}
"""Action to the roles that may do it. Hospitals have the role `hospital`, their systems `system`; a service has `service:<name>`."""

STEP_UP = frozenset(
    {
        "annotation.export",
        "approval.decide",
        "audit.export",
        "clearance.set",
        "emergency.review",
        "hospital.register",
        "hospital.revoke",
        "label.change",
        "log.prune",
        "policy.propose",
        "retention.change",
        "system.register",
        "user.create",
        "user.manage",
    }
)
"""Actions for which a person showed the second factor not longer ago than `STRONG`: approvals, exports, rights."""

STRONG = timedelta(minutes=5)

_SERVICES_MAY = frozenset(
    {
        "dataset.read",
        "federation.read",
        "model.read",
        "hospital.list",
        "object.describe",
        "policy.read",
        "rehearsal.read",
        "revocation.list",
    }
)
"""What any service may ask on its own behalf: it needs it to do its part, and the answer holds no data of patients."""


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether it is allowed, the rule that said so, and the digest of the rules as they stood: recorded with the action."""

    allowed: bool
    rule: str
    policy: str = ""
    before: tuple[str, ...] = ()
    """The rules that were passed before `rule` was asked."""
    problem: str = ""
    """The code that is told, where it is not the refusal of the role table."""

    @property
    def rules(self) -> tuple[str, ...]:
        """Every rule that was asked, in order."""
        return (*self.before, self.rule)


@cache
def policy_digest() -> str:
    """SHA-256 over the role table; `access.Rules.digest` goes over all that decides."""
    rules = {"table": TABLE, "step_up": sorted(STEP_UP), "services": sorted(_SERVICES_MAY), "emergency": sorted(emergency.ACTIONS)}
    return digest(rules)


def allow(actor: Actor, action: str, at: datetime | None = None) -> Decision:
    """What the role table says at the time `at`, which is the message's, or now; an unknown action is denied. `access.decide` asks it
    between the security label and the object rules."""
    at = at or datetime.now(UTC)
    for role in TABLE.get(action, ()):
        if role in actor.roles:
            if action in STEP_UP and actor.kind == "person" and not (actor.strong_at and at - actor.strong_at <= STRONG):
                return Decision(False, "step-up", policy_digest())
            return Decision(True, f"role:{role}", policy_digest())
    if actor.kind == "service" and action in _SERVICES_MAY:
        return Decision(True, "service", policy_digest())
    if emergency.permits(actor.emergency, action, at):
        return Decision(True, "emergency", policy_digest())
    return Decision(False, "default", policy_digest())


def denial(decision: Decision, actor: Actor, action: str) -> Problem:
    """What somebody is told who may not."""
    if decision.rule == "step-up":
        return Problem("security.step_up", action=action)
    return Problem("access.denied", actor=actor.text, action=action)


def check_roles(roles: Iterable[str]) -> frozenset[str]:
    """Roles a person may have together. Raises `Problem`."""
    wanted = frozenset(roles)
    if unknown := wanted - set(PERSON_ROLES):
        raise Problem("security.role_unknown", role=sorted(unknown)[0], known=", ".join(PERSON_ROLES))
    held = sorted(wanted & set(ADMINISTRATORS))
    if len(held) > 1:
        raise Problem("security.role_exclusive", first=held[0], second=held[1])
    return wanted
