"""Composition root of training."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

from medmesh.contracts.data import ItemSchema
from medmesh.contracts.training import JobFailed, JobFinished, JobProgressed, JobStarted
from medmesh.security.residue import wipe
from medmesh.service.runtime import Runtime
from medmesh.service.spec import ServiceSpec
from medmesh.store.objects.open import Stores, stores
from medmesh_training import handlers, queries, rehearsals
from medmesh_training.domain import Item
from medmesh_training.ports import HANDLERS, Ports
from medmesh_training.runner import Runner
from medmesh_training.settings import Settings
from medmesh_training.tables import METADATA

DECLARING = (handlers, queries, rehearsals)
"""The modules whose handlers this service runs."""


async def write_samples(content: Sequence[Item], data: ItemSchema, stores: Stores, path: Path) -> None:
    """See `medmesh_training.adapters`, which the first job imports."""
    from medmesh_training import adapters

    await adapters.write_samples(content, data, stores, path)


@asynccontextmanager
async def open_ports(runtime: Runtime) -> AsyncIterator[Ports]:
    """The stores, and the runner in the background."""
    settings = cast(Settings, runtime.settings)
    async with stores(settings.objects) as opened:
        ports = Ports(settings, opened, write_samples)
        wipe(settings.state / "rehearsals")
        runtime.checks["objects"] = opened.kept.ready
        runtime.background(Runner(runtime, ports).serve, "runner")
        yield ports


SERVICE = ServiceSpec(
    name="training",
    purpose="Trains packages on data that was taken in centrally, in a sandbox, from checkpoint to checkpoint.",
    handlers=HANDLERS,
    settings=Settings,
    metadata=METADATA,
    migrations=Path(__file__).parent / "migrations",
    open=open_ports,
    emits=(JobStarted, JobProgressed, JobFinished, JobFailed),
)
