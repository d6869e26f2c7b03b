"""Code counts as read by different people of the roster, none of whom asks for it to be run."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from tests.rosters import roster_of

from medmesh.errors import Problem
from medmesh.security import reviews
from medmesh.security.signing import Signer
from medmesh.security.statements import CodeApproval, CodeReview, sign

NOW = datetime.now(UTC)
WU, HAN, LI = (Signer.create(f"person:{name}@platform") for name in ("wu", "han", "li"))
ROSTER = roster_of(WU, HAN, LI)
PACKAGE, OTHER = "a" * 64, "b" * 64
ABOUT = {"package": PACKAGE, "initiator": "person:li@platform", "seen": NOW}


def review(signer: Signer, package: str = PACKAGE, made: datetime = NOW) -> str:
    return sign(CodeReview(made=made, package=package), signer)


def refused(*signed: str, needed: int = 2, **about: object) -> str:
    with pytest.raises(Problem) as caught:
        reviews.check(signed, about.pop("roster", ROSTER), needed, **{**ABOUT, **about})  # type: ignore[arg-type]
    return caught.value.code


def test_two_people_are_named() -> None:
    assert reviews.check([review(WU), review(HAN)], ROSTER, 2, **ABOUT) == ("person:han@platform", "person:wu@platform")  # type: ignore[arg-type]


def test_one_person_twice_is_one_person() -> None:
    assert refused(review(WU), review(WU, made=NOW - timedelta(days=1))) == "review.too_few"


def test_nobody_reviews_what_they_ask_for() -> None:
    assert refused(review(WU), review(LI)) == "review.own"


def test_a_review_is_of_one_package_and_of_this_kind() -> None:
    assert refused(review(WU), review(HAN, OTHER)) == "statement.other"
    signed = sign(CodeApproval(made=NOW, package=PACKAGE, hospital="renji", by="x"), HAN)
    assert refused(review(WU), signed) == "statement.kind"


def test_who_the_roster_does_not_know_or_gives_another_role_does_not_count() -> None:
    assert refused(review(WU), review(Signer.create("person:han@platform"))) == "roster.unknown"
    assert refused(review(WU), review(HAN), roster=roster_of(WU, HAN, role="auditor")) == "roster.role"


def test_a_review_that_was_changed_does_not_count() -> None:
    assert refused(review(WU), review(HAN, OTHER).replace(OTHER, PACKAGE)).startswith("ledger.")
