"""Who read the code of a training package: different people of the roster, none of whom asks for it to be run."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from medmesh.errors import Problem
from medmesh.security.roster import Roster
from medmesh.security.statements import CodeReview

ROLES = ("approver", "security_administrator")
"""Whose reviews count."""
MOST, LONGEST = 8, 2000
"""Reviews that go with a federation, and signs in one: a signed note of a few hundred."""


def reviewers(signed: Sequence[str], roster: Roster, *, package: str, initiator: str, seen: datetime) -> tuple[str, ...]:
    """The names of those who reviewed exactly this package (its SHA-256), sorted. Raises `Problem` (`roster.*`, `statement.*`,
    `review.own`) for a review that does not count: what is shown as one is one."""
    names = set()
    for one in signed:
        name, said = roster.person(one, CodeReview, seen, ROLES)
        if said.package != package:
            raise Problem("statement.other", what="package")
        if name == initiator:
            raise Problem("review.own", name=name)
        names.add(name)
    return tuple(sorted(names))


def check(signed: Sequence[str], roster: Roster, needed: int, *, package: str, initiator: str, seen: datetime) -> tuple[str, ...]:
    """As `reviewers`; raises `Problem` (`review.too_few`) too where they are fewer than `needed`."""
    names = reviewers(signed, roster, package=package, initiator=initiator, seen=seen)
    if len(names) < needed:
        raise Problem("review.too_few", package=package[:16], found=len(names), needed=needed)
    return names
