"""Composition root of ingestion."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

from medmesh.contracts.ingestion import DatasetReleased, DatasetVersionCreated, DescriptorPublished
from medmesh.errors import Problem
from medmesh.security.keys import read_secret, write_secret
from medmesh.security.residue import wipe
from medmesh.service.runtime import Runtime
from medmesh.service.spec import ServiceSpec
from medmesh.store.objects.open import stores
from medmesh_ingestion import handlers, queries, releases, timelines
from medmesh_ingestion.ports import HANDLERS, Ports
from medmesh_ingestion.settings import Settings
from medmesh_ingestion.tables import METADATA

DECLARING = (handlers, queries, releases, timelines)
"""The modules whose handlers this service runs."""

_KEY_BYTES = 32


def project_key(path: Path) -> bytes:
    """The key in a file, made when there is none. Raises `Problem` for a file that others may read or that is cut short."""
    try:
        write_secret(path, os.urandom(_KEY_BYTES))
    except FileExistsError:
        pass
    key = read_secret(path)
    if len(key) != _KEY_BYTES:
        raise Problem("security.key_unreadable", file=path.name, reason=f"it has not {_KEY_BYTES} bytes")
    return key


@asynccontextmanager
async def open_ports(runtime: Runtime) -> AsyncIterator[Ports]:
    """The stores, the key, and an empty folder for originals: what a killed run left there names patients."""
    settings = cast(Settings, runtime.settings)
    folder = settings.state / "originals"
    await asyncio.to_thread(wipe, folder)
    folder.mkdir(mode=0o700, parents=True)
    async with stores(settings.objects) as opened:
        yield Ports(
            settings=settings, stores=opened, key=project_key(settings.key), folder=folder, trust=runtime.trust, roster=runtime.roster
        )


SERVICE = ServiceSpec(
    name="ingestion",
    purpose="Archives become de-identified, checked versions of data sets; hospitals publish descriptors of theirs.",
    handlers=HANDLERS,
    settings=Settings,
    metadata=METADATA,
    migrations=Path(__file__).parent / "migrations",
    open=open_ports,
    emits=(DatasetVersionCreated, DatasetReleased, DescriptorPublished),
)
