"""The hospital's policy: what it does not allow does not happen, and a file that cannot be read allows nothing."""

from __future__ import annotations

import json
import re
import textwrap
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from tests.unit.federated.test_plan import plan

from medmesh.cli.edge.policy import _plan
from medmesh.contracts.data import VolumeSchema
from medmesh.contracts.plan import TensorSignature
from medmesh.contracts.privacy import Privacy
from medmesh.errors import Problem
from medmesh.learning.isolation import Limits
from medmesh_edge import policy


def _policy(folder: Path, text: str) -> policy.Policy:
    path = folder / "policy.toml"
    path.write_text(text, encoding="utf-8")
    return policy.read(path)


PLAN = plan(
    participants=("a", "b", "c", "d"),
    min_participants=3,
    local_steps=13,
    secure={"threshold": 3},
    privacy=Privacy(unit="patient", epsilon="8", delta="0.00001", clip="1", noise="2", rate="0.1"),
)
CONTRADICTING = json.dumps(PLAN.model_dump(mode="json") | {"min_participants": 2})
OPEN = PLAN.model_copy(update={"privacy": None})
"""Without privacy: how many samples an update is made of matters. Here 13 steps of 8."""
COHORT = policy.Cohort(samples=104, patients=50)
VOLUMES = VolumeSchema(kind="volumes", volume="MR", size=(32, 32, 32), classes=("no", "yes"))


def test_the_policy_a_node_begins_with_asks_a_person_for_the_code(private: Path) -> None:
    begun = _policy(private, policy.DEFAULT)
    assert begun.packages == () and begun.other_code == "ask" and begun.small_cell == 5
    assert policy.refusals(begun, PLAN, COHORT) == {}


CASES = (
    ('initiators = ["person:wang@platform"]', "policy.initiator"),
    ('other_code = "refuse"', "policy.code"),
    ("algorithms = []", "policy.algorithm"),
    ('modalities = ["CT"]', "policy.modality"),
    ('tensors = ["bias", "bn.[a-l]*"]', "policy.tensor"),
    ("max_rounds = 2", "policy.rounds"),
    ("max_update_mib = 0", "policy.bytes"),
    ("min_hospitals = 4", "policy.hospitals"),
    ("min_batch = 9", "policy.batch"),
    ("min_steps = 14", "policy.steps"),
    ("min_seen = 1001", "policy.seen"),
    ("secure = true", "policy.secure"),
    ('privacy = "hospital"', "policy.privacy"),
    ('max_epsilon = "7.9"', "policy.epsilon"),
    ('max_delta = "0.000009"', "policy.epsilon"),
    ('total_epsilon = "1"', "policy.total"),
    ("min_samples = 105", "policy.samples"),
    ("min_patients = 51", "policy.patients"),
    ("data_mib = 1", "policy.data"),
)


def _with(folder: Path, rule: str) -> policy.Policy:
    name = rule.split(" ")[0]
    lines = [rule if line.startswith(f"{name} ") else line for line in policy.DEFAULT.splitlines()]
    assert rule in lines
    return _policy(folder, "\n".join(lines))


def test_every_rule_has_a_case() -> None:
    assert [rule.split(" ")[0] for rule, _ in CASES] == list(policy.RULES)


@pytest.mark.parametrize(("rule", "code"), CASES)
def test_every_rule_refuses_its_case_and_no_other_does(private: Path, rule: str, code: str) -> None:
    wanted, cohort = PLAN, COHORT
    if rule.startswith("secure"):
        wanted = PLAN.model_copy(update={"secure": None})
    if rule.startswith(("min_batch", "min_steps")):
        wanted = OPEN
    if rule.startswith("min_seen"):  # more samples than a node begins with asking for: 1,000 of them are seen
        wanted, cohort = OPEN.model_copy(update={"local_steps": 125}), policy.Cohort(samples=1100, patients=1100)
    if rule.startswith("data_mib"):
        wanted = PLAN.model_copy(update={"data": VOLUMES})
    assert policy.refusals(_policy(private, policy.DEFAULT), wanted, cohort) == {}
    found = policy.refusals(_with(private, rule), wanted, cohort)
    assert {name: problem.code for name, problem in found.items()} == {rule.split(" ")[0]: code}
    for language in ("en", "zh"):
        assert found[rule.split(" ")[0]].detail(language)
    one = policy.refusal(_with(private, rule), wanted, cohort)
    assert one is not None and one.code == code


@pytest.mark.parametrize(
    ("rule", "plan_has", "allowed"),
    [
        ('privacy = "any"', "patient", True),
        ('privacy = "any"', "hospital", True),
        ('privacy = "any"', None, False),
        ('privacy = "patient"', "patient", True),
        ('privacy = "patient"', None, False),
        ('privacy = "none"', None, True),
        ('max_epsilon = "1"', None, True),
    ],
)
def test_a_floor_of_privacy(private: Path, rule: str, plan_has: str | None, allowed: bool) -> None:
    given = None if plan_has is None else Privacy(unit=plan_has, epsilon="50", delta="0.00001", clip="1", noise="2")
    assert (policy.refusal(_with(private, rule), PLAN.model_copy(update={"privacy": given}), COHORT) is None) == allowed


def test_a_tensor_that_stays_needs_no_leave_and_listed_code_is_allowed(private: Path) -> None:
    staying = plan(algorithm="fedbn", local=("bn.mean",), min_participants=3, local_steps=13)
    assert policy.refusal(_with(private, 'tensors = ["bias", "bn.count"]'), staying, COHORT) is None
    text = policy.DEFAULT.replace('other_code = "ask"', 'other_code = "refuse"').replace("packages = []", f'packages = ["{PLAN.package}"]')
    assert policy.refusal(_policy(private, text), PLAN, COHORT) is None


def _few(folder: Path, *, samples: int = 104, **changed: Any) -> dict[str, str]:
    """Of the rules on how many samples an update is made of, those that refuse a plan at a node as it begins, with what they say."""
    begun, wanted = _policy(folder, policy.DEFAULT), plan(**{"min_participants": 3, **changed})
    found = policy.refusals(begun, wanted, policy.Cohort(samples=samples, patients=samples))
    assert set(found) <= {"min_batch", "min_steps", "min_seen"}
    return {name: problem.detail() for name, problem in found.items()}


def test_an_update_is_made_of_more_than_a_single_small_batch(private: Path) -> None:
    assert set(_few(private, local_steps=1, batch_size=1)) == {"min_batch", "min_steps", "min_seen"}
    assert set(_few(private, local_steps=1, batch_size=104)) == {"min_steps"}, "one step of everybody is a raw gradient, too"
    assert set(_few(private, local_steps=104, batch_size=1)) == {"min_batch"}
    assert set(_few(private, local_steps=12, batch_size=8)) == {"min_seen"} and not _few(private, local_steps=13, batch_size=8), "a pass"
    assert set(_few(private, local_steps=124, samples=50_000)) == {"min_seen"} and not _few(private, local_steps=125, samples=50_000)
    assert "12 steps" not in str(_few(private, local_steps=12)) and "96" in str(_few(private, local_steps=12))


@pytest.mark.parametrize("name", ["local_steps", "batch_size"])
def test_the_lower_end_of_a_range_is_asked_for_too(private: Path, name: str) -> None:
    few = _few(private, local_steps=13, batch_size=8, ranges={name: {"low": "1", "high": "100"}})
    assert set(few) == ({"min_steps", "min_seen"} if name == "local_steps" else {"min_batch", "min_seen"})
    assert not _few(private, local_steps=13, batch_size=8, ranges={name: {"low": "8" if name == "batch_size" else "13", "high": "100"}})


def test_what_an_algorithm_makes_of_the_steps_is_what_counts(private: Path) -> None:
    nova = {"algorithm": "fednova", "local_steps": 1}
    assert not _few(private, **nova), "one pass over all samples, whatever the plan's steps"
    assert set(_few(private, **nova, parameters={"epochs": "0.5"})) == {"min_seen"}
    assert set(_few(private, **nova, batch_size=104)) == {"min_steps"}


def test_few_samples_say_no_more_where_each_step_is_noised_for_a_patient(private: Path) -> None:
    noised = {"epsilon": "8", "delta": "0.00001", "clip": "1", "noise": "2"}
    few = {"local_steps": 1, "batch_size": 1}
    assert not _few(private, **few, privacy={"unit": "patient", "rate": "0.1", **noised})
    # Of a hospital's noise, the platform's comes after it saw the update.
    assert set(_few(private, **few, privacy={"unit": "hospital", **noised})) == {"min_batch", "min_steps", "min_seen"}


def test_bytes_are_counted_as_they_leave(private: Path) -> None:
    big = PLAN.model_copy(update={"signature": (TensorSignature(name="w", shape=(100 * 2**18,), dtype="F32"),)})
    assert big.secure is not None
    rule = _with(private, "max_update_mib = 100")
    assert policy.refusals(rule, big.model_copy(update={"secure": None}), COHORT) == {}
    assert policy.refusals(rule, big, COHORT)["max_update_mib"].params == {"mib": 201, "limit": 100}, "a masked number has 64 bits"
    short = big.model_copy(update={"secure": big.secure.model_copy(update={"ring": 32})})
    assert policy.refusals(rule, short, COHORT)["max_update_mib"].params == {"mib": 101, "limit": 100}, "and samples go with it"
    assert policy.refusals(_with(private, "max_update_mib = 201"), big, COHORT) == {}


BEFORE = """[federation]
initiators = ["*"]
packages = []
algorithms = ["*"]
modalities = ["*"]
min_samples = 20
max_update_mib = 512
max_rounds = 1000
hours = "00:00-24:00"
[models]
install = true
"""


def test_a_file_of_before_allows_what_it_did(private: Path) -> None:
    before = _policy(private, BEFORE)
    assert policy.refusals(before, PLAN, COHORT) == {}
    assert before.small_cell == 5, "what leaves is not more than what a new node lets leave"
    assert set(policy.refusals(before, plan(local_steps=1, batch_size=1), COHORT)) == {
        "min_hospitals",
        "min_batch",
        "min_steps",
        "min_seen",
    }


def test_what_the_page_has_a_hospital_write_after_an_update_keeps_the_rules_of_before(private: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "hospital" / "node.md").read_text(encoding="utf-8")
    written = [
        textwrap.dedent(block) for block in re.findall(r"^ *```toml\n(.*?)```", page, re.DOTALL | re.MULTILINE) if "min_seen" in block
    ]
    assert len(written) == 2, "Chinese and English"
    for text in written:
        assert policy.refusals(_policy(private, BEFORE.replace("[federation]\n", text)), plan(local_steps=1, batch_size=1), COHORT) == {}


def test_a_worker_gets_what_the_policy_allows_and_no_more_than_the_node_has(private: Path) -> None:
    begun = _policy(private, policy.DEFAULT)
    assert policy.worker_limits(begun, 2**32) == Limits(memory_bytes=2**32, operations=2)
    less = _policy(private, "[worker]\nmemory_mib = 512\ncpu_seconds = 60\nthreads = 2")
    assert policy.worker_limits(less, 2**32) == Limits(memory_bytes=2**29, cpu_seconds=60, threads=2, operations=2)
    assert policy.worker_limits(less, 2**28).memory_bytes == 2**28


def test_what_a_worker_maps_follows_the_data_up_to_what_the_policy_allows(private: Path) -> None:
    begun = _policy(private, policy.DEFAULT)
    assert policy.worker_limits(begun, 2**32, 7 * 2**30) == Limits(memory_bytes=2**32, mapped_bytes=7 * 2**30, operations=2)
    big = PLAN.model_copy(update={"data": VOLUMES})
    many = policy.Cohort(samples=20_000, patients=20_000)  # 20,000 volumes of 32 x 32 x 32 float32: 2,500 MiB
    assert policy.refusals(begun, big, many) == {}
    assert policy.refusals(_with(private, "data_mib = 2500"), big, many) == {}
    refused = policy.refusals(_with(private, "data_mib = 2499"), big, many)["data_mib"]
    assert refused.params == {"mib": 2500, "limit": 2499}
    for language in ("en", "zh"):
        said = refused.detail(language) + refused.hint(language)
        assert "data_mib" in said and "[worker]" in said and "2500" in said, "which key, and how much is needed"


def test_an_empty_policy_allows_nothing(private: Path) -> None:
    empty = _policy(private, "")
    assert policy.refusal(empty, PLAN, policy.Cohort(10**6, 10**6)) is not None
    assert not empty.install


@pytest.mark.parametrize(
    "text",
    [
        *("[federation]\nrounds = 1", "[other]\n", "[federation]\nhours = '9-5'", "[models]\ninstall = 1", "= nonsense"),
        *("[federation]\nmax_epsilon = 'much'", "[federation]\nprivacy = 'some'", "[federation]\nmax_rounds = true", "worker = 3"),
        *("[federation]\nmax_epsilon = 'NaN'", "[worker]\nrounds = 3", "[federation]\nmemory_mib = 3", "[federation]\ntensors = '*'"),
    ],
)
def test_a_mistake_in_the_file_is_named_and_allows_nothing(private: Path, text: str) -> None:
    with pytest.raises(Problem) as caught:
        _policy(private, text)
    assert caught.value.code == "policy.invalid"


@pytest.mark.parametrize(
    ("text", "code"), [("no plan", "plan.json"), ('{"name": "m"}', "plan.missing"), (CONTRADICTING, "plan.secure_answers")]
)
async def test_a_file_that_is_no_plan_is_refused_with_what_is_wrong(tmp_path: Path, text: str, code: str) -> None:
    (file := tmp_path / "plan.json").write_text(text)
    with pytest.raises(Problem) as caught:
        await _plan(None, str(file))
    assert caught.value.code == code


def test_hours_may_wrap_around_midnight(private: Path) -> None:
    night = _policy(private, '[federation]\nhours = "22:00-06:00"')
    at = {hour: policy.in_hours(night, datetime(2026, 1, 1, hour)) for hour in (21, 22, 23, 0, 5, 6, 12)}
    assert at == {21: False, 22: True, 23: True, 0: True, 5: True, 6: False, 12: False}
    assert all(policy.in_hours(_policy(private, policy.DEFAULT), datetime(2026, 1, 1, hour)) for hour in range(24))


@pytest.mark.parametrize(
    ("hours", "now", "begins"),
    [
        ("22:00-06:00", datetime(2026, 1, 1, 21, 30), datetime(2026, 1, 1, 22)),
        ("22:00-06:00", datetime(2026, 1, 1, 5, 59), datetime(2026, 1, 1, 5, 59)),
        ("08:00-12:00", datetime(2026, 1, 1, 12), datetime(2026, 1, 2, 8)),
        ("08:00-08:00", datetime(2026, 1, 1, 8), datetime(2027, 1, 1, 8)),
    ],
)
def test_when_training_may_run_next(private: Path, hours: str, now: datetime, begins: datetime) -> None:
    assert policy.hours_begin(_with(private, f'hours = "{hours}"'), now) == begins
