"""Composition root of audit."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import cast

from sqlalchemy.dialects.postgresql import insert

from medmesh.contracts.audit import CheckpointPublished, record_subject
from medmesh.security.keys import Identity
from medmesh.service.http import Observed, serve
from medmesh.service.runtime import Runtime
from medmesh.service.spec import ServiceSpec
from medmesh_audit import handlers
from medmesh_audit.api import application
from medmesh_audit.intake import EDGE, receiver
from medmesh_audit.ports import HANDLERS, Ports
from medmesh_audit.sequencer import Sequencer
from medmesh_audit.settings import Settings
from medmesh_audit.tables import METADATA, state

DECLARING = (handlers,)


@asynccontextmanager
async def open_ports(runtime: Runtime) -> AsyncIterator[Ports]:
    """The sequencer, one intake an emitter, and the auditors' door."""
    settings = cast(Settings, runtime.settings)
    key = Identity.load(settings.log_key).private_key
    sequencer = Sequencer(runtime, settings.origin, key, settings.group_milliseconds / 1000)
    async with runtime.unit() as uow:
        await uow.execute(insert(state).values(one=1, size=0).on_conflict_do_nothing())
    runtime.background(sequencer.run, "sequencer")
    runtime.background(sequencer.publish, "checkpoint", every=settings.checkpoint_seconds)
    async with AsyncExitStack() as stack:
        for emitter in (*runtime.trust().services, EDGE):
            intake = await runtime.bus.serve(record_subject(emitter), receiver(runtime, sequencer, emitter), queue="audit")
            stack.push_async_callback(intake.stop)
        door = serve(
            Observed(application(runtime), "audit", runtime.ready),
            host=settings.host,
            port=settings.port,
            certificate=settings.tls_certificate,
            key=settings.tls_key,
        )
        await stack.enter_async_context(door)
        yield Ports(settings, sequencer)


SERVICE = ServiceSpec(
    name="audit",
    purpose="The append-only log of every sensitive action, and the auditors' door to it.",
    handlers=HANDLERS,
    settings=Settings,
    metadata=METADATA,
    migrations=Path(__file__).parent / "migrations",
    open=open_ports,
    emits=(CheckpointPublished,),
    extra_subscriptions=("medmesh.audit.*.record.v1",),
    http=True,
)
