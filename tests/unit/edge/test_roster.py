"""A node takes newer versions of the roster from the platform, and refuses those that its keepers did not sign; both are recorded."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import pytest
from tests.rosters import Rosters
from tests.unit.edge.test_privacy import SETTINGS

from medmesh.client.gateway import Gateway
from medmesh.errors import Problem
from medmesh_edge import roster
from medmesh_edge.ports import Site, site

GATEWAY = cast(Gateway, None)


@pytest.fixture
async def node(private: Path) -> AsyncIterator[Site]:
    SETTINGS.save(private)
    async with site(private) as opened:
        yield opened


async def said(node: Site) -> list[tuple[str, int, str]]:
    found = [json.loads(body) for _, _, body in await node.database.unreceipted(1000)]
    return [(record["sub"], record["out"], record["why"]) for record in found]


async def test_what_its_keepers_did_not_sign_is_refused_and_recorded(node: Site, private: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, others = Rosters.create(private / "ours.json"), Rosters.create(private / "others.json")
    others.add_hospitals("nobody")  # a second version, which would follow the first of ours
    roster.pin(node.layout, ours.book.versions, ours.pin)
    offered = others

    async def served(_gateway: Gateway) -> list[str]:
        return list(offered.book.versions)

    monkeypatch.setattr(roster, "served", served)
    with pytest.raises(Problem) as caught:
        await roster.refresh(node, GATEWAY)
    assert await said(node) == [("roster.update", 8, caught.value.code)]
    assert node.roster().keepers == ours.present().keepers, "what was believed is believed"
    offered = ours
    assert not await roster.refresh(node, GATEWAY), "nothing is newer"
    ours.add_hospitals("renji")
    assert await roster.refresh(node, GATEWAY)
    assert (await said(node))[1:] == [("roster.update", 0, "")]
    assert node.roster().version == ours.present().version
