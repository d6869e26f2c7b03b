"""The demo's checker is independent of what it checks: the standard library and one library for signatures."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from tests.architecture.sources import imported, python_files

CHECKERS = [path for path in python_files("libs/medmesh/demo") if path.stem.startswith("checker")]
THEMSELVES = {path.stem for path in CHECKERS}
ALLOWED = sys.stdlib_module_names | {"cryptography"}


def test_there_is_a_checker() -> None:
    assert "checker" in THEMSELVES
    assert len(CHECKERS) > 1


@pytest.mark.parametrize("path", CHECKERS, ids=lambda path: path.stem)
def test_it_imports_nothing_of_the_platform(path: Path) -> None:
    assert imported(path) - ALLOWED - THEMSELVES == set()
