"""Composition root of annotation."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

from medmesh.contracts.annotation import LabelsExported, ProjectCreated
from medmesh.service.runtime import Runtime
from medmesh.service.spec import ServiceSpec
from medmesh.store.objects.open import stores
from medmesh_annotation import exports, handlers, queries
from medmesh_annotation.ports import HANDLERS, Ports
from medmesh_annotation.settings import Settings
from medmesh_annotation.tables import METADATA

DECLARING = (handlers, exports, queries)
"""The modules whose handlers this service runs."""


@asynccontextmanager
async def open_ports(runtime: Runtime) -> AsyncIterator[Ports]:
    """The stores: contents are read from the kept one, exports written to it."""
    settings = cast(Settings, runtime.settings)
    async with stores(settings.objects) as opened:
        yield Ports(settings, opened, runtime.trust, runtime.roster)


SERVICE = ServiceSpec(
    name="annotation",
    purpose="Labels by people: claimed, read, reviewed by another person, exported as frozen versions.",
    handlers=HANDLERS,
    settings=Settings,
    metadata=METADATA,
    migrations=Path(__file__).parent / "migrations",
    open=open_ports,
    emits=(ProjectCreated, LabelsExported),
)
