"""Every refusal of a plan, in both languages: what is wrong and what to do, with no sentence of the other language within it."""

from __future__ import annotations

import ast
import re
import tomllib
from importlib import resources
from typing import Any, ClassVar

import pytest
from pydantic import ValidationError
from tests.architecture.sources import ROOT
from tests.unit.federated.test_plan import plan

from medmesh.contracts.plan import Plan, TensorSignature
from medmesh.contracts.refusals import contradiction
from medmesh.errors import Problem
from medmesh.federated.aggregation import ALGORITHMS, Algorithm, Parameter, compatible

SIX = {"participants": ("a", "b", "c", "d", "e", "f"), "min_participants": 4}
HOSPITALS = {"unit": "hospital", "epsilon": "8", "delta": "0.00001", "clip": "1", "noise": "3"}
PATIENTS = {**HOSPITALS, "unit": "patient", "rate": "0.1"}
SECURE = {"secure": {"threshold": 3}, "min_participants": 3}
LATE = {"pace": {"quorum": 2}}
TWICE = (TensorSignature(name="bias", shape=(2,), dtype="F32"),) * 2


class Needing(Algorithm):
    NAME = "needing"
    PARAMETERS: ClassVar = {"share": Parameter("a number without a default", None, "0", "1")}


CASES: list[tuple[str, dict[str, Any]]] = [
    ("plan.missing", {"rounds": ...}),
    ("plan.unknown", {"epochs": 3}),
    ("plan.bound", {"rounds": 0}),
    ("plan.bound", {"rounds": 10_001}),
    ("plan.bound", {"seed": 2**53}),
    ("plan.bound", {"secure": {"threshold": 2}}),
    ("plan.number", {"learning_rate": "much"}),
    ("plan.number", {"learning_rate": "0"}),
    ("plan.number", {"codec_share": "1.5"}),
    ("plan.number", {"evaluate_every": 1, "stop": {"min_delta": "1"}}),
    ("plan.number", {"pace": {"quorum": 2, "decay": "inf"}}),
    ("plan.number", {"privacy": {**HOSPITALS, "noise": "0"}}),
    ("plan.number", {"privacy": {**HOSPITALS, "quantile": "1"}}),
    ("plan.number", {"screening": {"opposed": "2"}}),
    ("plan.number", {"ranges": {"batch_size": {"low": "0", "high": "9"}}}),
    ("plan.length", {"purpose": ""}),
    ("plan.length", {"purpose": "x" * 501}),
    ("plan.length", {"participants": ()}),
    ("plan.choice", {"codec": "zip"}),
    ("plan.choice", {"screening": {"action": "shout"}}),
    ("plan.form", {"rounds": "many"}),
    ("plan.form", {"participants": ("A b",)}),
    ("plan.time_zone", {"start_at": "2026-01-01T00:00:00"}),
    ("plan.twice", {"participants": ("a", "a", "b")}),
    ("plan.twice", {"signature": TWICE}),
    ("plan.twice", {"local": ("bias", "bias")}),
    ("plan.min_participants", {"min_participants": 4}),
    ("plan.local_unknown", {"local": ("other",)}),
    ("plan.local_all", {"local": ("bias", "bn.mean", "bn.count")}),
    ("plan.stop_unevaluated", {"stop": {}}),
    ("plan.stop_personal", {"algorithm": "ditto", "evaluate_every": 1, "stop": {}}),
    ("plan.range", {"ranges": {"batch_size": {"low": "9", "high": "8"}}}),
    ("plan.range_outside", {"ranges": {"batch_size": {"low": "9", "high": "10"}}}),
    ("plan.range_privacy", {"ranges": {"batch_size": {"low": "1", "high": "10"}}, "privacy": HOSPITALS}),
    ("plan.codec_share", {"codec": "int8", "codec_share": "0.1"}),
    ("plan.secure_count", {"participants": ("a", "b"), "secure": {"threshold": 3}}),
    ("plan.secure_threshold", {**SIX, "secure": {"threshold": 4}}),
    ("plan.secure_answers", {**SECURE, "min_participants": 2}),
    ("plan.secure_codec", {**SECURE, "codec": "int8"}),
    ("plan.secure_baseline", {**SECURE, "baseline": True}),
    ("federation.secure", {**SECURE, "algorithm": "krum"}),
    ("federation.secure_more", {**SECURE, "algorithm": "scaffold"}),
    ("plan.pace_quorum", {"pace": {"quorum": 4}}),
    ("plan.pace_secure", {**SECURE, "pace": {"quorum": 3}}),
    ("plan.pace_local", {**LATE, "local": ("bias",)}),
    ("plan.pace_stop", {**LATE, "evaluate_every": 1, "stop": {}}),
    ("plan.pace_privacy", {**LATE, "privacy": HOSPITALS}),
    ("federation.pace", {**LATE, "algorithm": "median"}),
    ("federation.pace_more", {**LATE, "algorithm": "counting"}),
    ("federation.pace_kept", {**LATE, "algorithm": "ditto"}),
    ("plan.privacy_baseline", {"privacy": HOSPITALS, "baseline": True}),
    ("plan.privacy_evaluated", {"privacy": HOSPITALS, "evaluate_every": 1}),
    ("plan.privacy_codec", {"privacy": HOSPITALS, "codec": "fp16"}),
    ("plan.privacy_rate", {"privacy": {**HOSPITALS, "rate": "0.5"}}),
    ("plan.privacy_quantile", {"privacy": {**PATIENTS, "quantile": "0.5"}}),
    ("plan.budget", {"privacy": {**HOSPITALS, "noise": "0.1"}}),
    ("privacy.algorithm", {"privacy": HOSPITALS, "algorithm": "median"}),
    ("privacy.algorithm_more", {"privacy": HOSPITALS, "algorithm": "scaffold"}),
    ("privacy.algorithm_numbers", {"privacy": PATIENTS, "algorithm": "fednova"}),
    ("plan.screening_secure", {**SECURE, "screening": {}}),
    ("plan.screening_privacy", {"privacy": HOSPITALS, "screening": {}}),
    ("federation.algorithm", {"algorithm": "magic"}),
    ("federation.parameter", {"algorithm": "fedprox", "parameters": {"mu": "-1"}}),
    ("federation.parameter_whole", {"algorithm": "krum", "parameters": {"tolerate": "1.5"}}),
    ("federation.parameter_missing", {"algorithm": "needing"}),
    ("federation.parameter_unknown", {"algorithm": "fedprox", "parameters": {"lambda": "1"}}),
    ("federation.parameter_none", {"parameters": {"mu": "1"}}),
    ("plan.needs_local", {"algorithm": "fedbn"}),
    ("plan.whole_model", {"algorithm": "ditto", "local": ("bias",)}),
    ("plan.whole_model", {"algorithm": "fedamp", "local": ("bias",)}),
    ("plan.whole_model", {"algorithm": "scaffold", "local": ("bias",)}),
    ("plan.whole_model", {"algorithm": "fednova", "local": ("bias",)}),
    ("plan.few_answers", {"algorithm": "krum"}),
    ("plan.few_answers", {"algorithm": "bulyan"}),
]
ELSEWHERE = {
    "plan.json": "tests/unit/edge/test_policy.py",
    "plan.objects": "tests/integration/test_federation.py",
    "plan.package": "tests/integration/test_federation.py",
    "privacy.algorithm_steps": "tests/unit/federated/test_privacy.py",
}
"""Refusals for which a plan alone is not enough, and where they are seen."""
SENTENCE = re.compile(r"[A-Za-z]+(?:[;:]? [a-z]+){2,}")
"""Three words of English in a row, which no name of an option or of an algorithm has, and no list of names."""


class Counting(Algorithm):
    NAME = "counting"
    NUMBERS = ("counting.n",)


@pytest.fixture(autouse=True)
def _known(monkeypatch: pytest.MonkeyPatch) -> None:
    for one in (Needing, Counting):
        monkeypatch.setitem(ALGORITHMS, one.NAME, one)


def refused(changed: dict[str, Any]) -> Problem:
    """What a client, the simulator, the platform say to a plan with this."""
    document = {**plan().model_dump(mode="json"), **changed}
    document = {name: value for name, value in document.items() if value is not ...}
    try:
        compatible(Plan.model_validate(document))
    except ValidationError as error:
        return contradiction(error)
    except Problem as problem:
        return problem
    raise AssertionError(f"{changed} is refused by nobody")


@pytest.mark.parametrize(("code", "changed"), CASES, ids=lambda one: one if isinstance(one, str) else "")
def test_a_contradiction_is_said_in_the_language_of_who_reads_it(code: str, changed: dict[str, Any]) -> None:
    problem = refused(changed)
    assert problem.code == code
    again = Problem.from_document(problem.document())
    for one in (problem, again):  # said at once, and by the platform
        told = f"{one.detail('zh')} {one.hint('zh')}"
        assert not SENTENCE.search(re.sub(r"`[^`]*`", "", told)), told
        assert re.search(r"[\u4e00-\u9fff]", one.detail("zh")) and not re.search(r"[\u4e00-\u9fff]", f"{one.detail()} {one.hint()}")
        assert one.hint() and one.hint("zh"), "what to do"
        assert "Value error" not in f"{one} {told}" and "{" not in f"{one} {told}"


def test_no_refusal_of_a_plan_is_left_out() -> None:
    texts = tomllib.loads((resources.files("medmesh.catalogue") / "plan.toml").read_text(encoding="utf-8"))
    assert set(texts) == {code for code, _ in CASES} | ELSEWHERE.keys()
    for code, where in ELSEWHERE.items():
        assert code in (ROOT / where).read_text(encoding="utf-8"), f"{code} is not in {where}"
    left = [code for code, text in texts.items() if re.search(r"\{(reason|why|what|detail)\}", str(text))]
    assert left == [], "a sentence would be put into a sentence"


def test_a_plans_rules_raise_nothing_without_a_text() -> None:
    for name in ("plan", "privacy", "screening"):
        found = ast.parse((ROOT / f"libs/medmesh/contracts/{name}.py").read_text(encoding="utf-8"))
        for rule in (one for one in ast.walk(found) if isinstance(one, ast.FunctionDef) and one.name != "changed"):
            said = [ast.unparse(one) for one in ast.walk(rule) if isinstance(one, ast.Raise)]
            assert all(one.startswith("raise refusal(") for one in said), (name, rule.name, said)


def test_what_was_given_and_what_is_needed_are_in_the_sentence() -> None:
    told = refused({**SECURE, "min_participants": 2})
    assert "may close with 2 answers" in told.detail() and told.hint() == "Give --min-participants 3 or more."
    assert "-1" in refused({"algorithm": "fedprox", "parameters": {"mu": "-1"}}).detail()
    assert "0 < learning_rate < 1000" in refused({"learning_rate": "0"}).detail()
    assert "rounds >= 1" in refused({"rounds": 0}).detail()
