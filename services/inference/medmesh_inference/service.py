"""Composition root of inference."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import cast

from medmesh.contracts.inference import ModelRejected, ModelServing
from medmesh.service.asgi import Observed, serve
from medmesh.service.runtime import Runtime
from medmesh.service.spec import ServiceSpec
from medmesh.serving.repository import Repository
from medmesh.store.objects.open import stores
from medmesh_inference import handlers, queries
from medmesh_inference.adapters import prune, reconcile
from medmesh_inference.api import application
from medmesh_inference.ports import HANDLERS, Ports
from medmesh_inference.settings import Settings
from medmesh_inference.tables import METADATA

DECLARING = (handlers, queries)
"""The modules whose handlers this service runs."""


@asynccontextmanager
async def open_ports(runtime: Runtime) -> AsyncIterator[Ports]:
    """The models on disk, brought in step with the tables before anybody can ask them, and the door."""
    settings = cast(Settings, runtime.settings)
    incoming = settings.state / "incoming"
    shutil.rmtree(incoming, ignore_errors=True)  # what an earlier run was fetching when it ended
    incoming.mkdir(parents=True, mode=0o700)
    repository = await asyncio.to_thread(Repository, settings.state / "models", settings.threads)
    async with stores(settings.objects) as opened:
        ports = Ports(repository, opened.kept, runtime.trust, runtime.roster, incoming)
        await prune(runtime, ports)
        runtime.background(partial(reconcile, runtime, ports), "reconcile", every=settings.reconcile_seconds)
        door = serve(
            Observed(application(runtime, repository), "inference", runtime.ready),
            host=settings.host,
            port=settings.port,
            certificate=settings.tls_certificate,
            key=settings.tls_key,
            client_ca=settings.client_ca if settings.tls_certificate else None,
        )
        async with door:
            yield ports


SERVICE = ServiceSpec(
    name="inference",
    purpose="Released models, verified, and answers from them over the Open Inference Protocol.",
    handlers=HANDLERS,
    settings=Settings,
    metadata=METADATA,
    migrations=Path(__file__).parent / "migrations",
    open=open_ports,
    emits=(ModelServing, ModelRejected),
    http=True,
)
