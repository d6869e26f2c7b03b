"""What a codec left out of an update is kept for the next round, and no longer."""

from __future__ import annotations

from pathlib import Path

from tests.unit.edge.test_privacy import SETTINGS, opened
from tests.unit.federated.test_plan import plan

from medmesh_edge import encoding
from medmesh_edge.ports import site


async def test_what_a_later_round_goes_on_from_stays_though_an_earlier_one_left_the_same(private: Path) -> None:
    """Equal bytes are one object: an update that lost nothing leaves the same as the one before."""
    SETTINGS.save(private)
    async with site(private) as node:
        same, other = await node.objects.put(b"nothing"), await node.objects.put(b"something")
        for number, ref in enumerate((other, same, same), 1):
            async with node.unit() as uow:
                await encoding.keep(uow, opened(plan(), number), ref.sha256)
        await encoding.forget(node, "f", before=3)
        assert [await node.objects.size(ref.sha256) for ref in (same, other)] == [len(b"nothing"), None]
        await encoding.forget(node, "f")
        assert await node.objects.size(same.sha256) is None
