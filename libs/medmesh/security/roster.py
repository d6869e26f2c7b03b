"""The roster: whose signatures count. The one thing that is pinned out of band, and that no key on the platform can change.

A version is a signed note of canonical JSON: the keys of people with their roles, of hospitals, the log with its witnesses, and the
*keepers*, whose keys are not on the platform. As with the root of TUF, a version counts when the threshold of the keepers of the
version before it signed it, and that of its own; numbers rise by one, and each names the digest of the one before. Keys are never taken
out, only ended at a date, so that the newest version judges old signatures too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

from pydantic import Field, ValidationError

from medmesh.canonical import canonical
from medmesh.contracts.message import Record
from medmesh.errors import Problem
from medmesh.ledger import note
from medmesh.ledger.policy import Policy, parse_policy
from medmesh.security import statements
from medmesh.security.signing import read_aloud
from medmesh.security.statements import S

HEAD = "medmesh-roster-v1"
ASKED_FOR = frozenset(
    (
        "annotation.export",
        "audit.export",
        "dataset.release",
        "federation.release",
        "federation.rollback",
        "federation.start",
        "label.change",
        "log.prune",
        "model.release",
        "retention.change",
    )
)
"""What somebody asks approval for in words of their own; a policy and an enrolment are asked for by what is proposed and by a node."""
SKEW = timedelta(minutes=5)
"""How far the clocks of a signer and of a keeper may be apart."""
_log_policy = lru_cache(8)(parse_policy)  # asked for in every round


class Member(Record):
    """A key that counts from `since` until `until`. Statements that say to be older than its end stay good, unless it was `compromised`:
    then those only that somebody saw in time (a log that was witnessed)."""

    key: str
    roles: tuple[str, ...] = ()
    about: str = ""
    since: datetime
    until: datetime | None = None
    compromised: bool = False

    @property
    def name(self) -> str:
        """Whose it is."""
        return self.key.split("+", 1)[0]


class Roster(Record):
    """One version. `approvals` says how many approvers an action needs; `*` is the rule for those it does not name."""

    platform: str
    version: int = Field(ge=1)
    previous: str = ""
    made: datetime
    expires: datetime
    keepers: tuple[str, ...] = Field(min_length=1)
    threshold: int = Field(ge=1)
    people: tuple[Member, ...] = ()
    hospitals: tuple[Member, ...] = ()
    approvals: dict[str, int] = Field(default_factory=lambda: {"*": 1})
    signed_requests: tuple[str, ...] = ()
    """Actions for which who asks must have signed too, with a key of this roster: nothing can be asked for under another's name."""
    policy: str
    """C2SP tlog-policy: the log's key, its witnesses and their quorum."""

    def needed(self, action: str) -> int:
        """How many approvers."""
        return self.approvals.get(action, self.approvals.get("*", 1))

    def log_policy(self) -> Policy:
        """What a checkpoint must satisfy. Raises `Problem` (`ledger.policy`)."""
        return _log_policy(self.policy.encode())

    def check_fresh(self, now: datetime) -> None:
        """A roster that nobody renewed may be one that is held back. Raises `Problem` (`roster.expired`)."""
        if now > self.expires:
            raise Problem("roster.expired", version=self.version, end=self.expires.date().isoformat())

    def person(self, signed: str, kind: type[S], seen: datetime, roles: Collection[str]) -> tuple[str, S]:
        """(who, what) of a person's statement; one of `roles` must be the signer's, where any are named. Raises `Problem` (`roster.*`,
        `statement.*`)."""
        member, found = _vouched(signed, kind, self.people, seen)
        if roles and not set(roles) & set(member.roles):
            raise Problem("roster.role", name=member.name, wanted=", ".join(sorted(roles)))
        return member.name, found

    def hospital(self, signed: str, kind: type[S], seen: datetime, name: str) -> S:
        """The statement of this hospital, signed with its own key. Raises `Problem` (`roster.*`, `statement.*`)."""
        return _vouched(signed, kind, [m for m in self.hospitals if m.name == f"hospital:{name}"], seen)[1]

    def stands_until(self, now: datetime) -> datetime:
        """Until when, by this version, every statement that counts at `now` counts on: a compromised key's count until it ends."""
        ends = [m.until for m in (*self.people, *self.hospitals) if m.compromised and m.until is not None and m.until >= now]
        return min(ends, default=datetime.max.replace(tzinfo=UTC))

    def has_hospital(self, vkey: str) -> bool:
        """Whether a hospital's key stands here and was not ended."""
        return any(member.key == vkey and member.until is None for member in self.hospitals)

    def lacks(self, hospitals: Iterable[str]) -> list[str]:
        """Those that have no key here that was not ended: nothing they sign would count."""
        there = {member.name for member in self.hospitals if member.until is None}
        return [name for name in hospitals if f"hospital:{name}" not in there]


def _vouched(signed: str, kind: type[S], members: Sequence[Member], seen: datetime) -> tuple[Member, S]:
    """The member who signed, and what. Everything about the note is hostile until its signature holds."""
    content, lines = note.split(signed)
    known = {member.key: member for member in members}
    keys = [note.parse_key(vkey) for vkey in known]
    lines_of = {(name, raw[:4]) for name, raw in lines}
    signing = [key for key in keys if (key.name, key.id) in lines_of]
    if len(signing) != 1:
        raise Problem("roster.unknown", name=", ".join(name for name, _ in lines)[:200])
    note.open_note(signed, signing)
    member, found = known[str(signing[0])], statements.read(content, kind)
    if found.made < member.since - SKEW or found.made > seen + SKEW:
        raise Problem("roster.early", name=member.name, said=found.made.isoformat())
    over = member.until is not None and found.made > member.until
    if over or (member.compromised and member.until is not None and seen > member.until):
        raise Problem("roster.ended", name=member.name, end=member.until.isoformat() if member.until else "")
    return member, found


def text(roster: Roster) -> str:
    """What keepers sign. Who has no list of signed requests says nothing of it, as rosters did before there was one."""
    document = roster.model_dump(mode="json", exclude=set() if roster.signed_requests else {"signed_requests"})
    return f"{HEAD}\n{canonical(document).decode()}\n"


def fingerprint(content: str) -> str:
    """Of a version's text, signatures aside: what is read aloud and pinned."""
    return read_aloud(content.encode())


def read(content: str) -> Roster:
    """The version in a text that somebody verified. Raises `Problem` (`roster.form`)."""
    head, _, body = content.partition("\n")
    try:
        if head != HEAD:
            raise ValueError("its first line")
        found = Roster.model_validate(json.loads(body))
        if text(found) != content:
            raise ValueError("its spelling is not canonical")
        _check(found)
    except ValidationError as error:
        where = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['type']}" for e in error.errors(include_input=False, include_url=False)[:5])
        raise Problem("roster.form", reason=where) from None
    except (ValueError, RecursionError) as error:
        raise Problem("roster.form", reason=str(error)) from None
    return found


def _check(roster: Roster) -> None:
    """Raise `ValueError` or `Problem` for what no version may be."""
    keepers = {note.parse_key(key).public for key in roster.keepers}
    if len(keepers) != len(roster.keepers) or roster.threshold > len(keepers):
        raise ValueError("a keeper twice, or fewer keepers than the threshold")
    for group, prefix in ((roster.people, "person:"), (roster.hospitals, "hospital:")):
        if any(not member.name.startswith(prefix) for member in group):
            raise ValueError(f"a key among the wrong ones: its name must begin with {prefix}")
    members = [note.parse_key(member.key) for member in (*roster.people, *roster.hospitals)]
    if len({key.public for key in members}) != len(members) or keepers & {key.public for key in members}:
        raise ValueError("one key under two names")
    if min(roster.approvals.values(), default=1) < 1:
        raise ValueError("an action that needs no approver")
    if unknown := set(roster.signed_requests) - ASKED_FOR:
        raise ValueError(f"nobody asks for {sorted(unknown)[0]} by themselves")
    roster.log_policy()


def _signed_by(signed: str, roster: Roster) -> None:
    try:
        signers = note.open_note(signed, [note.parse_key(key) for key in roster.keepers]).signers
    except Problem as problem:
        if problem.code != "ledger.unsigned":
            raise
        signers = {}
    if len(signers) < roster.threshold:
        raise Problem("roster.unsigned", version=roster.version, got=len(signers), wanted=roster.threshold)


def signers(signed: str, roster: Roster) -> list[str]:
    """The keepers whose signature is there and holds. Raises `Problem` when one is there and does not."""
    try:
        return sorted(key.name for key in note.open_note(signed, [note.parse_key(key) for key in roster.keepers]).signers)
    except Problem as problem:
        if problem.code in ("ledger.unsigned", "ledger.note"):
            return []
        raise


def first(signed: str) -> Roster:
    """A version that is pinned: its own keepers signed it. Whether it is the right one, its fingerprint tells. Raises `Problem`."""
    found = read(note.split(signed)[0])
    _signed_by(signed, found)
    return found


def successor(before: str, signed: str) -> Roster:
    """The version after `before` (a signed note that is believed). Raises `Problem` (`roster.*`)."""
    former_text = note.split(before)[0]
    former, found = read(former_text), first(signed)
    if found.version != former.version + 1:
        raise Problem("roster.version", wanted=former.version + 1, got=found.version)
    if found.previous != hashlib.sha256(former_text.encode()).hexdigest() or found.platform != former.platform:
        raise Problem("roster.not_successor", version=found.version)
    # Judged by the keepers that are believed already, with their threshold: new keepers cannot appoint themselves.
    try:
        opened = note.open_note(signed, [note.parse_key(key) for key in former.keepers]).signers
    except Problem as problem:
        if problem.code != "ledger.unsigned":
            raise
        opened = {}
    if len(opened) < former.threshold:
        raise Problem("roster.unsigned", version=found.version, got=len(opened), wanted=former.threshold)
    for old, new in ((former.people, found.people), (former.hospitals, found.hospitals)):
        _kept(old, {member.key: member for member in new})
    return found


def _kept(old: Sequence[Member], new: dict[str, Member]) -> None:
    """Keys stay, and what was ended stays ended. Raises `Problem` (`roster.taken_out`)."""
    for member in old:
        now = new.get(member.key)
        revived = now is not None and member.until is not None and (now.until is None or now.until > member.until)
        if now is None or now.since != member.since or revived or (member.compromised and not now.compromised):
            raise Problem("roster.taken_out", name=member.name)


@dataclass(frozen=True, slots=True)
class Believed:
    """A chain of versions, each a signed note, that was verified from its first to its last."""

    notes: tuple[str, ...]
    roster: Roster

    @property
    def pin(self) -> str:
        """The fingerprint of its first version."""
        return fingerprint(note.split(self.notes[0])[0])

    @property
    def present(self) -> str:
        """The fingerprint of its last version."""
        return fingerprint(note.split(self.notes[-1])[0])

    def extended(self, more: Sequence[str]) -> Believed:
        """With the versions of `more` that follow; those it has already are passed over. Raises `Problem`."""
        notes, roster = list(self.notes), self.roster
        for signed in more:
            if read(note.split(signed)[0]).version > roster.version:
                roster = successor(notes[-1], signed)
                notes.append(signed)
        return Believed(tuple(notes), roster)

    def document(self) -> str:
        """The content of a roster file."""
        return json.dumps({"versions": list(self.notes)}, ensure_ascii=False, indent=1)


def believe(notes: Sequence[str], pin: str | None = None) -> Believed:
    """Verify a chain from its first version on, or from the one whose fingerprint is `pin`. Raises `Problem` (`roster.*`)."""
    if pin is not None:
        wanted = "".join(pin.split())
        place = next((i for i, one in enumerate(notes) if fingerprint(note.split(one)[0]).replace(" ", "") == wanted), None)
        if place is None:
            raise Problem("roster.pin", pin=pin)
        notes = notes[place:]
    if not notes:
        raise Problem("roster.form", reason="no versions")
    return Believed((notes[0],), first(notes[0])).extended(notes[1:])


def notes_of(content: str | bytes) -> list[str]:
    """The versions in a roster file, none verified yet. Raises `Problem` (`roster.form`)."""
    try:
        document: Any = json.loads(content)
        return [str(one) for one in document["versions"]]
    except (ValueError, KeyError, TypeError):
        raise Problem("roster.form", reason="not a roster file") from None


def now() -> datetime:
    """The time as statements and rosters have it."""
    return datetime.now(UTC)
