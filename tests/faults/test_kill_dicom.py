"""A node that receives from a PACS: fifty kills, and two thousand mutants over one association."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.dicoms import children, running, until
from tests.unit.edge.test_dicom import killing, mutating

pytestmark = [pytest.mark.faults, pytest.mark.slow]


@pytest.mark.timeout(1800)
async def test_what_was_acknowledged_survives_fifty_kills(private: Path) -> None:
    async with running(private, receivers=2, cleaners=2) as layout:
        await killing(layout, 50, 20_261)
        await until(lambda: len(children("medmesh_edge.receiver")) == 2)


@pytest.mark.timeout(1800)
async def test_two_thousand_mutants_cost_themselves_alone(private: Path) -> None:
    async with running(private, receivers=1, cleaners=2) as layout:
        await mutating(layout, 2000, 20_262)
