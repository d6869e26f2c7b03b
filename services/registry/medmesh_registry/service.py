"""Composition root of the registry."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

from medmesh.contracts.registry import ContributorsWithdrew, ModelInstalled, ModelRegistered, ModelReleased, ModelWithdrawn
from medmesh.errors import Problem
from medmesh.security.keys import Identity
from medmesh.service.runtime import Runtime
from medmesh.service.spec import ServiceSpec
from medmesh.store.objects.open import stores
from medmesh_registry import contributors, handlers, queries, releases
from medmesh_registry.ports import HANDLERS, Ports
from medmesh_registry.settings import Settings
from medmesh_registry.tables import METADATA

DECLARING = (handlers, contributors, releases, queries)
"""The modules whose handlers this service runs."""


@asynccontextmanager
async def open_ports(runtime: Runtime) -> AsyncIterator[Ports]:
    """The release key is read here and nowhere else. Raises `Problem` (`registry.release_key`) when it is not the one believed."""
    settings = cast(Settings, runtime.settings)
    release = Identity.load(settings.release_key)
    if release.public != runtime.trust().release_key:
        raise Problem("registry.release_key")
    async with stores(settings.objects) as opened:
        runtime.checks["objects"] = opened.kept.ready
        yield Ports(settings=settings, release=release, stores=opened, trust=runtime.trust, roster=runtime.roster)


SERVICE = ServiceSpec(
    name="registry",
    purpose="Model versions with their lineage, artefacts and signed releases.",
    handlers=HANDLERS,
    settings=Settings,
    metadata=METADATA,
    migrations=Path(__file__).parent / "migrations",
    open=open_ports,
    emits=(ModelRegistered, ModelReleased, ModelWithdrawn, ContributorsWithdrew, ModelInstalled),
)
