"""A split tears nobody and no picture apart, spreads labels as asked, and is the same every time."""

from __future__ import annotations

import random
from collections import Counter, defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medmesh.contracts.message import ObjectRef
from medmesh.errors import Problem
from medmesh_ingestion.domain import Facts, Sample
from medmesh_ingestion.splitting import split

RATIOS = {"train": 8, "val": 1, "test": 1}


def sample(number: int, *, label: str | None = None, picture: int | None = None, published: str | None = None) -> Sample:
    ref = ObjectRef(sha256=f"{number if picture is None else 10**9 + picture:064x}", bytes=1)
    return Sample(f"{number:016x}", ref, label, Facts("image", published, None, {}) if published else None)


def sides(samples: list[Sample]) -> dict[str, str]:
    return {one.item: str(one.facts and one.facts.split) for one in samples}


@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 30), st.sampled_from(["a", "b", None])), min_size=1, max_size=80),
    st.integers(0, 2**31 - 1),
)
def test_no_patient_and_no_picture_is_torn(drawn: list[tuple[int, int, str | None]], seed: int) -> None:
    samples = [sample(number, label=label, picture=picture) for number, (_, picture, label) in enumerate(drawn)]
    groups = {f"{number:016x}": f"g{group}" for number, (group, _, _) in enumerate(drawn) if group}
    made = split(samples, groups, RATIOS, seed, anew=False)
    found = sides(made)
    assert set(found.values()) <= set(RATIOS)
    for key in (lambda one: groups.get(one.item), lambda one: one.object.sha256):
        together = defaultdict(set)
        for one in samples:
            if key(one) is not None:
                together[key(one)].add(found[one.item])
        assert all(len(splits) == 1 for splits in together.values())
    shuffled = random.Random(seed).sample(samples, len(samples))
    assert sides(split(shuffled, groups, RATIOS, seed, anew=False)) == found, "whatever the order"


def test_labels_are_spread_as_asked() -> None:
    samples = [sample(number, label="rare" if number % 10 == 0 else "common") for number in range(1000)]
    groups = {f"{number:016x}": f"g{number // 5}" for number in range(1000)}
    made = split(samples, groups, RATIOS, 1, anew=False)
    for label, whole in (("rare", 100), ("common", 900)):
        counts = Counter(one.facts.split for one in made if one.facts and one.label == label)
        assert {name: counts[name] / whole for name in RATIOS} == pytest.approx({"train": 0.8, "val": 0.1, "test": 0.1}, abs=0.02)
    assert sides(made) != sides(split(samples, groups, RATIOS, 2, anew=False)), "another seed is another split"


def test_a_published_split_is_kept_unless_asked() -> None:
    published = [sample(number, published="train" if number % 2 else "test") for number in range(10)]
    with pytest.raises(Problem) as kept:
        split(published, {}, RATIOS, 0, anew=False)
    assert kept.value.code == "ingestion.split_published"
    mixed = [*published, *(sample(number) for number in range(10, 30))]
    groups = {f"{12:016x}": "p", f"{1:016x}": "p"}
    found = sides(split(mixed, groups, RATIOS, 0, anew=False))
    assert [found[one.item] for one in published] == [one.facts.split for one in published if one.facts]
    assert found[f"{12:016x}"] == "train", "with the patient's published image"
    torn = {f"{1:016x}": "q", f"{2:016x}": "q"}
    with pytest.raises(Problem) as refused:
        split(mixed, torn, RATIOS, 0, anew=False)
    assert (refused.value.code, refused.value.params) == ("ingestion.split_torn", {"clusters": 1})
    assert len(split(mixed, torn, RATIOS, 0, anew=True)) == 30
