"""What a node fetched for a round stays while it is of use, and no longer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.unit.edge.test_privacy import SETTINGS, opened
from tests.unit.federated.test_plan import plan

from medmesh.contracts.federation import RoundOpened
from medmesh.contracts.message import ObjectRef
from medmesh.contracts.plan import Plan
from medmesh.errors import Problem
from medmesh_edge import fetching, privacy, rounds
from medmesh_edge.fetching import Fetched
from medmesh_edge.ports import site
from medmesh_edge.rounds import Rounds


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


@pytest.mark.parametrize("which", ["base", "state", "personal"])
async def test_of_a_round_that_shows_more_than_a_model_nothing_is_fetched(
    private: Path, monkeypatch: pytest.MonkeyPatch, which: str
) -> None:
    """It would fill the hospital's disk."""

    async def allowed(_: RoundOpened) -> tuple[Plan, ObjectRef]:
        return plan(), ObjectRef(sha256="0" * 64, bytes=1)

    async def cohort(*_: Any) -> None:
        return None

    SETTINGS.save(private)
    monkeypatch.setattr(privacy, "cohort", cohort)
    monkeypatch.setattr(rounds, "refusal", lambda *_: None)
    async with site(private) as node:
        node.policy = lambda: None  # type: ignore[assignment]
        working = Rounds(node, None)  # type: ignore[arg-type]
        working.proofs.allowed = allowed  # type: ignore[method-assign]
        event = opened(plan(), 1).model_copy(update={which: ObjectRef(sha256="1" * 64, bytes=2**40)})
        with pytest.raises(Problem) as caught:
            await working._work(event)
    assert caught.value.code == "federation.round" and "bytes" in str(caught.value)
