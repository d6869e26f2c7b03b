"""Security labels (安全标记): a level and compartments, as a lattice (GB/T 22239-2019 8.1.4.2 g).

An object's compartments are the organisations whose data it is about. Whoever reads it must be cleared for its level and for every
one of them; what is made out of several objects has at least the join of their labels.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from functools import reduce

from medmesh.contracts.labels import SecurityLabel
from medmesh.errors import Problem

PLATFORM = "platform"
"""The organisation of the platform's own people; it is no compartment."""
EVERY = "*"
"""In a clearance: every compartment. An object never has it."""


class Level(IntEnum):
    """公开 < 内部 < 敏感 < 核心."""

    PUBLIC = 0
    INTERNAL = 1
    SENSITIVE = 2
    CORE = 3

    @property
    def text(self) -> str:
        """As in messages and tables."""
        return self.name.lower()


_LEVELS = {level.text: level for level in Level}


def level(text: str) -> Level:
    """The level of that name. Raises `Problem` (`labels.level`)."""
    if text not in _LEVELS:
        raise Problem("labels.level", level=text[:40], known=", ".join(_LEVELS))
    return _LEVELS[text]


@dataclass(frozen=True, slots=True)
class Label:
    """Of an object, or as a clearance of somebody."""

    level: Level = Level.PUBLIC
    compartments: frozenset[str] = frozenset()

    @property
    def text(self) -> str:
        """For people and records, e.g. `sensitive{renji,xiehe}`."""
        return self.level.text + (f"{{{','.join(sorted(self.compartments))}}}" if self.compartments else "")

    @property
    def record(self) -> SecurityLabel:
        """As it stands in messages."""
        return SecurityLabel(level=self.level.text, compartments=tuple(sorted(self.compartments)))

    def dominates(self, other: Label) -> bool:
        """Whether who is cleared so may read what is labelled `other`."""
        return self.level >= other.level and (EVERY in self.compartments or other.compartments <= self.compartments)


NOTHING = Label()
"""The clearance of whoever has none, and the bottom of the lattice."""
EVERYTHING = Label(Level.CORE, frozenset({EVERY}))
"""The clearance of the platform's own services."""
INTERNAL = Label(Level.INTERNAL)
"""What the platform's own people work on unless something says otherwise."""


def read(record: SecurityLabel) -> Label:
    """A message's label. Raises `Problem`."""
    return Label(level(record.level), frozenset(record.compartments))


def join(labels: Iterable[Label]) -> Label:
    """The lowest label that dominates all of them; of none, the bottom."""
    return reduce(lambda a, b: Label(max(a.level, b.level), a.compartments | b.compartments), labels, NOTHING)


def own(organisation: str) -> frozenset[str]:
    """The compartments of somebody of an organisation, unless they were given others."""
    return frozenset() if organisation in ("", PLATFORM) else frozenset({organisation})


def of_hospital(hospital: str) -> Label:
    """A hospital's node is cleared by rule: for everything of its own hospital, and for nobody else's compartment."""
    return Label(Level.CORE, own(hospital))


def no_lower_than(clearance: Label, organisation: str) -> Label:
    """The label of what somebody makes out of what the platform cannot see, an archive or weights from outside: it may hold anything
    they could read. Who is cleared for every compartment writes into that of the own organisation."""
    compartments = own(organisation) if EVERY in clearance.compartments else clearance.compartments
    return Label(clearance.level, compartments)
