"""Composition root of conversion."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

from medmesh.contracts.conversion import ConversionRefused, ModelConverted
from medmesh.contracts.registry import GetModel
from medmesh.service.runtime import Runtime
from medmesh.service.spec import ServiceSpec
from medmesh.store.objects.open import stores
from medmesh_conversion import handlers
from medmesh_conversion.ports import HANDLERS, Ports
from medmesh_conversion.settings import Settings
from medmesh_conversion.tables import METADATA

DECLARING = (handlers,)


@asynccontextmanager
async def open_ports(runtime: Runtime) -> AsyncIterator[Ports]:
    """The stores, and an empty working folder: what a crash left there is of no use."""
    settings = cast(Settings, runtime.settings)
    work = settings.state / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True, mode=0o700)
    async with stores(settings.objects) as opened:
        yield Ports(settings, opened.kept, runtime.ask, work)


SERVICE = ServiceSpec(
    name="conversion",
    purpose="Converts model weights into formats hospitals run, behind a parity gate.",
    handlers=HANDLERS,
    settings=Settings,
    metadata=METADATA,
    migrations=Path(__file__).parent / "migrations",
    open=open_ports,
    emits=(ModelConverted, ConversionRefused),
    asks=(GetModel,),
)
