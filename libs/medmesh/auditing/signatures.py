"""Whether what the log says was approved, accepted and enrolled was signed with keys of the roster that an auditor pinned.

Who owns the platform can write any record, and the log proves that it stands there; these signatures nobody on the platform can make. The
records of one federation are held against each other too: what runs was approved, and who sent an update had accepted.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime
from typing import Any

from medmesh.auditing import continued
from medmesh.errors import Problem
from medmesh.federated.proof import accepted
from medmesh.ledger.record import read_record
from medmesh.ledger.report import Report
from medmesh.security import approvals, reviews, statements
from medmesh.security.roster import Roster
from medmesh.security.statements import CodeApproval, PlanApproval, enrolment_digest

Record = dict[str, Any]


class Signatures:
    """Looks at one record after the other, in the log's order. `whole` is False where records may be absent: then nothing is concluded
    from their absence."""

    def __init__(self, roster: Roster, *, whole: bool = True) -> None:
        self._roster, self._whole, self._concludes = roster, whole, whole
        self._approved: set[tuple[str, str]] = set()
        self._accepted: set[tuple[str, str]] = set()
        self._rounds = continued.Continued()

    def inspect(self, report: Report, seq: int, body: bytes) -> None:
        """Note a fault when the record needs a signature and has none that counts."""
        if _WANTED(body) is None:
            return
        record = read_record(body)
        self._concludes = self._whole and not report.without_body and not report.pruned
        check, told = _CHECKS.get(record["sub"]), record["sub"] in continued.VERBS
        if record["out"] != 0 or (check is None and not told):
            return
        try:
            report.signatures += check(self, record) if check is not None else 0
            found = self._rounds.look(seq, record, whole=self._concludes and report.start == 0) if told else iter(())
            for trained, federation, number in found:
                report.fault("round", Problem("audit.uncommitted", seq=trained, federation=federation, round=number))
        except Problem as problem:
            report.fault("signature", Problem("audit.unsigned", seq=seq, verb=record["sub"], reason=problem.detail()))
        except (KeyError, IndexError, ValueError, TypeError, StopIteration):
            report.fault("signature", Problem("audit.unsigned", seq=seq, verb=record["sub"], reason="its fields do not fit"))

    # Each answers how many signatures it verified, and raises `Problem` (or what a missing field raises).

    def _decided(self, record: Record) -> int:
        who = f"{record['agents'][0]['who']}@{record['agents'][0]['org']}"
        approval, about = record["entities"][0], record["entities"][1]
        signed = statements.unpack(record["approval"]["statements"])
        name, found = approvals.decided(
            signed,
            self._roster,
            approval=approval["id"],
            action=about["type"],
            target=about["id"],
            digest=approval["digest"],
            requester=record["approval"]["requester"],
            seen=_seen(record),
        )
        if name != who or found.approve != record["detail"]["approve"]:
            raise Problem("statement.other", what="approver")
        return 1

    def _requested(self, record: Record) -> int:
        """Where it was signed, by who asked; where it must be and is not, what follows from it is named too."""
        who, approval = f"{record['agents'][0]['who']}@{record['agents'][0]['org']}", record["entities"][0]
        about = {"action": record["detail"]["action"], "target": record["detail"].get("target", ""), "digest": approval["digest"]}
        asking = statements.unpack(record["detail"]["asking"]) if "asking" in record["detail"] else ""
        return int(approvals.asked(asking, self._roster, **about, requester=who, seen=_seen(record)) is not None)

    def _approval(self, record: Record, action: str, target: str, digest: str) -> int:
        said = record["approval"]
        signed = [statements.unpack(one) for one in filter(None, said.get("statements", "").split(","))]
        about = {"approval": said["id"], "action": action, "target": target, "digest": digest, "requester": said["requester"]}
        approvals.approvers_of(signed, self._roster, **about, seen=_seen(record))
        del about["approval"]
        asking = statements.unpack(said["asking"]) if "asking" in said else ""
        found = approvals.asked(asking, self._roster, **about, seen=_seen(record))
        return len(signed) + (found is not None)

    def _released(self, record: Record) -> int:
        if record["act"] != "E":
            return 0
        release = _entity(record, "release")
        return self._approval(record, "model.release", release["id"], release["digest"])

    def _exported(self, record: Record) -> int:
        if record["detail"].get("state") != "approved":
            return 0
        export = _entity(record, "export")
        return self._approval(record, "audit.export", export["id"], export["digest"])

    def _versioned(self, record: Record, kind: str) -> int:
        """Of one version of something, whose digest the approvers signed."""
        if record["act"] != "E":
            return 0
        about, said = _entity(record, kind), record["approval"]
        if said["target"] != f"{about['id']}/{about['ver']}":
            raise Problem("statement.other", what="target")
        return self._approval(record, record["sub"], said["target"], said["digest"])

    def _lowered(self, record: Record) -> int:
        """A label that was raised needed nobody."""
        if not record["detail"].get("lowered"):
            return 0
        about, said = record["entities"][0], record["approval"]
        if said["target"] != "/".join(filter(None, (about["type"], about["id"], about["ver"]))):
            raise Problem("statement.other", what="target")
        return self._approval(record, "label.change", said["target"], said["digest"])

    def _log_changed(self, record: Record) -> int:
        """Pruning, retention, a hold that was lifted: what would make records disappear."""
        if not record["approval"] and record["sub"] == "log.hold":
            return 0  # placing one needs nobody
        change = _entity(record, "change")
        action = "log.prune" if record["sub"] == "log.prune" else "retention.change"
        return self._approval(record, action, change["id"], change["digest"])

    def _policy_changed(self, record: Record) -> int:
        policy = _entity(record, "policy")
        return self._approval(record, "policy.change", policy["id"], policy["digest"])

    def _dataset_released(self, record: Record) -> int:
        return self._versioned(record, "dataset")

    def _labels_exported(self, record: Record) -> int:
        return self._versioned(record, "labels")

    def _enrolled(self, record: Record) -> int:
        hospital, node = _entity(record, "hospital")["id"], _entity(record, "node")["id"]
        detail = record["detail"]
        digest = enrolment_digest(hospital, node, detail["organisation_key"], detail["request"])
        return self._approval(record, "hospital.enrol", record["approval"]["target"], digest)

    def _federation_created(self, record: Record) -> int:
        """Who the record says to have read the code signed for it."""
        if "reviews" not in record["detail"]:
            return 0
        signed = [statements.unpack(one) for one in record["detail"]["reviews"].split(",")]
        initiator = f"{record['agents'][0]['who']}@{record['agents'][0]['org']}"
        digest = _entity(record, "package")["digest"]
        found = reviews.reviewers(signed, self._roster, package=digest, initiator=initiator, seen=_seen(record))
        if ", ".join(found) != record["detail"]["reviewers"]:
            raise Problem("statement.other", what="reviewers")
        return len(signed)

    def _federation_approved(self, record: Record) -> int:
        federation = _entity(record, "federation")
        count = self._approval(record, "federation.start", federation["id"], federation["digest"])
        self._approved.add((federation["id"], federation["digest"]))
        return count

    def _federation_unapproved(self, record: Record) -> int:
        federation = _entity(record, "federation")
        self._approved.discard((federation["id"], federation["digest"]))
        return 0

    def _accepting(self, record: Record, hospital: str) -> int:
        if not record["detail"].get("accepted"):
            return 0
        federation = _entity(record, "federation")
        signed = statements.unpack(record["detail"].get("statement", ""))
        about = {"federation": federation["id"], "plan_hash": federation["digest"], "hospital": hospital}
        accepted(signed, self._roster, **about, seen=_seen(record))
        return 1

    def _responded(self, record: Record) -> int:
        hospital = record["agents"][0]["who"].removeprefix("hospital:")
        count = self._accepting(record, hospital)
        if count:
            self._accepted.add((_entity(record, "federation")["id"], hospital))
        return count

    def _consented(self, record: Record) -> int:
        return self._accepting(record, record["src"]["org"])

    def _code(self, record: Record) -> int:
        signed = statements.unpack(record["detail"].get("statement", ""))
        seen, hospital = _seen(record), record["src"]["org"]
        if signed.startswith(f"{CodeApproval.HEAD}\n"):
            package = self._roster.hospital(signed, CodeApproval, seen, hospital).package
        else:
            found = self._roster.hospital(signed, PlanApproval, seen, hospital)
            package, federation = found.package, _entity(record, "federation")
            if (found.federation, found.plan) != (federation["id"], federation["digest"]):
                raise Problem("statement.other", what="plan")
        if package != _entity(record, "package")["digest"]:
            raise Problem("statement.other", what="package")
        return 1

    def _moved(self, record: Record) -> int:
        federation = _entity(record, "federation")
        if self._concludes and record["detail"].get("to") == "running" and (federation["id"], federation["digest"]) not in self._approved:
            raise Problem("federation.unproven", federation=federation["id"])
        return 0

    def _round(self, record: Record) -> int:
        federation = _entity(record, "federation")
        if self._concludes and (federation["id"], federation["digest"]) not in self._approved:
            raise Problem("federation.unproven", federation=federation["id"])
        return 0

    def _updated(self, record: Record) -> int:
        hospital = record["agents"][0]["who"].removeprefix("hospital:")
        if self._concludes and (_entity(record, "federation")["id"], hospital) not in self._accepted:
            raise Problem("federation.stranger", hospital=hospital)
        return 0


def _entity(record: Record, kind: str) -> dict[str, str]:
    """The first entity of a kind. Raises `IndexError` when there is none."""
    found: dict[str, str] = [entity for entity in record["entities"] if entity["type"] == kind][0]  # noqa: RUF015 - IndexError is caught
    return found


def _seen(record: Record) -> datetime:
    """When it was recorded: the log's word, which witnesses bound."""
    return datetime.fromisoformat(record["tr"])


_CHECKS: dict[str, Callable[[Signatures, Record], int]] = {
    "approval.request": Signatures._requested,
    "approval.decide": Signatures._decided,
    "model.release": Signatures._released,
    "audit.export": Signatures._exported,
    "dataset.release": Signatures._dataset_released,
    "annotation.export": Signatures._labels_exported,
    "label.change": Signatures._lowered,
    "log.prune": Signatures._log_changed,
    "retention.change": Signatures._log_changed,
    "log.hold": Signatures._log_changed,
    "policy.change": Signatures._policy_changed,
    "node.enrolled": Signatures._enrolled,
    "federation.create": Signatures._federation_created,
    "federation.approved": Signatures._federation_approved,
    "federation.unapproved": Signatures._federation_unapproved,
    "federation.respond": Signatures._responded,
    "federation.consent": Signatures._consented,
    "package.approve": Signatures._code,
    "federation.move": Signatures._moved,
    "federation.round": Signatures._round,
    "federation.update": Signatures._updated,
}
_WANTED = re.compile(
    b'"sub":"(?:' + b"|".join(re.escape(verb.encode()) for verb in {**_CHECKS, **dict.fromkeys(continued.VERBS)}) + b')"'
).search
"""Records are canonical, so that a verb has one spelling; whatever else matches is read and passed over."""
