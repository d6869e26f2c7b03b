"""What happens to an action when the audit log is away: one class for every action, and the unknown ones are privileged.

The classes of the behaviour when the log cannot be reached (docs/security/audit.md):

- `privileged`: fails closed as soon as this service's own records wait too long for their receipts. Who may do what, what leaves,
  what is released or started.
- `clinical`: goes on: its record is durable beside its effect before the answer goes out. Fails closed only at the quota of waiting
  records. A patient's result is never withheld because a central service is down, and stopping something is always possible.
- `reading`: goes on.
- `emergency`: goes on beyond the quota too, as does what is clinical under an emergency access: it is recorded beside its effect,
  and when even that is not possible it is not done.
"""

from __future__ import annotations

from typing import Literal

AuditClass = Literal["privileged", "clinical", "reading", "emergency"]

CLASSES: dict[str, AuditClass] = {
    "user.create": "privileged",
    "user.list": "reading",
    "user.manage": "privileged",
    "system.register": "privileged",
    "hospital.register": "privileged",
    "hospital.list": "reading",
    "hospital.revoke": "clinical",
    "revocation.list": "reading",
    "clearance.set": "privileged",
    "label.change": "privileged",
    "object.describe": "reading",
    "policy.read": "reading",
    "policy.propose": "privileged",
    "approval.request": "privileged",
    "approval.decide": "privileged",
    "approval.list": "reading",
    "key.register": "privileged",
    "key.list": "reading",
    "emergency.open": "emergency",
    "emergency.end": "emergency",
    "emergency.list": "reading",
    "emergency.review": "clinical",
    "dataset.create": "clinical",
    "dataset.read": "reading",
    "timeline.import": "clinical",
    "timeline.define": "clinical",
    "timeline.ask": "reading",
    "timeline.export": "clinical",
    "catalogue.publish": "clinical",
    "catalogue.read": "reading",
    "annotation.create": "clinical",
    "annotation.label": "clinical",
    "annotation.review": "clinical",
    "annotation.export": "privileged",
    "training.submit": "clinical",
    "training.read": "reading",
    "training.rehearse": "clinical",
    "rehearsal.read": "reading",
    "federation.create": "privileged",
    "federation.cancel": "clinical",
    "federation.pause": "clinical",
    "federation.adjust": "clinical",
    "federation.invite": "clinical",
    "federation.quarantine": "clinical",
    "federation.read": "reading",
    "federation.respond": "clinical",
    "federation.submit": "clinical",
    "model.register": "clinical",
    "model.convert": "clinical",
    "model.read": "reading",
    "model.release": "privileged",
    "model.install": "clinical",
    "inference.infer": "clinical",
    "audit.export": "privileged",
    "audit.read": "reading",
    "audit.report": "reading",
    "audit.proof": "reading",
    "audit.append": "clinical",
    "log.hold": "clinical",
    "maintenance.record": "clinical",
    "log.prune": "privileged",
    "retention.change": "privileged",
    "object.write": "clinical",
    "object.read": "reading",
    "operation.read": "reading",
    "inbox.read": "reading",
    "dead.read": "reading",
    "dead.replay": "privileged",
}


def audit_class(action: str | None) -> AuditClass:
    """The class of an action; an unknown one is privileged. One without a name is guarded by its handler's own secret, as signing in
    is: clinical, because clinicians must come in."""
    return "clinical" if action is None else CLASSES.get(action, "privileged")
