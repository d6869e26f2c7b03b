"""The one decision: security label, then role table, then object rule; deny by default.

The label is mandatory: no role and no rule opens what somebody is not cleared for. Object rules are Cedar policies
(`policies/objects.cedar`), to which a site may add its own, which only forbid. All of it is pure: who keeps the rules up to date and who
finds the objects is `medmesh.service`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cache, cached_property, lru_cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from medmesh.canonical import digest
from medmesh.errors import Problem
from medmesh.security import emergency, roles
from medmesh.security.labels import INTERNAL, Label
from medmesh.security.roles import Decision
from medmesh.security.tokens import Actor

if TYPE_CHECKING:  # a node decides nothing by objects, and does without it
    import cedarpy

HIDDEN = "request.not_found"
"""What somebody is told of an object they may not know of: the same as of one that is not there."""
EVERYBODY = "*"
"""Among the organisations that see an object: every one."""
EMERGENCY = "emergency"
ORGANISATION = "object.organisation"
MAX_SITE_BYTES = 32 * 1024
MENDING = frozenset({"policy.read", "policy.propose", "approval.decide", "approval.list", "object.describe", "revocation.list"})
"""Actions that no policy of a site reaches: a policy that forbids too much must not forbid to mend it."""
_DECISIONS = 8_192
_WORDS = {
    "dataset": "data set",
    "project": "annotation project",
    "model": "model version",
}
"""Kinds as people are told of them, where that is another word."""


@dataclass(frozen=True, slots=True)
class Object:
    """What an action is about, as far as it decides. One without a label (`labelled` false) is open to whoever the other rules let."""

    kind: str
    id: str
    label: Label = INTERNAL
    labelled: bool = False
    owner: str = ""
    organisations: frozenset[str] = frozenset()
    maker: str = ""
    reader: str = ""

    @property
    def unknown(self) -> Problem:
        """What is told of it when it is not there, or not for the asker."""
        return Problem("request.not_found", kind=_WORDS.get(self.kind, self.kind), id=self.id)


NO_OBJECT = Object("platform", "platform")
"""What an action is about that names nothing."""


@dataclass(frozen=True)
class Rules:
    """All that decides: role table, built-in object rules, and those of the site. Made once, asked often."""

    site: str = ""

    def __post_init__(self) -> None:
        if self.site:  # what does not parse is refused when it is made
            _ = self._policies

    @cached_property
    def _policies(self) -> cedarpy.PolicySet:
        import cedarpy

        return cedarpy.PolicySet.from_str(built_in() + "\n" + self.site)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over everything that decides: it stands in each decision's record."""
        return digest({"roles": roles.policy_digest(), "schema": schema(), "objects": built_in(), "site": self.site})

    @cached_property
    def problems(self) -> Mapping[str, str]:
        """Policy id to the code that is told when it forbids."""
        return {one["id"]: one.get("problem", "access.denied") for one in policies_of(built_in() + "\n" + self.site)}

    def ask(self, principal: str, action: str, resource: str) -> tuple[bool, tuple[str, ...]]:
        """(allowed, ids of the rules that said so). Both sides are JSON of one Cedar entity, so that a decision can be remembered."""
        return _ask(self, principal, action, resource)

    def __hash__(self) -> int:
        return hash(self.site)


@cache
def built_in() -> str:
    """The platform's own object rules."""
    return (resources.files("medmesh.security") / "policies" / "objects.cedar").read_text(encoding="utf-8")


@cache
def schema() -> str:
    """What policies may speak of: `policies/medmesh.cedarschema` and the actions of the role table."""
    entities = (resources.files("medmesh.security") / "policies" / "medmesh.cedarschema").read_text(encoding="utf-8")
    actions = ", ".join(json.dumps(action) for action in sorted(roles.TABLE))
    return f"{entities}\naction {actions} appliesTo {{ principal: Actor, resource: Object }};\n"


def policies_of(text: str) -> list[dict[str, str]]:
    """The annotations and the effect of each policy of a text, in order. Raises `ValueError`."""
    import cedarpy

    found = json.loads(cedarpy.policies_to_json_str(text))
    if found.get("templates"):
        raise ValueError("templates are not taken")
    policies = found["staticPolicies"]
    ordered = sorted(policies, key=lambda name: int(name.removeprefix("policy")))
    return [{**{k: v or "" for k, v in policies[n].get("annotations", {}).items()}, "effect": policies[n]["effect"]} for n in ordered]


def check_site(text: str) -> None:
    """Refuse additional policies that do not fit. A site only forbids: what is allowed stands in the role table and nowhere else.

    Raises `Problem` (`access.policy_invalid`) with the validator's words.
    """
    if len(text.encode()) > MAX_SITE_BYTES:
        raise Problem("access.policy_invalid", reason=f"more than {MAX_SITE_BYTES} bytes")
    try:
        found = policies_of(text)
    except ValueError as error:
        raise Problem("access.policy_invalid", reason=_words(error)) from None
    taken = {one["id"] for one in policies_of(built_in())}
    for number, one in enumerate(found, 1):
        name = one.get("id", "")
        if one["effect"] != "forbid":
            raise Problem("access.policy_invalid", reason=f"policy {number} permits; a site's policies only forbid")
        if not name or name in taken:
            raise Problem("access.policy_invalid", reason=f'policy {number} needs an @id("…") of its own')
        if one.get("problem", "access.denied") not in ("access.denied", HIDDEN):
            raise Problem("access.policy_invalid", reason=f"policy {number}: @problem is access.denied or {HIDDEN}")
        taken.add(name)
    if errors := validate(text):
        raise Problem("access.policy_invalid", reason="; ".join(errors[:5]))


def validate(text: str) -> list[str]:
    """What the validator says against policies."""
    import cedarpy

    try:
        result = cedarpy.validate_policies(text, schema())
    except ValueError as error:
        return [_words(error)]
    return [] if result.validation_passed else [_words(error) for error in result.errors]


def _words(error: object) -> str:
    return " ".join(str(error).split())[:400]


BUILT_IN = Rules()
"""The rules without a site's."""


@lru_cache(maxsize=_DECISIONS)
def _ask(rules: Rules, principal: str, action: str, resource: str) -> tuple[bool, tuple[str, ...]]:
    import cedarpy

    who, what = json.loads(principal), json.loads(resource)
    request = {"principal": who["uid"], "action": {"type": "Action", "id": action}, "resource": what["uid"], "context": {}}
    result = cedarpy.is_authorized(request, rules._policies, f"[{principal},{resource}]")
    diagnostics = result.diagnostics
    names = [diagnostics.id_annotations_by_reason.get(reason, reason) for reason in diagnostics.reasons]
    if diagnostics.errors:  # a forbid that could not be evaluated forbids: Cedar itself would pass over it
        return False, ("object.error",)
    return result.allowed, tuple(sorted(names)) or ("object.default",)


@lru_cache(maxsize=_DECISIONS)
def _principal(actor: Actor) -> str:
    attributes = {
        "kind": actor.kind,
        "id": actor.id,
        "name": actor.text,
        "organisation": actor.organisation,
        "roles": sorted(actor.roles),
        "level": int(actor.clearance.level),
        "compartments": sorted(actor.clearance.compartments),
    }
    return json.dumps({"uid": {"type": "Actor", "id": actor.text}, "attrs": attributes, "parents": []})


@lru_cache(maxsize=_DECISIONS)
def _resource(thing: Object) -> str:
    attributes: dict[str, Any] = {
        "kind": thing.kind,
        "id": thing.id,
        "labelled": thing.labelled,
        "level": int(thing.label.level),
        "compartments": sorted(thing.label.compartments),
        "owner": thing.owner,
        "organisations": sorted(thing.organisations),
    }
    attributes |= {name: value for name, value in (("maker", thing.maker), ("reader", thing.reader)) if value}
    return json.dumps({"uid": {"type": "Object", "id": f"{thing.kind}/{thing.id}"}, "attrs": attributes, "parents": []})


def decide(actor: Actor, action: str, at: datetime, thing: Object = NO_OBJECT, rules: Rules = BUILT_IN) -> Decision:
    """Whether `actor` may do `action` with `thing` at the time `at`: label, role table, object rule.

    An emergency access opens what `_opened` says against a label, the role table and the rule of organisations, and against nothing else;
    `emergency` is then the rule that decided.
    """
    opened, passed, overridden = _opened(actor, action, at, thing), list[str](), False
    if thing.labelled:
        cleared = actor.clearance.dominates(thing.label)
        if not cleared and not opened:
            return Decision(False, "label", rules.digest, problem=HIDDEN)
        overridden |= not cleared
        passed.append(f"label:{thing.label.text}" if cleared else "label")
    found = roles.allow(actor, action, at)
    overridden |= found.allowed and found.rule == EMERGENCY
    if not found.allowed or (found.rule == EMERGENCY and not opened):
        return Decision(False, "default" if found.allowed else found.rule, rules.digest, tuple(passed))
    passed.append(found.rule)
    asked = BUILT_IN if action in MENDING else rules
    allowed, names = asked.ask(_principal(actor), action, _resource(thing))
    if not allowed and not (opened and names == (ORGANISATION,)):
        return Decision(False, names[0], rules.digest, tuple(passed), rules.problems.get(names[0], "access.denied"))
    overridden |= not allowed
    if overridden:
        return Decision(True, EMERGENCY, rules.digest, tuple(one for one in (*passed, *names) if one != EMERGENCY))
    return Decision(True, names[0], rules.digest, tuple(passed))


def _opened(actor: Actor, action: str, at: datetime, thing: Object) -> bool:
    """Whether an emergency access of this person opens the action here: on what its organisation owns or was let in to by name and is in
    no other's compartment; and before the object is known."""
    if not thing.labelled or actor.emergency is None:
        return emergency.permits(actor.emergency, action, at)
    whose = actor.emergency.organisation
    seen = whose in thing.organisations and thing.label.compartments <= {whose}
    return seen and emergency.covers(actor.emergency, action, at, whose)


def denial(decision: Decision, actor: Actor, action: str, thing: Object = NO_OBJECT) -> Problem:
    """What somebody is told who may not: the code that the rule names (`@problem`), in words of this object."""
    match decision.problem:
        case "":
            return roles.denial(decision, actor, action)
        case "request.not_found":
            return thing.unknown
        case "security.approval_maker":
            return Problem("security.approval_maker", requester=thing.maker)
        case "governance.not_yours":
            return Problem("governance.not_yours", approval=thing.id)
        case "governance.yourself":
            return Problem("governance.yourself")
        case "annotation.own_label":
            return Problem("annotation.own_label")
        case _:
            return Problem("access.denied", actor=actor.text, action=action)


def require(actor: Actor, action: str, at: datetime, thing: Object = NO_OBJECT, rules: Rules = BUILT_IN) -> Decision:
    """The decision that allows it. Raises `Problem`."""
    decision = decide(actor, action, at, thing, rules)
    if not decision.allowed:
        raise denial(decision, actor, action, thing)
    return decision


def policy_digest() -> str:
    """The digest of the rules without a site's: what decides at a hospital's node."""
    return BUILT_IN.digest
