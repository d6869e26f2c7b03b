"""What a verification found: in words for people, as a document for programs, as an exit code for scripts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from medmesh.errors import Problem

WHOLE, TAMPERED, INCOMPLETE = 0, 1, 2
_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Fault:
    """One finding. `check` names the comparison that failed; `incomplete` when something is not there, rather than not what it was."""

    check: str
    problem: Problem
    incomplete: bool

    @property
    def seq(self) -> int | None:
        """The record, where one is named."""
        return self.problem.params.get("seq")

    def document(self) -> dict[str, Any]:
        """For programs."""
        found = {"check": self.check, "code": self.problem.code, **self.problem.params, "reason": self.problem.detail()}
        return found | ({"incomplete": True} if self.incomplete else {})


@dataclass
class Report:
    """No `faults`: everything that was looked at is whole and unaltered. `notices` (clocks that ran back) do not make a log untrue.

    Of each check the first finding is kept, and in `counts` how many there were.
    """

    origin: str = ""
    size: int = 0
    root: str = ""
    note: bytes = b""
    """The signed checkpoint everything was compared with, to be kept for the next time."""
    second: dict[str, Any] = field(default_factory=dict)
    """Origin, size and root of the second tree, where there is one that was looked at."""
    start: int = 0
    """Records before this were not looked at again: a checkpoint kept from an earlier verification vouches for them."""
    leaves: int = 0
    bodies: int = 0
    without_body: int = 0
    signatures: int = 0
    """How many signatures of people's and hospitals' own keys were verified, where a roster was given."""
    pruned: int = 0
    """Below this number bodies may be gone: a record of the log says that it was approved."""
    witnesses: dict[str, int] = field(default_factory=dict)
    emitters: dict[str, dict[str, Any]] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    notices: list[Problem] = field(default_factory=list)
    backwards: int = 0

    @property
    def verified(self) -> bool:
        """Whether nothing was found."""
        return not self.faults

    @property
    def code(self) -> int:
        """0 whole, 1 tampered with, 2 incomplete or unreadable."""
        return TAMPERED if any(not fault.incomplete for fault in self.faults) else INCOMPLETE if self.faults else WHOLE

    @property
    def first(self) -> int | None:
        """The lowest record that a finding names."""
        return min((fault.seq for fault in self.faults if fault.seq is not None), default=None)

    def fault(self, check: str, problem: Problem, *, incomplete: bool = False) -> None:
        """Note a finding."""
        self.counts[check] = self.counts.get(check, 0) + 1
        if self.counts[check] == 1:
            self.faults.append(Fault(check, problem, incomplete))

    def notice(self, problem: Problem) -> None:
        """Note what does not make the log untrue: an entry whose clock ran back, or what was not looked at."""
        self.backwards += problem.code == "ledger.backwards"
        if len(self.notices) < _SHOWN:
            self.notices.append(problem)

    def document(self) -> dict[str, Any]:
        """For programs."""
        return {
            "verified": self.verified,
            "code": self.code,
            "origin": self.origin,
            "size": self.size,
            "root": self.root,
            "second": self.second,
            "start": self.start,
            "leaves": self.leaves,
            "bodies": self.bodies,
            "without_body": self.without_body,
            "signatures": self.signatures,
            "pruned": self.pruned,
            "witnesses": self.witnesses,
            "emitters": self.emitters,
            "first": self.first,
            "faults": [fault.document() for fault in self.faults],
            "counts": self.counts,
            "notices": [{"code": notice.code, **notice.params, "reason": notice.detail()} for notice in self.notices],
            "backwards": self.backwards,
        }
