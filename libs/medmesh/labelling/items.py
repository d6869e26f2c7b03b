"""The states of an item and who may do what with it.

    unlabelled ──submit──▶ labelled ──accept──▶ accepted
                            ▲    │
                          submit └──send back──▶ returned (to its reader alone)

An item is claimed before it is read: a claim is one person's, for a time, and is no state of its own, so that an
expired one needs nobody to clean up. The reader of an item never reviews it; what is sent back goes to its reader alone,
who learns from the comment.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum

from medmesh.errors import Problem
from medmesh.labelling.schema import LabelSchema

MAX_COMMENT = 2000


class ItemState(StrEnum):
    """Where an item stands."""

    UNLABELLED = "unlabelled"
    LABELLED = "labelled"
    RETURNED = "returned"
    ACCEPTED = "accepted"


@dataclass(frozen=True, slots=True)
class Claim:
    """Who is reading an item, and until when nobody else may."""

    person: str
    expires: datetime


@dataclass(frozen=True, slots=True)
class ItemStatus:
    """One item. `reader` gave `label`, `reviewer` decided on it last; people are actor texts such as `person:wang@platform`.

    `readings` counts the labels submitted so far: a number for each, since one that was sent back is kept too.
    """

    state: ItemState = ItemState.UNLABELLED
    claim: Claim | None = None
    reader: str | None = None
    label: str | None = None
    reviewer: str | None = None
    comment: str = ""
    readings: int = 0


def claimable(item: ItemStatus, person: str, now: datetime) -> bool:
    """Whether `person` may begin to read: an item nobody reads or has read, or one that was sent back to them."""
    if item.claim is not None and item.claim.person != person and item.claim.expires > now:
        return False
    if item.state is ItemState.RETURNED:
        return item.reader == person
    return item.state is ItemState.UNLABELLED


def claim(item: ItemStatus, person: str, now: datetime, minutes: int) -> ItemStatus:
    """The item in the hands of `person`; a claim that still runs stays as it is, so that asking again never prolongs it.

    Raises `Problem` (`annotation.not_yours`).
    """
    if not claimable(item, person, now):
        raise Problem("annotation.not_yours")
    if held(item, person, now):
        return item
    return replace(item, claim=Claim(person, now + timedelta(minutes=minutes)))


def held(item: ItemStatus, person: str, now: datetime) -> bool:
    """Whether `person` has a claim on the item that still runs."""
    return item.claim is not None and item.claim.person == person and item.claim.expires > now


def submit(item: ItemStatus, person: str, label: str, schema: LabelSchema, now: datetime) -> ItemStatus:
    """The item with the label of the person who claimed it; the same label of the same reader again changes nothing.

    Raises `Problem` (`annotation.class_unknown`, `annotation.not_yours`).
    """
    schema.check(label)
    if item.state is ItemState.LABELLED and (item.reader, item.label) == (person, label):
        return item
    if not (claimable(item, person, now) and held(item, person, now)):
        raise Problem("annotation.not_yours")
    return ItemStatus(state=ItemState.LABELLED, reader=person, label=label, readings=item.readings + 1)


def review(item: ItemStatus, reviewer: str, accept: bool, comment: str = "") -> ItemStatus:
    """The item after another person's decision (that it is another's is the object rule `object.reviewer-is-not-reader`); the same decision
    of the same reviewer again changes nothing.

    Raises `Problem` (`annotation.not_labelled`, `annotation.comment`).
    """
    if len(comment) > MAX_COMMENT or "\x00" in comment:
        raise Problem("annotation.comment", limit=MAX_COMMENT)
    decided = replace(item, state=ItemState.ACCEPTED if accept else ItemState.RETURNED, claim=None, reviewer=reviewer, comment=comment)
    if item.state is ItemState.LABELLED:
        return decided
    if item.state is decided.state and item.reviewer == reviewer:
        return item
    raise Problem("annotation.not_labelled", state=item.state.value)
