"""Who may do what with an item, in every state."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from medmesh.errors import Problem
from medmesh.labelling.items import MAX_COMMENT, Claim, ItemState, ItemStatus, claim, claimable, review, submit
from medmesh.labelling.schema import LabelSchema
from medmesh.security.access import Object, decide
from medmesh.security.labels import INTERNAL
from medmesh.security.tokens import Actor

NOW = datetime(2025, 1, 1, 8, tzinfo=UTC)
LATER = NOW + timedelta(minutes=31)
SCHEMA = LabelSchema.of(["normal", "pneumonia"])
WANG, LI, CHEN = (f"person:{name}@platform" for name in ("wang", "li", "chen"))

NEW = ItemStatus()
LABELLED = ItemStatus(state=ItemState.LABELLED, reader=WANG, label="normal", readings=1)
RETURNED = replace(LABELLED, state=ItemState.RETURNED, reviewer=LI, comment="look at the left lower lobe")
ACCEPTED = replace(LABELLED, state=ItemState.ACCEPTED, reviewer=LI)


def _code(call: object, *args: object) -> str:
    with pytest.raises(Problem) as caught:
        call(*args)  # type: ignore[operator]
    return caught.value.code


@pytest.mark.parametrize(
    ("item", "person", "may"),
    [
        (NEW, WANG, True),
        (LABELLED, WANG, False),
        (LABELLED, LI, False),
        (RETURNED, WANG, True),
        (RETURNED, LI, False),
        (RETURNED, CHEN, False),
        (ACCEPTED, WANG, False),
        (ACCEPTED, CHEN, False),
        (replace(NEW, claim=Claim(LI, LATER)), WANG, False),
        (replace(NEW, claim=Claim(LI, LATER)), LI, True),
        (replace(NEW, claim=Claim(LI, NOW)), WANG, True),
    ],
)
def test_who_may_begin_to_read(item: ItemStatus, person: str, may: bool) -> None:
    assert claimable(item, person, NOW) is may
    if may:
        held = claim(item, person, NOW, 30)
        assert held.claim is not None
        assert held.claim.person == person
    else:
        assert _code(claim, item, person, NOW, 30) == "annotation.not_yours"


def test_asking_again_keeps_the_claim_and_its_end_until_it_expired() -> None:
    first = claim(NEW, WANG, NOW, 30)
    assert first.claim == Claim(WANG, NOW + timedelta(minutes=30))
    assert claim(first, WANG, NOW + timedelta(minutes=29), 30) == first
    assert claim(first, WANG, LATER, 30).claim == Claim(WANG, LATER + timedelta(minutes=30))
    assert claim(first, LI, LATER, 30).claim == Claim(LI, LATER + timedelta(minutes=30))


def test_only_the_person_who_holds_a_running_claim_labels() -> None:
    held = claim(NEW, WANG, NOW, 30)
    assert submit(held, WANG, "normal", SCHEMA, NOW) == LABELLED
    assert _code(submit, held, LI, "normal", SCHEMA, NOW) == "annotation.not_yours"
    assert _code(submit, held, WANG, "normal", SCHEMA, LATER) == "annotation.not_yours"
    assert _code(submit, NEW, WANG, "normal", SCHEMA, NOW) == "annotation.not_yours"
    assert _code(submit, held, WANG, "fracture", SCHEMA, NOW) == "annotation.class_unknown"


def test_a_label_stands_once_it_is_given() -> None:
    assert submit(LABELLED, WANG, "normal", SCHEMA, NOW) == LABELLED, "the same again changes nothing"
    assert _code(submit, LABELLED, WANG, "pneumonia", SCHEMA, NOW) == "annotation.not_yours"
    assert _code(submit, LABELLED, LI, "normal", SCHEMA, NOW) == "annotation.not_yours"
    assert _code(submit, ACCEPTED, WANG, "normal", SCHEMA, NOW) == "annotation.not_yours"


def may_review(item: ItemStatus, person: str) -> bool:
    """What the object rule says of an item of this reader."""
    name = person.removeprefix("person:").removesuffix("@platform")
    actor = Actor("person", name, "platform", frozenset({"reviewer"}), clearance=INTERNAL)
    assert actor.text == person
    return decide(actor, "annotation.review", NOW, Object("item", "p/i", reader=item.reader or "")).allowed


def test_the_reader_never_reviews_whatever_the_state() -> None:
    for item in (LABELLED, RETURNED, ACCEPTED):
        assert not may_review(item, WANG)
        assert may_review(item, LI)


def test_another_person_accepts_or_sends_back_what_is_labelled() -> None:
    assert review(LABELLED, LI, True) == ACCEPTED
    assert review(LABELLED, LI, False, "look at the left lower lobe") == RETURNED
    assert review(ACCEPTED, LI, True) == ACCEPTED, "the same again changes nothing"
    assert review(RETURNED, LI, False, "other words") == RETURNED
    assert _code(review, ACCEPTED, LI, False) == "annotation.not_labelled"
    assert _code(review, ACCEPTED, CHEN, True) == "annotation.not_labelled"
    assert _code(review, RETURNED, LI, True) == "annotation.not_labelled"
    assert _code(review, NEW, LI, True) == "annotation.not_labelled"
    assert _code(review, LABELLED, LI, False, "x" * (MAX_COMMENT + 1)) == "annotation.comment"


def test_what_was_sent_back_is_read_again_by_its_reader_as_a_further_reading() -> None:
    again = submit(claim(RETURNED, WANG, LATER, 30), WANG, "pneumonia", SCHEMA, LATER)
    assert (again.state, again.label, again.readings, again.reviewer) == (ItemState.LABELLED, "pneumonia", 2, None)
    assert _code(submit, RETURNED, WANG, "normal", SCHEMA, NOW) == "annotation.not_yours", "also this takes a claim"


def test_no_order_of_actions_lets_one_person_both_read_and_review() -> None:
    chance = random.Random(7)
    reached = set()
    for _ in range(300):
        item, now = NEW, NOW
        for _ in range(25):
            person, now = chance.choice((WANG, LI, CHEN)), now + timedelta(minutes=chance.choice((1, 40)))
            try:
                match chance.choice("csr"):
                    case "c":
                        item = claim(item, person, now, 30)
                    case "s":
                        item = submit(item, person, chance.choice(SCHEMA.classes), SCHEMA, now)
                    case _ if may_review(item, person):
                        item = review(item, person, chance.random() < 0.3)
            except Problem:
                continue
            reached.add(item.state)
            assert item.reviewer is None or item.reviewer != item.reader
            assert (item.state is ItemState.UNLABELLED) == (item.reader is None) == (item.label is None)
            assert (item.state in (ItemState.ACCEPTED, ItemState.RETURNED)) == (item.reviewer is not None)
            assert item.claim is None or item.state in (ItemState.UNLABELLED, ItemState.RETURNED)
    assert reached == set(ItemState), "the walk came everywhere"
