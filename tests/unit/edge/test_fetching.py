"""What a node fetched for a round stays while it is of use, and no longer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.unit.edge.test_privacy import SETTINGS, opened
from tests.unit.federated.test_plan import plan

from medmesh.contracts.federation import RoundOpened
from medmesh.contracts.message import ObjectRef
from medmesh_edge import fetching
from medmesh_edge.fetching import Fetched
from medmesh_edge.ports import site


def shown(number: int, state: str, personal: str) -> RoundOpened:
    """A round that shows these beside its model."""
    beside = {name: ObjectRef(sha256=letter * 64, bytes=1) for name, letter in (("state", state), ("personal", personal))}
    return opened(plan(), number).model_copy(update=beside)


async def test_what_earlier_rounds_showed_beside_their_models_goes(private: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is as large as a model, and a federation has many rounds."""
    asked = list[str]()

    async def download(_: Any, ref: ObjectRef, target: Path) -> Path:
        if not target.exists():
            asked.append(ref.sha256[0])
            target.write_bytes(b"x")
        return target

    monkeypatch.setattr(fetching, "download", download)
    SETTINGS.save(private)
    async with site(private) as node:
        fetched, folder = Fetched(node, None), node.layout.cached("round")  # type: ignore[arg-type]
        (folder / f"{'f' * 64}.part").write_bytes(b"half of one")
        for event in (shown(1, "a", "b"), shown(1, "a", "b"), shown(2, "c", "b")):
            fetched.forget(event)
            for ref in (event.state, event.personal):
                assert ref is not None
                await fetched.beside(ref)
        assert asked == ["a", "b", "c"], "what is of use still is not fetched again"
        assert sorted(path.name[0] for path in folder.iterdir()) == ["b", "c"]
