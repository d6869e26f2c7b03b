"""The hospital's policy: what it does not allow does not happen, and a file that cannot be read allows nothing."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest
from tests.unit.federation.test_domain import PLAN

from medmesh.errors import Problem
from medmesh_edge import policy


def _policy(folder: Path, text: str) -> policy.Policy:
    path = folder / "policy.toml"
    path.write_text(text, encoding="utf-8")
    return policy.read(path)


def test_the_policy_a_node_begins_with_asks_a_person_for_the_code(private: Path) -> None:
    begun = _policy(private, policy.DEFAULT)
    assert begun.packages == ()
    assert policy.refusal(begun, PLAN, 100) is None


@pytest.mark.parametrize(
    ("rule", "code"),
    [
        ('initiators = ["person:wang@platform"]', "policy.initiator"),
        ("algorithms = []", "policy.algorithm"),
        ('modalities = ["CT"]', "policy.modality"),
        ("max_rounds = 1", "policy.rounds"),
        ("max_update_mib = 0", "policy.bytes"),
        ("min_samples = 101", "policy.samples"),
    ],
)
def test_every_rule_refuses_by_its_name(private: Path, rule: str, code: str) -> None:
    name = rule.split(" ")[0]
    lines = [rule if line.startswith(f"{name} ") else line for line in policy.DEFAULT.splitlines()]
    found = policy.refusal(_policy(private, "\n".join(lines)), PLAN, 100)
    assert found is not None
    assert found.code == code


def test_an_empty_policy_allows_nothing(private: Path) -> None:
    empty = _policy(private, "")
    assert policy.refusal(empty, PLAN, 10**6) is not None
    assert not empty.install


@pytest.mark.parametrize(
    "text", ["[federation]\nrounds = 1", "[other]\n", "[federation]\nhours = '9-5'", "[models]\ninstall = 1", "= nonsense"]
)
def test_a_mistake_in_the_file_is_named_and_allows_nothing(private: Path, text: str) -> None:
    with pytest.raises(Problem) as caught:
        _policy(private, text)
    assert caught.value.code == "policy.invalid"


def test_hours_may_wrap_around_midnight(private: Path) -> None:
    night = _policy(private, '[federation]\nhours = "22:00-06:00"')
    at = {hour: policy.in_hours(night, datetime(2026, 1, 1, hour)) for hour in (21, 22, 23, 0, 5, 6, 12)}
    assert at == {21: False, 22: True, 23: True, 0: True, 5: True, 6: False, 12: False}
    assert all(policy.in_hours(_policy(private, policy.DEFAULT), datetime(2026, 1, 1, hour)) for hour in range(24))
