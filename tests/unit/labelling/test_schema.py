"""What a label schema may be."""

from __future__ import annotations

import pytest

from medmesh.errors import Problem
from medmesh.labelling.schema import MAX_CLASSES, MAX_LENGTH, LabelSchema


def test_classes_keep_their_order_which_is_the_index_a_model_learns() -> None:
    assert LabelSchema.of(["肺炎", "normal", "x" * MAX_LENGTH]).classes == ("肺炎", "normal", "x" * MAX_LENGTH)


@pytest.mark.parametrize(
    ("classes", "reason"),
    [
        ((), "2 to"),
        (("only",), "2 to"),
        (tuple(str(n) for n in range(MAX_CLASSES + 1)), "2 to"),
        (("a", ""), "class 2 is not 1 to"),
        (("a", "x" * (MAX_LENGTH + 1)), "class 2 is not 1 to"),
        (("a ", "b"), "class 1 has white space"),
        (("a", "b\x00"), "class 2 has white space"),
        (("a", "b\u200b"), "class 2 has white space"),
        (("a", "e\u0301"), "class 2 is not in Unicode normal form"),
        (("a", "b", "a"), "same name"),
        (("Normal", "normal"), "same name"),
    ],
)
def test_a_schema_that_two_people_could_read_differently_is_refused(classes: tuple[str, ...], reason: str) -> None:
    with pytest.raises(Problem) as caught:
        LabelSchema.of(classes)
    assert caught.value.code == "annotation.schema"
    assert reason in caught.value.detail()


def test_a_label_outside_the_schema_is_refused_without_repeating_what_was_typed() -> None:
    schema = LabelSchema.of(["normal", "pneumonia"])
    assert schema.check("normal") == "normal"
    with pytest.raises(Problem) as caught:
        schema.check("Zhang San, bed 4")
    assert caught.value.code == "annotation.class_unknown"
    assert "Zhang" not in str(caught.value.document())
    assert "normal, pneumonia" in caught.value.detail()
