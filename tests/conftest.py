"""Real servers for every suite: started once a session from wheels on free loopback ports, stopped at its end."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from medmesh.embedded.ports import Ports
from medmesh.embedded.testing import RunningServers, start


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Long contents get a number instead of themselves for a name: an archive holds the second it was made in, a note its key, and
    the workers of a run must find the same cases."""
    return argname if isinstance(val, bytes | str) and len(val) > 80 else None


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServers]:
    """nats-server (open to all: permissions have tests of their own), PostgreSQL and SeaweedFS."""
    with start(tmp_path_factory.mktemp("servers"), s3=True) as running:
        yield running


_NUMBERS = itertools.count(1)


@pytest.fixture
def unique() -> str:
    """A name nobody else in this session uses."""
    return f"t{next(_NUMBERS)}"


@pytest.fixture
def private(tmp_path: Path) -> Path:
    """A folder for secrets."""
    tmp_path.chmod(0o700)
    return tmp_path


@pytest.fixture
def ports(tmp_path: Path) -> Iterator[Ports]:
    """Free ports that nobody else on this machine takes while the test runs: `ports.take("a", "b")`."""
    taken = Ports(tmp_path / "ports.json")
    yield taken
    taken.close()
