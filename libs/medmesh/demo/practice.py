"""A platform to practise on: its people and enrolled hospitals, played by one process, on real servers with real nodes.

Everything is as `docs/tutorial/first-federation.md` does it by hand, with approvals and signatures; only who plays them is not real.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from medmesh.client.federation import create_federation
from medmesh.contracts.federation import FederationView
from medmesh.demo.chapters import joining
from medmesh.demo.processes import Process, medmesh
from medmesh.demo.stage import Stage
from medmesh.errors import Problem
from medmesh.learning import metrics

RESEARCHER = "li"
HEART = Path(__file__).parent / "heart"
"""The training package of `docs/tutorial/heart-disease.md`."""


@asynccontextmanager
async def practice(folder: Path, *hospitals: str) -> AsyncIterator[Stage]:
    """A platform in `folder`, made afresh, with these hospitals enrolled and their nodes in `stage.nodes`, not running yet. It is down
    at the end; what it wrote stays. Raises `Problem`."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    folder.chmod(0o711)
    stage = Stage(folder.absolute(), say=lambda english, chinese: print(english, flush=True))
    try:
        await joining.up(stage)
        await joining.enrol(stage, hospitals)
        yield stage
    finally:
        for node in stage.nodes.values():
            node.stop()
        await medmesh("down", "--data", str(stage.data))


async def federate(stage: Stage, package: Path, name: str, purpose: str, **plan: Any) -> FederationView:
    """The researcher creates a federation of all hospitals, each approves the code, a second person the start; answers how it ended.
    Raises `Problem` when it did not complete."""
    values = {
        "min_participants": len(stage.nodes),
        "round_deadline_seconds": 120,
        "accept_seconds": 180,
        "seed": stage.seed,
        "small_cell": 0,  # a public data set: its counts may be told as they are
        **plan,
    }
    people = stage.people
    initiator, hospitals = f"person:{RESEARCHER}@platform", tuple(stage.nodes)
    made = await create_federation(
        people[RESEARCHER],
        package,
        name=name,
        purpose=purpose,
        initiator=initiator,
        hospitals=hospitals,
        reviews=stage.reviews(package),
        **values,
    )
    federation = str(made["federation"])

    async def answer(node: Process) -> None:
        async def invited() -> bool:
            known = json.loads(await medmesh("edge", "federations", "--folder", str(node.folder)))
            return any(entry["federation"] == federation for entry in known)

        await stage.until(f"the invitation at {node.name}", invited)
        await medmesh("edge", "approve", "--folder", str(node.folder), federation)

    await asyncio.gather(*(answer(node) for node in stage.nodes.values()))
    body = {"action": "federation.start", "target": federation, "digest": made["plan_hash"]}
    await people[RESEARCHER].command("POST", "/v1/approvals", body)
    await stage.approve("federation.start")

    async def ended() -> FederationView | None:
        view = await people[RESEARCHER].ask(f"/v1/federations/{federation}", FederationView)
        return view if view.state in ("completed", "failed", "cancelled") else None

    view: FederationView = await stage.until("the federation's end", ended, seconds=900)
    if view.state != "completed":
        raise Problem("demo.never", what=f"the federation ended as {view.state} ({view.failure})", seconds=0)
    return view


def union(view: FederationView) -> Mapping[str, Any]:
    """The counts of every model on the held-out samples of all hospitals together, by the model's name."""
    found: dict[str, list[Any]] = {}
    for entry in view.evaluation:
        found.setdefault(entry.name, []).append(entry.counts)
    return {name: metrics.add(counts) for name, counts in found.items()}


def scored(counts: Any) -> str:
    """Balanced accuracy with its 95 % interval, in percent; with a star where a class is missing (`medmesh.client.results.PARTIAL`)."""
    low, high = metrics.interval(counts)
    return f"{100 * metrics.balanced_accuracy(counts):5.1f} %  [{100 * low:.1f}, {100 * high:.1f}]{' *' * bool(metrics.missing(counts))}"
