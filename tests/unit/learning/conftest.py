"""Each way of isolation that this machine has."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.isolation import Ground, ground_of


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="medmesh-") as name:
        Path(name).chmod(0o755)  # so that only isolation, not the permissions, stands before what lies in it
        yield Path(name).resolve()


@pytest.fixture(params=["namespace", "landlock"])
def ground(request: pytest.FixtureRequest, folder: Path) -> Ground:
    return ground_of(request.param, folder)


@pytest.fixture
def namespace(folder: Path) -> Ground:
    return ground_of("namespace", folder)
