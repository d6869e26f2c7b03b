"""The roster as a file: for keepers, who write versions and sign them, and for services and nodes, who read what was signed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from medmesh.embedded import files
from medmesh.errors import Problem
from medmesh.ledger import note
from medmesh.security import roster
from medmesh.security.roster import Believed, Member, Roster
from medmesh.security.signing import Signer

NAME = "roster.json"
YEAR = timedelta(days=400)
"""How long a version counts: a little more than the year after which keepers meet again."""


def log_only(log_key: str) -> str:
    """The policy that demands a log and no witness: for a beginning, until somebody watches."""
    return f"log {log_key}\nquorum none\n"


class RosterFile:
    """The roster that lies at `path`, verified when it changes. Calling it answers the newest version."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._believed = files.Watched(path, lambda path: roster.believe(roster.notes_of(path.read_bytes())))

    def chain(self) -> Believed:
        """Raises `Problem` (`roster.none` when there is none)."""
        try:
            return self._believed()
        except OSError:
            raise Problem("roster.none") from None

    def __call__(self) -> Roster:
        """The newest version. Raises `Problem`: none, malformed, or expired."""
        found = self.chain().roster
        found.check_fresh(roster.now())
        return found


@dataclass(frozen=True)
class Workbook:
    """A keeper's file: the versions that are signed, and the one that is being written, with the signatures it has so far."""

    versions: tuple[str, ...] = ()
    draft: Roster | None = None
    lines: tuple[str, ...] = field(default=())

    @classmethod
    def load(cls, path: Path) -> Workbook:
        """Raises `Problem` (`roster.none`, `roster.form`)."""
        try:
            document: dict[str, Any] = json.loads(path.read_bytes())
            versions, draft = tuple(document["versions"]), document.get("draft")
            return cls(versions, roster.read(draft["text"]), tuple(draft["lines"])) if draft else cls(versions)
        except FileNotFoundError:
            raise Problem("roster.none") from None
        except (ValueError, KeyError, TypeError, OSError):
            raise Problem("roster.form", reason="not a roster file") from None

    def save(self, path: Path) -> None:
        """Write it; it holds no secret."""
        document: dict[str, Any] = {"versions": list(self.versions)}
        if self.draft is not None:
            document["draft"] = {"text": roster.text(self.draft), "lines": list(self.lines)}
        files.write(path, json.dumps(document, ensure_ascii=False, indent=1), 0o644)

    def believed(self) -> Believed:
        """Its signed versions, verified. Raises `Problem`."""
        return roster.believe(self.versions)

    def newest(self) -> Roster:
        """What is being written, or else what is signed. Raises `Problem`."""
        return self.draft or self.believed().roster

    def edited(self, now: datetime, **changed: Any) -> Workbook:
        """The next version, or the one that is being written, with these changes; it has no signatures. Raises `Problem`."""
        if self.draft is None:
            before = note.split(self.versions[-1])[0]
            former = roster.read(before)
            step = {"version": former.version + 1, "previous": hashlib.sha256(before.encode()).hexdigest()}
        else:
            former, step = self.draft, {}
        made = former.model_copy(update={**step, "made": now, "expires": now + YEAR, **changed})
        return replace(self, draft=roster.read(roster.text(made)), lines=())

    def with_member(self, now: datetime, vkey: str, roles: Sequence[str] = (), about: str = "") -> Workbook:
        """With the key of a person or a hospital. Raises `Problem`."""
        key, present = note.parse_key(vkey), self.newest()
        kind = key.name.split(":", 1)[0]
        if kind not in ("person", "hospital") or (kind == "person") != bool(roles):
            raise Problem("roster.member", name=key.name)
        group = "people" if kind == "person" else "hospitals"
        members: tuple[Member, ...] = getattr(present, group)
        if any(member.key == str(key) for member in members):
            raise Problem("roster.known", name=key.name)
        made = Member(key=str(key), roles=tuple(sorted(roles)), about=about, since=now)
        return self.edited(now, **{group: (*members, made)})

    def ended(self, now: datetime, name: str, until: datetime, compromised: bool) -> Workbook:
        """With every key of `name` that still counts ended at `until`. Raises `Problem`."""
        present, found = self.newest(), False

        def end(member: Member) -> Member:
            nonlocal found
            if member.name != name or (member.until is not None and not compromised):
                return member
            found = True
            earliest = until if member.until is None else min(until, member.until)
            return member.model_copy(update={"until": earliest, "compromised": compromised or member.compromised})

        changed = {"people": tuple(map(end, present.people)), "hospitals": tuple(map(end, present.hospitals))}
        if not found:
            raise Problem("roster.unknown", name=name)
        return self.edited(now, **changed)

    def signed(self, keeper: Signer) -> Workbook:
        """With a keeper's signature; the version is whole when enough of the former and of its own keepers signed. Raises `Problem`."""
        if self.draft is None:
            raise Problem("roster.nothing_to_sign")
        former = self.believed().roster.keepers if self.versions else ()
        if keeper.vkey not in (*self.draft.keepers, *former):
            raise Problem("roster.not_a_keeper", name=keeper.name)
        content = roster.text(self.draft)
        line = note.split(keeper.sign(content))[1]
        (name, raw) = line[0]
        made = note.signature_line(note.parse_key(keeper.vkey), raw[4:])
        lines = (*(one for one in self.lines if one != made and not one.startswith(f"{note.DASH} {name} ")), made)
        whole = f"{content}\n{''.join(lines)}"
        try:
            if self.versions:
                roster.successor(self.versions[-1], whole)
            else:
                roster.first(whole)
        except Problem as problem:
            if problem.code != "roster.unsigned":
                raise
            return replace(self, lines=lines)
        return Workbook((*self.versions, whole))


def begun(
    platform: str, keepers: Sequence[str], threshold: int, policy: str, now: datetime, approvals: dict[str, int] | None = None
) -> Workbook:
    """A first version to be signed. Raises `Problem`."""
    made = Roster(
        platform=platform,
        version=1,
        made=now,
        expires=now + YEAR,
        keepers=tuple(keepers),
        threshold=threshold,
        approvals=approvals or {"*": 1},
        policy=policy,
    )
    return Workbook(draft=roster.read(roster.text(made)))
