"""Records that say what was approved, accepted and enrolled, held against a pinned roster; each passes honestly and fails forged."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.rosters import acceptance, decision, roster_of

from medmesh.auditing.signatures import Signatures
from medmesh.ledger.report import Report
from medmesh.security.approvals import Approval
from medmesh.security.signing import Signer
from medmesh.security.statements import Asking, CodeApproval, PlanApproval, enrolment_digest, pack, sign
from medmesh.security.tokens import Actor
from medmesh.service.recording import recorder
from medmesh.store.unit import AuditEntry, Context, Entity

WU, RENJI, XIEHE = Signer.create("person:wu@platform"), Signer.create("hospital:renji"), Signer.create("hospital:xiehe")
FORGER, GHOST = Signer.create(WU.name), Signer.create("hospital:ghost")
ROSTER = roster_of(WU, RENJI, XIEHE)
DIGEST, PLAN, CODE = "1" * 64, "2" * 64, "3" * 64
LI = "person:li@platform"


def body(service: str, entry: AuditEntry, actor: Actor | None = None) -> bytes:
    node = service.startswith("edge:")
    record = recorder(service=service, instance="1", organisation=service.removeprefix("edge:"), version="0", node=node)
    return record(entry, Context(service, None, actor), "id", 1, "")


def hospital(name: str) -> Actor:
    return Actor("hospital", name, name, frozenset(("hospital",)))


def approved(action: str, target: str, digest: str, by: Signer = WU) -> dict[str, str]:
    """What an executing service's record says of the approval."""
    about = {"approval": "a", "action": action, "target": target, "digest": digest, "requester": LI}
    signed = decision(by, **about, expires=datetime.now(UTC) + timedelta(hours=1))
    return Approval("a", action, target, digest, LI, (WU.name,), (signed,), datetime.now(UTC)).evidence()


def released(by: Signer = WU, release: str = "r", digest: str = DIGEST) -> bytes:
    about = (Entity("release", release, digest=digest), Entity("model", "m", "1"))
    return body("registry", AuditEntry("model.release", "E", entities=about, approval=approved("model.release", "r", DIGEST, by)))


def decided(by: Signer = WU, who: str = "wu", approve: bool = True) -> bytes:
    about = {"approval": "a", "action": "model.release", "target": "r", "digest": DIGEST, "requester": LI}
    signed = decision(by, **about, expires=datetime.now(UTC) + timedelta(hours=1))
    entry = AuditEntry(
        "approval.decide",
        "U",
        entities=(Entity("approval", "a", digest=DIGEST), Entity("model.release", "r")),
        approval={"id": "a", "requester": LI, "statements": pack(signed)},
        detail={"approve": approve, "state": "granted"},
    )
    return body("governance", entry, Actor("person", who, "platform", frozenset(("approver",))))


def enrolled(by: Signer = WU, key: str = RENJI.vkey, name: str = "renji") -> bytes:
    digest = enrolment_digest("renji", "node-1", RENJI.vkey, CODE)
    about = (Entity("node", "node-1", digest=DIGEST), Entity("hospital", name))
    detail: dict[str, Any] = {"organisation_key": key, "request": CODE}
    return body(
        "governance", AuditEntry("node.enrolled", "C", entities=about, approval=approved("hospital.enrol", "e", digest, by), detail=detail)
    )


def responded(by: Signer = RENJI, name: str = "renji", plan: str = PLAN) -> bytes:
    about = (Entity("federation", "f", digest=plan),)
    detail: dict[str, Any] = {"accepted": True, "statement": pack(acceptance(by, "f", PLAN, name))}
    return body("federation", AuditEntry("federation.respond", "U", entities=about, detail=detail), hospital(name))


def started(by: Signer = WU) -> bytes:
    about = (Entity("federation", "f", digest=PLAN),)
    return body("federation", AuditEntry("federation.approved", "E", entities=about, approval=approved("federation.start", "f", PLAN, by)))


def unapproved() -> bytes:
    about = (Entity("federation", "f", digest=PLAN),)
    return body("federation", AuditEntry("federation.unapproved", "U", why="revoked", entities=about, approval={"id": "a"}))


def moved(to: str = "running") -> bytes:
    return body("federation", AuditEntry("federation.move", "U", entities=(Entity("federation", "f", digest=PLAN),), detail={"to": to}))


def updated(name: str = "renji") -> bytes:
    about = (Entity("federation", "f", digest=PLAN), Entity("update", "1.1", digest=DIGEST))
    return body("federation", AuditEntry("federation.update", "C", entities=about), hospital(name))


def code_approved(by: Signer = RENJI, package: str = CODE, plan: str = PLAN, *, before: bool = False) -> bytes:
    """With `before`, as it was approved when an approval was of code alone."""
    about = (Entity("package", package[:16], digest=package), Entity("federation", "f", digest=plan))
    who: dict[str, Any] = {"made": datetime.now(UTC), "package": CODE, "hospital": "renji", "by": "doctor-zhao"}
    said = CodeApproval(**who) if before else PlanApproval(**who, federation="f", plan=PLAN, environment=CODE)
    return body(
        "edge:renji", AuditEntry("package.approve", "E", entities=about, detail={"statement": pack(sign(said, by))}), hospital("renji")
    )


Detail = dict[str, str | int | bool]
APPROVED: dict[str, tuple[str, str, Entity, str, str, Detail]] = {
    # what: service, verb, what the record is about, action and target that were approved, detail
    "a data set": ("ingestion", "dataset.release", Entity("dataset", "d", "1", DIGEST), "dataset.release", "d/1", {}),
    "labels": ("annotation", "annotation.export", Entity("labels", "p", "2", DIGEST), "annotation.export", "p/2", {}),
    "a lower label": ("registry", "label.change", Entity("model", "m", "1"), "label.change", "model/m/1", {"lowered": True}),
    "an export": ("audit", "audit.export", Entity("export", "x", "", DIGEST), "audit.export", "x", {"state": "approved"}),
    "pruning": ("audit", "log.prune", Entity("change", "c", "", DIGEST), "log.prune", "c", {}),
    "retention": ("audit", "retention.change", Entity("change", "c", "", DIGEST), "retention.change", "c", {}),
    "a hold that was lifted": ("audit", "log.hold", Entity("change", "c", "", DIGEST), "retention.change", "c", {}),
    "a policy": ("governance", "policy.change", Entity("policy", "site", "", DIGEST), "policy.change", "site", {}),
}


def executed(what: str, by: Signer | None = WU, about: Entity | None = None) -> bytes:
    """The record of something approved, about what was approved or about something else."""
    service, verb, thing, action, target, detail = APPROVED[what]
    approval = None if by is None else {**approved(action, target, DIGEST, by), "target": target, "digest": DIGEST}
    return body(service, AuditEntry(verb, "E", entities=(about or thing,), approval=approval, detail=detail))


@pytest.mark.parametrize("what", APPROVED)
def test_what_takes_an_approval_is_held_against_exactly_that_one(what: str) -> None:
    """Every other number, and every other bytes where the record names them, are not what was signed."""
    thing = APPROVED[what][2]
    report = look(executed(what))
    assert (report.faults, report.signatures) == ([], 1)
    wrong = {
        "another key": executed(what, FORGER),
        "another one": executed(what, about=replace(thing, id="other")),
        "another version": executed(what, about=replace(thing, version="7")) if thing.version else None,
    }
    if what != "a hold that was lifted":  # placing one takes nobody
        wrong["no approval"] = executed(what, None)
    for name, record in wrong.items():
        if record is not None:
            assert [fault.problem.code for fault in look(record).faults] == ["audit.unsigned"], name


def test_what_takes_no_approval_needs_none() -> None:
    raised = AuditEntry("label.change", "U", entities=(Entity("model", "m", "1"),), detail={"lowered": False})
    placed = AuditEntry("log.hold", "C", entities=(Entity("hold", "h"),))
    assert look(body("registry", raised), body("audit", placed)).faults == []


def look(*bodies: bytes, whole: bool = True) -> Report:
    report, signatures = Report(), Signatures(ROSTER, whole=whole)
    for seq, one in enumerate(bodies):
        signatures.inspect(report, seq, one)
    return report


HONEST = (
    *(decided(), released(), enrolled(), responded(), started(), unapproved(), started(), moved(), updated()),
    *(code_approved(), code_approved(before=True)),
)


def forgeries() -> Iterator[tuple[str, tuple[bytes, ...]]]:
    yield "an approver's name, another key", (decided(FORGER),)
    yield "an approver's signature under another's name", (decided(who="he"),)
    yield "a yes where a no was signed", (decided(approve=False),)
    yield (
        "a release nobody signed",
        (body("registry", AuditEntry("model.release", "E", entities=(Entity("release", "r", digest=DIGEST),))),),
    )
    yield "a release signed by another key", (released(FORGER),)
    yield "the signatures of another release", (released(release="s"),)
    yield "the signatures of other bytes", (released(digest="9" * 64),)
    yield "an enrolment signed by another key", (enrolled(FORGER),)
    yield "an enrolment with another organisation key", (enrolled(key=GHOST.vkey),)
    yield "an enrolment of another hospital", (enrolled(name="ghost"),)
    yield "a hospital nobody knows", (responded(GHOST, "ghost"),)
    yield "a hospital's name, another key", (responded(Signer.create("hospital:renji")),)
    yield "a hospital's signature under another plan", (responded(plan="9" * 64),)
    yield "another hospital's signature", (responded(XIEHE),)
    yield "a start signed by another key", (started(FORGER),)
    yield "a federation that runs and was not approved", (responded(), moved())
    yield "a federation that runs though its approval was revoked", (responded(), started(), unapproved(), moved())
    yield "an update of a hospital that did not accept", (responded(), started(), moved(), updated("xiehe"))
    yield "code approved by another key", (code_approved(XIEHE),)
    yield "other code than was approved", (code_approved(package="9" * 64),)
    yield "other code than was approved before approvals were of plans", (code_approved(package="9" * 64, before=True),)
    yield "another plan than was approved", (code_approved(plan="9" * 64),)


def test_what_was_signed_by_keys_of_the_roster_passes_and_is_counted() -> None:
    report = look(*HONEST)
    assert report.faults == []
    assert report.signatures == 8, "a move and an update are held against others and carry none"


@pytest.mark.parametrize(("what", "bodies"), list(forgeries()), ids=lambda given: given if isinstance(given, str) else "")
def test_whatever_was_forged_is_found_and_named(what: str, bodies: tuple[bytes, ...]) -> None:
    report = look(*HONEST[:2], *bodies)
    (fault,) = report.faults
    assert (fault.check, fault.problem.code, fault.seq) == ("signature", "audit.unsigned", 1 + len(bodies)), what


def test_absent_records_prove_nothing_and_refusals_and_others_need_no_signature() -> None:
    assert look(moved(), updated(), whole=False).faults == [], "in a copy of some records the approval may be another's to read"
    refused = AuditEntry("model.release", "E", 4, "registry.release_refused", (Entity("release", "r", digest=DIGEST),))
    assert look(body("registry", refused), body("registry", AuditEntry("model.register", "C"))).faults == []
    hidden = AuditEntry("model.release", "E", entities=(Entity("release", "r", digest=DIGEST),), detail={"sub": "model.register"})
    assert look(body("registry", hidden)).code == 1, "what a detail says is no way around"


# --- who asked ------------------------------------------------------------------------------------------------------

ASKER = Signer.create(LI)
STRICT = roster_of(WU, ASKER).model_copy(update={"signed_requests": ("model.release",)})


def requested(by: Signer | None = ASKER, who: str = "li", **said: str) -> bytes:
    values = {"action": "model.release", "target": "r", "digest": DIGEST, "requester": LI, **said}
    detail: dict[str, Any] = {"action": "model.release", "target": "r"}
    if by is not None:
        detail["asking"] = pack(sign(Asking(made=datetime.now(UTC), **values), by))
    entry = AuditEntry("approval.request", "C", entities=(Entity("approval", "a", digest=DIGEST),), detail=detail)
    return body("governance", entry, Actor("person", who, "platform", frozenset(("researcher",))))


def released_as_asked(by: Signer | None = ASKER) -> bytes:
    about = (Entity("release", "r", digest=DIGEST), Entity("model", "m", "1"))
    said = approved("model.release", "r", DIGEST)
    if by is not None:
        values = {"action": "model.release", "target": "r", "digest": DIGEST, "requester": LI}
        said["asking"] = pack(sign(Asking(made=datetime.now(UTC), **values), by))
    return body("registry", AuditEntry("model.release", "E", entities=about, approval=said))


def strictly(*bodies: bytes) -> Report:
    report, signatures = Report(), Signatures(STRICT)
    for seq, one in enumerate(bodies):
        signatures.inspect(report, seq, one)
    return report


def test_a_request_that_was_signed_passes_and_is_counted() -> None:
    report = strictly(requested(), released_as_asked())
    assert (report.faults, report.signatures) == ([], 3)
    assert look(requested(None), released()).faults == [], "where the keepers do not want it nothing is missing"


@pytest.mark.parametrize(
    "forged",
    [
        requested(None),
        requested(Signer.create(LI)),
        requested(WU),
        requested(who="zhao"),
        requested(target="s"),
        requested(action="federation.start"),
        requested(digest="9" * 64),
        requested(requester=WU.name),
        released_as_asked(None),
        released_as_asked(Signer.create(LI)),
        released_as_asked(WU),
    ],
    ids=("unsigned", "another key", "another person's", "under another's name", "another target", "another action", "other bytes",
         "another requester", "released unasked", "released, another key", "released, asked by the approver"),
)  # fmt: skip
def test_a_request_in_anothers_name_is_found(forged: bytes) -> None:
    (fault,) = strictly(requested(), forged).faults
    assert (fault.problem.code, fault.seq) == ("audit.unsigned", 1)
