"""Algorithms with a part in the hospital: real nodes train, keep what stays, die, and go on from it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import select
from tests.e2e.test_node import two_hospitals
from tests.hospitals import consented, federation, until
from tests.store import swept_though_named
from tests.world import World, small_world

from medmesh.contracts.federation import FederationView, RoundCommitted
from medmesh.contracts.message import ObjectRef
from medmesh.embedded.ports import Ports
from medmesh.embedded.testing import RunningServers
from medmesh.learning import isolation, metrics, weights
from medmesh.store.objects.port import fetch
from medmesh_edge.node import Node, running
from medmesh_edge.tables import kept
from medmesh_federation.service import SERVICE as FEDERATION

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(isolation.capability().kind == "none", reason="nothing isolates here"),
]


@pytest.fixture
async def world(servers: RunningServers, private: Path, ports: Ports) -> AsyncIterator[World]:
    async with small_world(
        servers, private, ports, FEDERATION, settings={"federation": {"tick_seconds": 0.1, "running_per_hospital": len(CASES)}}
    ) as made:
        yield made


async def remembered(node: Node, made: dict[str, Any], folder: Path) -> list[dict[str, np.ndarray]]:
    """What a hospital keeps for a federation, newest last."""
    newest = select(kept).where(kept.c.federation == made["federation"]).order_by(kept.c.round, kept.c.attempt)
    async with node.site.unit() as uow:
        refs = [ObjectRef.model_validate(row.object) for row in await uow.all(newest)]
    return [weights.load(await fetch(node.site.objects, ref, folder / ref.sha256)) for ref in refs]


CASES: tuple[tuple[str, dict[str, str], tuple[str, ...]], ...] = (
    ("scaffold", {}, ()),
    ("ditto", {"lambda": "0.1"}, ()),
    ("fedbn", {}, ("bias",)),
    ("fedamp", {"prox": "0.1"}, ()),
    ("fednova", {"epochs": "2"}, ()),
    ("fedprox", {"mu": "0.1"}, ()),
    ("finetune", {"steps": "10"}, ()),
)


async def test_hospitals_that_are_restarted_go_on_from_what_they_kept(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """All algorithms at once, on the same two hospitals: each is restarted after the first rounds. Nothing that a row names is swept."""
    named = swept_though_named(monkeypatch)
    async with two_hospitals(world) as (researcher, approver, folders), AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(running(folder)) for folder in folders.values()]
        made: dict[str, dict[str, Any]] = {}
        for name, parameters, local in CASES:
            plan = {"algorithm": name, "parameters": parameters, "local": local, "local_steps": 20, "learning_rate": "0.3"}
            made[name] = await federation(world, researcher, approver, tuple(folders), accept_seconds=200, **plan)
        for one in made.values():  # the package is the same, the plans are not
            await consented(nodes, one)

        async def committed(number: int, name: str) -> RoundCommitted | None:
            events = [e.data for e in world.p.emitted(RoundCommitted) if e.data.federation == made[name]["federation"]]
            return next((event for event in events if event.round == number), None)

        for name in made:
            await until(lambda name=name: committed(1, name), 120)
        await stack.aclose()
        going = [name for name in made if await committed(3, name) is None]
        for folder in folders.values():  # as a kill leaves it
            (folder / "objects" / "growing").mkdir(exist_ok=True)
            (folder / "objects" / "growing" / ".half").touch()
        nodes = [await stack.enter_async_context(running(folder)) for folder in folders.values()]
        assert {"scaffold", "ditto", "fedbn", "fedamp"} & set(going), "restarted while what they keep was needed"
        assert not [path for folder in folders.values() for path in (folder / "objects" / "growing").iterdir()]

        async def finished(name: str) -> FederationView | None:
            found = await researcher.ask(f"/v1/federations/{made[name]['federation']}", FederationView)
            assert found.state not in ("failed", "cancelled"), (name, found.failure)
            return found if found.state == "completed" else None

        for name, _, local in CASES:
            view = await until(lambda name=name: finished(name), 120)
            assert {p.drops for p in view.participants} <= {0, 1}
            counts: dict[str, list[Any]] = {}
            for entry in view.evaluation:
                counts.setdefault(entry.name, []).append(entry.counts)
            own = name in ("ditto", "fedbn", "fedamp", "finetune")
            assert set(counts) == {"federated", *(() if local else folders), *(("personal",) if own else ())}, name
            # A model without the tensors that stay in hospitals is none by itself.
            for which in (*(() if local else ("federated",)), *(("personal",) if own else ())):
                assert len(counts[which]) == 2
                assert metrics.balanced_accuracy(metrics.add(counts[which])) > 0.9, (name, which)
            states = [(await remembered(node, made[name], world.p.folder))[-1:] for node in nodes]
            assert all(states) == (name in ("scaffold", "ditto", "fedbn", "fedamp")), name
            if name == "scaffold":
                last = await committed(3, name)
                assert last
                assert last.state
                path = world.p.folder / "scaffold-c"
                path.write_bytes(b"".join([piece async for piece in world.p.stores.kept.read(last.state)]))
                c = weights.load(path)
                for tensor in ("scaffold.c/weight", "scaffold.c/bias"):
                    mean = np.mean([state[0][tensor] for state in states], axis=0)
                    np.testing.assert_allclose(c[tensor], mean, atol=1e-5, err_msg="c is the mean of what hospitals keep")
        assert named == []
