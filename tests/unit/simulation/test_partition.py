"""Who gets which samples."""

from __future__ import annotations

import numpy as np
import pytest

from medmesh.errors import Problem
from medmesh.simulation.data import Sample, share
from medmesh.simulation.partition import deal

LABELS = [n % 4 for n in range(400)]


def shares_of_a_class(dealt: list[list[int]], label: int) -> list[float]:
    return [sum(LABELS[place] == label for place in mine) / 100 for mine in dealt]


@pytest.mark.parametrize("way", ["iid", "dirichlet", "pathological"])
def test_every_patient_goes_to_one_hospital_and_a_seed_deals_alike(way: str) -> None:
    dealt = deal(LABELS, 8, way, seed=3)
    assert sorted(place for mine in dealt for place in mine) == list(range(400))
    assert all(dealt)
    assert dealt == deal(LABELS, 8, way, seed=3)
    assert dealt != deal(LABELS, 8, way, seed=4)


def test_dirichlet_is_the_less_alike_the_smaller_alpha_is() -> None:
    spread = [np.std(shares_of_a_class(deal(LABELS, 8, "dirichlet", seed=3, alpha=alpha), 0)) for alpha in (100.0, 1.0, 0.1)]
    assert spread[0] < 0.03 < spread[1] < spread[2]


def test_pathological_leaves_a_hospital_few_classes() -> None:
    for mine in deal(LABELS, 8, "pathological", seed=3, classes=2):
        assert len({LABELS[place] for place in mine}) <= 2  # 25 samples a shard, 100 a class: no shard has two classes
    assert len({LABELS[place] for place in deal(LABELS, 8, "iid", seed=3)[0]}) == 4


@pytest.mark.parametrize(
    ("hospitals", "way", "further", "code"),
    [
        (0, "iid", {}, "partition"),
        (401, "iid", {}, "partition"),
        (8, "alike", {}, "way"),
        (8, "dirichlet", {"alpha": 0}, "alpha"),
        (8, "pathological", {"classes": 0}, "shards"),
        (300, "dirichlet", {"alpha": 0.01}, "empty"),
    ],
)
def test_what_cannot_be_dealt_out_is_refused(hospitals: int, way: str, further: dict[str, float], code: str) -> None:
    with pytest.raises(Problem) as caught:
        deal(LABELS, hospitals, way, seed=1, **further)  # type: ignore[arg-type]
    assert caught.value.code == f"simulation.{code}"


def test_samples_of_a_patient_stay_together() -> None:
    samples = [Sample(b"%d" % n, "ab"[n // 2 % 2], f"p{n // 2}", False, "MR") for n in range(40)]
    dealt = share({"all": samples}, 5, "iid", seed=1)
    assert sum(map(len, dealt.values())) == 40
    where: dict[str, set[str]] = {}
    for name, mine in dealt.items():
        for sample in mine:
            where.setdefault(sample.patient, set()).add(name)
    assert {len(names) for names in where.values()} == {1}
