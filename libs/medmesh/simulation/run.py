"""`simulate`: a federation from a training package and samples, to its end, on one machine."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.x509 import Certificate
from pydantic import ValidationError

from medmesh.client.federation import initial_weights, whole
from medmesh.contracts.federation import (
    CreateFederation,
    FederationCompleted,
    FederationFailed,
    FederationPage,
    FederationView,
    GetFederation,
    GetFederationPage,
    HospitalAlive,
)
from medmesh.contracts.ingestion import SMALL_CELL
from medmesh.contracts.plan import Plan
from medmesh.contracts.refusals import contradiction
from medmesh.errors import Problem
from medmesh.learning.package import Package, pack
from medmesh.security.authority import new_key, node_request
from medmesh.security.signing import Signer
from medmesh.simulation.data import Shares
from medmesh.simulation.field import Field, fields, gone, here, settled
from medmesh.simulation.hospital import hospitals, policy
from medmesh.simulation.hub import RESEARCHER, Hub, hub
from medmesh.simulation.link import Link
from medmesh.store.objects.port import fetch, file_digest
from medmesh.tasks import end

LEASE_SECONDS = 3600
ALIVE_SECONDS = 60.0
STUCK_SECONDS = 20
"""When for so long nobody has anything to do, nobody ever will: no one here is merely slow."""
News = Callable[[str, dict[str, Any]], None]


@dataclass(frozen=True)
class Simulated:
    """How it ended: what people would see, and the final model's file, which lies where it was asked for."""

    view: FederationView
    model: Path
    records: int
    """Audit records that a real one would have left."""


def _silent(kind: str, fact: dict[str, Any]) -> None:
    return None


async def simulate(
    source: Path, shares: Shares, model: Path, *, news: News = _silent, workers: int = 0, ranks: int = 1, **plan: Any
) -> Simulated:
    """Train the package in the folder `source` at the hospitals of `shares`; the final model goes to the file `model`.

    `plan` are the fields of `medmesh.contracts.plan.Plan` that say how; `news(type, fact)` hears every fact as it happens. `workers`
    processes train, as many as there are processors by default, each by `ranks` of its own. Raises `Problem`; a federation that failed
    is no problem: its view says so.
    """
    if workers < 0:
        raise Problem("simulation.workers", workers=workers)
    package = pack(source)
    with here(), tempfile.TemporaryDirectory(prefix="medmesh-simulation-") as name:
        folder = Path(name)
        folder.chmod(0o711)  # a worker's account finds its folder, and reads nothing else
        keys = [Signer.create(f"hospital:{one}") for one in sorted(shares)]
        ended = asyncio.Event()

        def hear(kind: str, fact: dict[str, Any]) -> None:
            if kind in (FederationCompleted.subject(), FederationFailed.subject()):
                ended.set()
            news(kind, fact)

        policy(folder, package)
        async with (
            hub(folder, keys, hear) as platform,
            _field(platform, package, keys, shares, workers or os.cpu_count() or 1, ranks) as (alive, grounds),
        ):
            with settled():
                federation = await _create(platform, package, tuple(sorted(shares)), plan)
                await _until(ended, alive, grounds, platform)
                await _handed_in(grounds)
            view = await _view(platform, federation)
            if view.model is not None:
                store = await platform.stores.holding(view.model.sha256)
                await fetch(store, view.model, model)
            return Simulated(view, model, platform.log.records)


async def _view(platform: Hub, federation: str) -> FederationView:
    token = platform.person(RESEARCHER, "researcher")

    async def further(after: str) -> FederationPage:
        return await platform.ask(GetFederationPage(federation=federation, after=after), FederationPage, token)

    return await whole(await platform.ask(GetFederation(federation=federation), FederationView, token), further)


async def _create(platform: Hub, package: Package, hospitals: tuple[str, ...], plan: dict[str, Any]) -> str:
    """Create the federation, and have its start approved when everybody has answered."""
    archive, weights = platform.folder / "package.zip", platform.folder / "initial.safetensors"
    archive.write_bytes(package.archive)
    least = plan["pace"]["quorum"] if plan.get("pace") else len(hospitals)
    values = {"min_participants": least, "round_deadline_seconds": 86_400, "lease_seconds": LEASE_SECONDS}
    values |= {"seed": 1, "small_cell": SMALL_CELL, **plan}
    await initial_weights(package, values["seed"], weights)
    first = await platform.stores.kept.put_file(weights, file_digest(weights)[0])
    packed = await platform.stores.kept.put_file(archive, package.digest)
    now = datetime.now(UTC).replace(microsecond=0)
    about = {"initiator": f"person:{RESEARCHER}@platform", "purpose": "a simulation", "name": "simulation"}
    shown = {"framework": package.manifest.package.framework, "data": package.manifest.data, "signature": package.manifest.tensors}
    try:
        made = Plan.model_validate(
            {
                **about,
                **shown,
                "package": package.digest,
                "initial": first.sha256,
                "participants": hospitals,
                "accept_by": now + timedelta(hours=1),
                "start_at": now,
                **values,
            }
        )
    except ValidationError as error:
        raise contradiction(error) from None
    asked = CreateFederation(plan=made, package=packed, initial=first)
    done = await platform.command(asked, platform.person(RESEARCHER, "researcher"))
    await platform.approve(done["federation"], done["plan_hash"])
    return str(done["federation"])


@asynccontextmanager
async def _field(
    platform: Hub, package: Package, keys: Sequence[Signer], shares: Shares, workers: int, ranks: int
) -> AsyncIterator[tuple[asyncio.Task[None], list[Field]]]:
    """Every hospital at work, until the block ends, in as many processes as there are workers; the task ends only when it fails."""
    names, clock = sorted(shares), asyncio.get_running_loop().time
    links = [{name: Link(platform, name, *_certified(platform, name), clock) for name in names[n::workers]} for n in range(workers)]
    signers = {key.name.removeprefix("hospital:"): key for key in keys}
    async with fields([one for one in links if one], partial(hospitals, platform.folder, package, signers, shares, ranks)) as grounds:
        platform.tells.extend(field.tell for field in grounds)
        alive = asyncio.create_task(_alive(platform, names))
        try:
            yield alive, grounds
        finally:
            await end(alive)


def _certified(platform: Hub, name: str) -> tuple[EllipticCurvePrivateKey, Certificate]:
    """The key of a hospital's node, and its certificate."""
    key = new_key()
    return key, platform.authority.sign_node(node_request(key, name, "simulated"), name, "simulated")


async def _alive(platform: Hub, hospitals: Sequence[str]) -> None:
    """As the gateway tells of those that hold their connection."""
    while True:
        for name in hospitals:
            await platform.signal(HospitalAlive(hospital=name))
        await asyncio.sleep(ALIVE_SECONDS)


async def _handed_in(grounds: Sequence[Field]) -> None:
    """Wait until hospitals, who are told of the end, have handed in what they have to. Raises as `_until`."""
    while not all([await field.idle() for field in grounds]):
        for field in grounds:
            if field.wire.over.done():
                raise gone(field)
        await asyncio.sleep(0.02)


async def _until(ended: asyncio.Event, alive: asyncio.Task[None], grounds: Sequence[Field], platform: Hub) -> None:
    """The end of the federation. Raises what a hospital raised, and `Problem` (`simulation.stuck`) when nobody has anything left to do."""
    waiting, quiet = asyncio.create_task(ended.wait()), 0.0
    over: list[asyncio.Future[Any]] = [waiting, alive, *(field.wire.over for field in grounds)]
    try:
        while not (await asyncio.wait(over, timeout=1, return_when=asyncio.FIRST_COMPLETED))[0]:
            quiet = quiet + 1 if all([await field.idle() for field in grounds]) else 0
            if quiet >= STUCK_SECONDS:
                if not platform.failures:
                    raise Problem("simulation.silent", seconds=STUCK_SECONDS)
                why = ", ".join(f"{name}: {code}" for name, code in sorted(platform.failures.items()))
                raise Problem("simulation.stuck", reason=why)
    finally:
        await end(waiting)
    for field in grounds:
        if field.wire.over.done():
            raise gone(field)
    if alive.done():
        alive.result()
