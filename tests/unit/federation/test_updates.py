"""What a hospital says beside its update."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from medmesh.errors import Problem
from medmesh_federation.updates import MOST_COUNTED, checked

PLAN: Any = SimpleNamespace(data=SimpleNamespace(classes=("benign", "malignant")))


def test_counts_are_numbers_that_everybody_can_add_up() -> None:
    assert checked(((3, 1), (0, MOST_COUNTED)), PLAN) == [[3, 1], [0, MOST_COUNTED]]
    for wrong in ((3, MOST_COUNTED), (0, 1)), ((3, -1), (0, 1)), ((3, 10**4000), (0, 1)):
        with pytest.raises(Problem, match="counts"):
            checked(wrong, PLAN)
