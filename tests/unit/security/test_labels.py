"""The lattice of labels: order, join, and that no sequence of derivations lowers one."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medmesh.errors import Problem
from medmesh.security.labels import EVERY, EVERYTHING, NOTHING, Label, Level, join, level, no_lower_than, of_hospital, own

HOSPITALS = ("renji", "xiehe", "huashan")
LABELS = st.builds(Label, st.sampled_from(Level), st.frozensets(st.sampled_from(HOSPITALS)))
CLEARANCES = st.builds(Label, st.sampled_from(Level), st.frozensets(st.sampled_from((*HOSPITALS, EVERY))))


def test_levels_stand_in_the_order_of_the_standard() -> None:
    assert [one.text for one in sorted(Level)] == ["public", "internal", "sensitive", "core"]
    assert [level(one.text) for one in Level] == list(Level)


@pytest.mark.parametrize("text", ["", "secret", "PUBLIC", "Internal", "core ", "机密"])
def test_a_level_nobody_knows_is_none(text: str) -> None:
    with pytest.raises(Problem) as caught:
        level(text)
    assert caught.value.code == "labels.level"


def test_who_may_read_what_by_a_table_written_out() -> None:
    internal, sensitive = Label(Level.INTERNAL), Label(Level.SENSITIVE, frozenset({"renji"}))
    assert internal.dominates(NOTHING)
    assert not NOTHING.dominates(internal)
    assert not Label(Level.CORE).dominates(sensitive), "a level without the compartment"
    assert not Label(Level.INTERNAL, frozenset({"renji"})).dominates(sensitive), "the compartment without the level"
    assert Label(Level.SENSITIVE, frozenset({"renji", "xiehe"})).dominates(sensitive)
    assert Label(Level.SENSITIVE, frozenset({EVERY})).dominates(sensitive)
    assert EVERYTHING.dominates(Label(Level.CORE, frozenset(HOSPITALS)))
    assert of_hospital("renji").dominates(Label(Level.CORE, frozenset({"renji"})))
    assert not of_hospital("renji").dominates(Label(Level.PUBLIC, frozenset({"xiehe"})))
    assert own("platform") == frozenset()
    assert own("renji") == frozenset({"renji"})


@given(LABELS, LABELS, LABELS)
def test_labels_are_a_lattice(a: Label, b: Label, c: Label) -> None:
    both = join((a, b))
    assert both.dominates(a)
    assert both.dominates(b)
    assert join((a, a)) == a
    assert join((a, b)) == join((b, a))
    assert join((a, join((b, c)))) == join((both, c))
    if c.dominates(a) and c.dominates(b):
        assert c.dominates(both), "the join is the lowest that dominates both"
    assert a.dominates(b) or b.dominates(a) or both not in (a, b)


@given(LABELS, LABELS)
def test_who_dominates_each_other_is_the_same(a: Label, b: Label) -> None:
    assert (a.dominates(b) and b.dominates(a)) == (a == b)


@given(CLEARANCES, st.sampled_from((*HOSPITALS, "platform")), LABELS)
def test_what_somebody_makes_alone_hides_nothing_they_could_read(clearance: Label, organisation: str, read: Label) -> None:
    """Write-down: whatever they read, what they make of bytes nobody has seen has at least its level, and its compartments but for those
    who are cleared for every one, whose own organisation answers for it."""
    made = no_lower_than(clearance, organisation)
    assert EVERY not in made.compartments
    if clearance.dominates(read):
        assert made.level >= read.level
        if EVERY not in clearance.compartments:
            assert made.dominates(read)


STEPS = st.lists(st.tuples(st.sets(st.integers(0, 20), min_size=1, max_size=3), LABELS), max_size=12)


@given(st.lists(LABELS, min_size=1, max_size=5), STEPS)
def test_no_sequence_of_derivations_lowers_a_label(first: list[Label], steps: list[tuple[set[int], Label]]) -> None:
    """Objects made of objects made of objects: each at least as high as everything it came from, however far back."""
    objects = list(first)
    ancestors: list[set[int]] = [{place} for place in range(len(first))]
    for parents, raised in steps:
        chosen = {parent % len(objects) for parent in parents}
        objects.append(join([*(objects[parent] for parent in chosen), raised]))
        ancestors.append(set().union(*(ancestors[parent] for parent in chosen)) | {len(objects) - 1})
    for place, before in enumerate(ancestors):
        assert all(objects[place].dominates(objects[ancestor]) for ancestor in before)


def test_every_level_and_compartment_counts() -> None:
    """The table of all pairs of a small lattice, against the definition spelled out with sets."""
    some = [Label(lv, frozenset(c)) for lv in Level for c in ((), ("renji",), ("xiehe",), ("renji", "xiehe"))]
    for a, b in itertools.product(some, some):
        assert a.dominates(b) == (int(a.level) >= int(b.level) and set(b.compartments).issubset(a.compartments))
