"""Composition root of the gateway."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import cast

from medmesh.contracts import governance
from medmesh.contracts.federation import HospitalAlive, RoundProgressed
from medmesh.contracts.message import Command, Query
from medmesh.embedded.memory import frugal
from medmesh.service.asgi import Observed, serve
from medmesh.service.runtime import Runtime
from medmesh.service.spec import ServiceSpec
from medmesh.store.objects.compare import Comparing
from medmesh.store.objects.open import stores
from medmesh.store.objects.upload import Uploads
from medmesh_gateway import handlers
from medmesh_gateway.api import application
from medmesh_gateway.auth import Barred, Door
from medmesh_gateway.ports import HANDLERS, Ports
from medmesh_gateway.routes import ROUTES
from medmesh_gateway.settings import Settings
from medmesh_gateway.tables import METADATA

DECLARING = (handlers,)
KEEP_UPLOADS = 7 * 86_400.0


@asynccontextmanager
async def open_ports(runtime: Runtime) -> AsyncIterator[Ports]:
    """Stores, the door, and the HTTPS server."""
    frugal()  # models go through here in small pieces
    settings = cast(Settings, runtime.settings)
    async with AsyncExitStack() as stack:
        opened = await stack.enter_async_context(stores(settings.objects))
        uploads = Uploads(settings.state / "uploads", limit=settings.max_object_bytes)
        ports = Ports(settings, opened, uploads, Door(runtime, settings), Comparing(opened.scratch))
        runtime.background(ports.door.prune, "nonces", every=60)

        async def forget() -> None:
            await uploads.prune(time.time() - KEEP_UPLOADS)

        runtime.background(forget, "uploads", every=3600)
        runtime.ports = ports
        runtime.trust.changed.append(ports.doorbells.ring_all)
        door = serve(
            Observed(Barred(application(runtime, ports), runtime), "gateway", runtime.ready),
            host=settings.host,
            port=settings.port,
            certificate=settings.tls_certificate,
            key=settings.tls_key,
            client_ca=settings.client_ca if settings.tls_certificate else None,
            most=settings.most_connections,
        )
        await stack.enter_async_context(door)
        stack.callback(ports.stopping.set)
        yield ports


SERVICE = ServiceSpec(
    name="gateway",
    purpose="The door for hospitals, people and auditors.",
    handlers=HANDLERS,
    settings=Settings,
    metadata=METADATA,
    migrations=Path(__file__).parent / "migrations",
    open=open_ports,
    sends=tuple(route.message for route in ROUTES if issubclass(route.message, Command)),
    asks=(*(route.message for route in ROUTES if issubclass(route.message, Query)), governance.ResolveSession, governance.CloseSession),
    signals=(HospitalAlive, RoundProgressed),
    audits_as=("edge",),
    http=True,
)
