"""What several files of the folder share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.federations import SETTINGS
from tests.platform import Platform, platform
from tests.world import World, small_world

from medmesh.embedded.ports import Ports
from medmesh.embedded.testing import RunningServers
from medmesh_federation.service import SERVICE as FEDERATION


@pytest.fixture
async def world(servers: RunningServers, private: Path, ports: Ports) -> AsyncIterator[World]:
    """A small world (`tests.world`) without further services."""
    async with small_world(servers, private, ports) as made:
        yield made


@pytest.fixture
async def p(servers: RunningServers, private: Path) -> AsyncIterator[Platform]:
    """A platform (`tests.platform`) whose only service coordinates federations."""
    async with platform(servers, private, FEDERATION, settings=SETTINGS) as made:
        yield made
