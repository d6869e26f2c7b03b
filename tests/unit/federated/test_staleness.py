"""Late updates, against plain numpy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from tests.unit.federated.test_plan import plan

from medmesh.contracts.plan import SemiAsynchrony
from medmesh.errors import Problem
from medmesh.federated.aggregation import ALGORITHMS, compatible
from medmesh.federated.plan import explain
from medmesh.federated.staleness import SCALE, carried, weight
from medmesh.learning import weights


def test_a_weight_falls_with_the_rounds_an_update_is_late() -> None:
    pace = SemiAsynchrony(quorum=2, decay="0.5")
    assert [weight(10, late, pace) for late in (0, 1, 3)] == [10 * SCALE, round(10 * SCALE / 2**0.5), 5 * SCALE]
    assert weight(10, 5, SemiAsynchrony(quorum=2, decay="0")) == 10 * SCALE
    assert weight(1, 100, SemiAsynchrony(quorum=2, decay="10")) == 1, "it never weighs nothing"


def test_what_training_changed_is_carried_to_the_present_model(tmp_path: Path) -> None:
    dice, models = np.random.default_rng(1), {}
    for name in ("update", "before", "now"):
        models[name] = {"w": dice.normal(size=(700, 1000)).astype(np.float32), "n": np.array([ord(name[0])])}
        weights.save(models[name], tmp_path / name)
    made = weights.load(carried(*(tmp_path / name for name in ("update", "before", "now", "made"))))
    wanted = models["now"]["w"].astype(np.float64) + (models["update"]["w"].astype(np.float64) - models["before"]["w"])
    assert (made["w"] == wanted.astype(np.float32)).all(), "700,000 numbers, in more than one piece"
    assert made["n"] == models["update"]["n"]
    huge = {"w": np.full((2,), 3e38, np.float32)}
    for name, sign in (("update", 1), ("before", -1), ("now", 1)):
        weights.save({"w": sign * huge["w"]}, tmp_path / name)
    with pytest.raises(Problem) as caught:
        carried(*(tmp_path / name for name in ("update", "before", "now", "made")))
    assert caught.value.code == "weights.not_finite"


PACE = {"quorum": 2}
PRIVACY = {"unit": "hospital", "epsilon": "8", "delta": "0.00001", "clip": "1", "noise": "20"}


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"pace": {"quorum": 1}}, "plan.pace_quorum"),
        ({"pace": {"quorum": 4}}, "plan.pace_quorum"),
        ({"pace": {"quorum": 2, "decay": "-1"}}, "0 <= pace.decay <= 10"),
        ({"pace": {"quorum": 2, "decay": "fast"}}, "pace.decay is fast"),
        ({"pace": {"quorum": 3}, "min_participants": 3, "secure": {"threshold": 3}}, "plan.pace_secure"),
        ({"pace": PACE, "local": ("bn.mean",)}, "plan.pace_local"),
        ({"pace": PACE, "evaluate_every": 1, "stop": {}}, "plan.pace_stop"),
        ({"pace": PACE, "privacy": PRIVACY}, "plan.pace_privacy"),
    ],
)
def test_what_cannot_go_on_without_the_slow_is_refused_with_its_reason(changed: dict[str, object], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        plan(**changed)


def test_algorithms_whose_updates_belong_to_their_round_are_refused() -> None:
    assert [name for name in ALGORITHMS if refused(name) == ""] == [
        *("fedavg", "fedprox", "finetune", "fedavgm", "fedadagrad", "fedadam", "fedyogi")
    ]
    for name in ("ditto", "scaffold", "fednova", "fedamp", "median"):
        assert refused(name).startswith("federation.pace")


def refused(algorithm: str) -> str:
    try:
        compatible(plan(algorithm=algorithm, pace=PACE))
    except Problem as problem:
        return problem.code
    return ""


@pytest.mark.parametrize(("language", "said"), [("en", "does not wait for the slow"), ("zh", "不等待较慢的医院")])
def test_a_hospital_reads_that_rounds_do_not_wait(language: str, said: str) -> None:
    assert any(said in line for line in explain(plan(pace=PACE), language))
    assert not any(said in line for line in explain(plan(), language))
