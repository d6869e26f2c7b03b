"""Real nodes under differential privacy: ledgers of hospitals and platform agree with one worked out here, and a budget ends the run."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from scipy.special import gammaln, logsumexp
from sqlalchemy import select
from tests.hospitals import completed, consented, federation, with_images
from tests.world import World, small_world

from medmesh.cli.edge import edge
from medmesh.contracts.federation import FederationView
from medmesh.embedded.ports import Ports
from medmesh.embedded.testing import RunningServers
from medmesh.learning import isolation
from medmesh_edge.node import Node, running
from medmesh_edge.tables import privacy_spent
from medmesh_federation.service import SERVICE as FEDERATION

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(isolation.capability().kind == "none", reason="nothing isolates here"),
]
HOSPITALS = ("huashan", "renji", "xiehe")


@pytest.fixture
async def world(servers: RunningServers, private: Path, ports: Ports) -> AsyncIterator[World]:
    async with small_world(servers, private, ports, FEDERATION, settings={"federation": {"tick_seconds": 0.1}}) as made:
        yield made


def by_hand(rate: float, noise: float, steps: int, delta: float) -> float:
    """Mironov, Talwar and Zhang 2019 for whole orders, with scipy; Canonne, Kamath and Steinke 2020, proposition 12."""
    found = []
    for a in [*range(2, 65), 80, 96, 128, 192, 256, 512]:
        k = np.arange(a + 1)
        with np.errstate(divide="ignore", invalid="ignore"):
            chances = np.where(a - k == 0, 0.0, (a - k) * np.log1p(-rate)) + k * np.log(rate)
        terms = gammaln(a + 1) - gammaln(k + 1) - gammaln(a - k + 1) + chances + (k * k - k) / (2 * noise**2)
        divergence = steps * logsumexp(terms) / (a - 1)
        found.append(divergence + np.log1p(-1 / a) - (np.log(delta) + np.log(a)) / (a - 1))
    return float(max(0.0, min(found)))


async def run(world: World, hospitals: tuple[str, ...], **plan: Any) -> tuple[FederationView, list[list[Any]], Path]:
    """(the federation when it ended, each hospital's ledger, a node's folder)."""
    researcher, approver, folders = await with_images(world, hospitals)
    async with AsyncExitStack() as stack:
        nodes: list[Node] = [await stack.enter_async_context(running(folder)) for folder in folders.values()]
        wanted = {"baseline": False, "min_participants": len(hospitals), "lease_seconds": 20, "rounds": 4, **plan}
        made = await federation(world, researcher, approver, hospitals, **wanted)
        await consented(nodes, made)
        view = await completed(researcher, made, 150)
        ledgers = []
        for node in nodes:
            async with node.site.unit() as uow:
                ledgers.append(list(await uow.all(select(privacy_spent).order_by(privacy_spent.c.round, privacy_spent.c.attempt))))
        return view, ledgers, next(iter(folders.values()))


def check(view: FederationView, ledgers: list[list[Any]], rounds: int, spent: list[float]) -> None:
    """The run ended with `rounds`, and everybody's ledger has `spent`."""
    assert view.failure == "privacy.budget"
    done = [one for one in view.rounds if one.state == "committed"]
    assert [one.round for one in done] == list(range(1, rounds + 1))
    assert all(answer.samples == 1 and not answer.metrics for one in done for answer in one.answers), "nothing leaves without noise"
    assert view.privacy is not None and view.privacy.attempts == rounds
    assert view.privacy.epsilon == pytest.approx(spent[-1], rel=1e-5)
    for rows in ledgers:
        assert [float(row.epsilon) for row in rows] == pytest.approx(spent, rel=1e-5)


async def test_hospitals_noise_their_part_of_a_secure_sum(world: World) -> None:
    privacy = {"unit": "hospital", "epsilon": "4", "delta": "0.00001", "clip": "0.5", "noise": "2", "quantile": "0.5"}
    spent = [by_hand(1.0, 2.0, rounds, 1e-5) for rounds in (1, 2, 3)]
    fits = sum(one <= 4 for one in spent)
    assert fits == 2
    view, ledgers, folder = await run(world, HOSPITALS, secure={"threshold": 3}, privacy=privacy)
    check(view, ledgers, fits, spent[:fits])
    shown = await asyncio.to_thread(CliRunner().invoke, edge, ["privacy", "--folder", str(folder), "--json"])
    document = json.loads(shown.output)
    line, (total,) = document["federations"][0], document["totals"]
    assert (total["unit"], total["federations"], total["epsilon"]) == ("hospital", 1, total["reserved"]), (
        "it is over, and holds nothing back"
    )
    assert (line["attempts"], line["budget"]) == (fits, "4") and float(line["epsilon"]) == pytest.approx(spent[fits - 1], rel=1e-5)


async def test_patients_are_hidden_by_their_hospitals_own_training(world: World) -> None:
    privacy = {"unit": "patient", "epsilon": "10", "delta": "0.0001", "clip": "1", "noise": "1", "rate": "0.3"}
    spent = [by_hand(0.3, 1.0, rounds * 10, 1e-4) for rounds in (1, 2, 3)]
    fits = sum(one <= 10 for one in spent)
    assert fits == 2
    view, ledgers, _ = await run(world, HOSPITALS[:2], local_steps=10, privacy=privacy)
    check(view, ledgers, fits, spent[:fits])
