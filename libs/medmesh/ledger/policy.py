"""C2SP tlog-policy: which logs, which witnesses, and how many of them must have cosigned before a checkpoint is believed."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from medmesh.errors import Problem
from medmesh.ledger import note
from medmesh.ledger.note import COSIGNATURE, ED25519, Checkpoint, VerifierKey, parse_key

NONE = "none"


@dataclass(frozen=True, slots=True)
class Witness:
    """A name inside the policy, a key, and where it is asked (empty in policies that only verify)."""

    name: str
    key: VerifierKey
    url: str = ""


@dataclass(frozen=True, slots=True)
class Group:
    """So many of these members."""

    threshold: int
    members: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Believed:
    """A checkpoint that satisfies a policy: the log's key, and by the policy's names which witnesses saw it and when (Unix seconds)."""

    checkpoint: Checkpoint
    text: str
    log: VerifierKey
    witnesses: Mapping[str, int]


@dataclass(frozen=True)
class Policy:
    """`quorum` names a witness or a group, or is `none`."""

    logs: tuple[VerifierKey, ...]
    witnesses: Mapping[str, Witness] = field(default_factory=dict)
    groups: Mapping[str, Group] = field(default_factory=dict)
    quorum: str = NONE

    def fulfilled(self, cosigned: Collection[str]) -> bool:
        """Whether these witnesses (by the policy's names) are enough."""

        def has(name: str) -> bool:
            if name in self.witnesses:
                return name in cosigned
            group = self.groups[name]
            return sum(map(has, group.members)) >= group.threshold

        return self.quorum == NONE or has(self.quorum)

    def demand(self) -> str:
        """The quorum in words: `2 of (a, b, c)`."""

        def words(name: str) -> str:
            if name not in self.groups:
                return name
            group = self.groups[name]
            return f"{group.threshold} of ({', '.join(map(words, group.members))})"

        return words(self.quorum)

    def verify(self, signed: str | bytes) -> Believed:
        """The checkpoint in a note that one of the logs signed and enough witnesses cosigned.

        Raises `Problem`: `ledger.note` malformed, `ledger.signature` wrong, `ledger.unsigned` by none of the logs, `ledger.origin`
        another log's, `ledger.quorum` too few witnesses; each says what was wanted and what was got.
        """
        opened = note.open_note(signed, self.logs, [witness.key for witness in self.witnesses.values()])
        log = next(key for key in self.logs if key in opened.signers)
        found = note.parse_checkpoint(opened.text)
        if found.origin != log.name:
            raise Problem("ledger.origin", wanted=log.name, got=found.origin)
        seen = {name: opened.signers[witness.key] or 0 for name, witness in self.witnesses.items() if witness.key in opened.signers}
        if not self.fulfilled(seen):
            raise Problem("ledger.quorum", wanted=self.demand(), got=", ".join(sorted(seen)) or "-")
        return Believed(found, opened.text, log, seen)


def demanding(log: str, *witnesses: str) -> Policy:
    """The policy that wants a log (its vkey) and every one of these witnesses (their vkeys). Raises `Problem` (`ledger.key`)."""
    keys = [_of_kind(vkey, COSIGNATURE) for vkey in witnesses]
    named = {key.name: Witness(key.name, key) for key in keys}
    if len({key.public for key in keys}) != len(witnesses) or len(named) != len(witnesses):
        raise Problem("ledger.key")
    if not named:
        return Policy((_of_kind(log, ED25519),))
    return Policy((_of_kind(log, ED25519),), named, {"all of them": Group(len(named), tuple(named))}, "all of them")


def _of_kind(vkey: str, kind: int) -> VerifierKey:
    key = parse_key(vkey)
    if key.kind != kind:
        raise Problem("ledger.key")
    return key


def parse_policy(content: bytes) -> Policy:
    """The policy in a file; names are opaque bytes. Raises `Problem` (`ledger.policy`) with the line."""
    text = content.decode(errors="surrogateescape")
    draft = _Draft()
    number = 0
    for number, line in enumerate(text.split("\n"), start=1):
        try:
            if any((c < " " and c != "\t") or c == "\x7f" for c in line):
                raise ValueError("control characters")
            words = [word for word in re.split("[ \t]+", line) if word]
            if words and not words[0].startswith("#"):
                draft.take(words)
        except ValueError as error:
            raise Problem("ledger.policy", line=number, reason=str(error)) from None
        except Problem as problem:
            raise Problem("ledger.policy", line=number, reason=problem.detail()) from None
    if text and not text.endswith("\n"):
        raise Problem("ledger.policy", line=number, reason="the last line is cut")
    if draft.quorum is None:
        raise Problem("ledger.policy", line=number, reason="there is no quorum")
    return Policy(tuple(draft.logs), draft.witnesses, draft.groups, draft.quorum)


class _Draft:
    """What was read so far."""

    def __init__(self) -> None:
        self.logs: list[VerifierKey] = []
        self.witnesses: dict[str, Witness] = {}
        self.groups: dict[str, Group] = {}
        self.quorum: str | None = None
        self._members: set[str] = set()

    def take(self, words: list[str]) -> None:
        """One line. Raises `ValueError` or `Problem`."""
        match words:
            case ["log", vkey] | ["log", vkey, _]:
                self.logs.append(self._fresh(vkey, ED25519, self.logs))
            case ["witness", name, vkey] | ["witness", name, vkey, _]:
                key = self._fresh(vkey, COSIGNATURE, [witness.key for witness in self.witnesses.values()])
                self._define(name)
                self.witnesses[name] = Witness(name, key, words[3] if len(words) == 4 else "")
            case ["group", name, threshold, first, *rest]:
                members = (first, *rest)
                for member in members:
                    self._known(member)
                    if member in self._members:
                        raise ValueError(f"{member} is in two places")
                    self._members.add(member)
                self._define(name)
                wanted = {"any": 1, "all": len(members)}.get(threshold) or note.decimal(threshold)
                if not 1 <= wanted <= len(members):
                    raise ValueError(f"{threshold} of {len(members)}")
                self.groups[name] = Group(wanted, members)
            case ["quorum", name]:
                if self.quorum is not None:
                    raise ValueError("a second quorum")
                if name != NONE:
                    self._known(name)
                self.quorum = name
            case _:
                raise ValueError(f"not a line of a policy: {words[0]}")

    def _fresh(self, vkey: str, kind: int, known: list[VerifierKey]) -> VerifierKey:
        key = _of_kind(vkey, kind)
        if key.public in {other.public for other in known}:
            raise ValueError(f"the key of {key.name} is there twice")
        return key

    def _known(self, name: str) -> None:
        if name not in self.witnesses and name not in self.groups:
            raise ValueError(f"{name} is not defined above")

    def _define(self, name: str) -> None:
        if name == NONE or name in self.witnesses or name in self.groups:
            raise ValueError(f"the name {name} is taken")
