"""What a hospital's node says of a package's code before anything of it runs."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tests.packages import tiny
from tests.rosters import roster_of
from tests.unit.edge.test_policy import PLAN

from medmesh.demo.practice import HEART
from medmesh.errors import Problem
from medmesh.learning.package import Package, pack
from medmesh.security.signing import Signer
from medmesh.security.statements import CodeReview, sign
from medmesh_edge import code
from medmesh_edge.policy import DEFAULT, Policy, read
from medmesh_edge.ports import Site

WU, HAN = Signer.create("person:wu@platform"), Signer.create("person:han@platform")
SITE = cast(Site, SimpleNamespace(roster=lambda: roster_of(WU, HAN)))


def reviewed(package: Package, *signers: Signer) -> list[str]:
    return [sign(CodeReview(made=datetime.now(UTC), package=package.digest), one) for one in signers]


def refused(policy: Policy, package: Package, signed: list[str]) -> str:
    with pytest.raises(Problem) as caught:
        code.judge(policy, PLAN, package, signed, SITE)
    return caught.value.code


@pytest.fixture
def policy(tmp_path: Path) -> Policy:
    (tmp_path / "policy.toml").write_text(DEFAULT, encoding="utf-8")
    return read(tmp_path / "policy.toml")


def test_two_people_are_asked_for_unless_a_hospital_says_otherwise(tmp_path: Path, policy: Policy) -> None:
    package = tiny(tmp_path)
    assert policy.reviewers == Policy().reviewers == 2
    assert len(code.judge(policy, PLAN, package, reviewed(package, WU, HAN), SITE)) == 2
    assert refused(policy, package, reviewed(package, WU)) == "review.too_few"
    assert refused(replace(policy, reviewers=3), package, reviewed(package, WU, HAN)) == "review.too_few"
    assert code.judge(replace(policy, reviewers=0), PLAN, package, [], SITE) == ()
    assert code.judge(replace(policy, packages=(package.digest,)), PLAN, package, [], SITE) == (), "read in the house"


def test_code_that_does_more_than_it_declares_does_not_run_whoever_signed(tmp_path: Path, policy: Policy) -> None:
    package = tiny(tmp_path, "\nimport os\n")
    assert refused(policy, package, reviewed(package, WU, HAN)) == "package.undeclared"


def test_a_package_without_code_needs_nobody(policy: Policy) -> None:
    assert code.judge(policy, PLAN, pack(HEART), [], SITE) == ()


def test_who_decides_is_told_what_the_code_declares_and_who_read_it(tmp_path: Path) -> None:
    package = tiny(tmp_path)
    row: Any = SimpleNamespace(package={"sha256": package.digest}, plan={"initiator": PLAN.initiator}, reviews=reviewed(package, WU, HAN))
    here = cast(Site, SimpleNamespace(roster=SITE.roster, layout=SimpleNamespace(cache=tmp_path / "cache")))
    assert "not here yet" in code.described(here, row, "en")[0]
    (tmp_path / "cache" / "objects").mkdir(parents=True)
    (tmp_path / "cache" / "objects" / package.digest).write_bytes(package.archive)
    assert code.described(here, row, "en")[1] == "Its code was read and signed for by: person:han@platform, person:wu@platform."
    assert "person:han@platform" in code.described(here, row, "zh")[1]
    row.reviews = reviewed(package, Signer.create("person:wu@platform"))
    assert "roster" in code.described(here, row, "en")[1]
