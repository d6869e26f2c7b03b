"""Composition root of audit."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

from sqlalchemy.dialects.postgresql import insert

from medmesh.contracts.audit import AlertRaised, CheckpointPublished, ExportFinished, LogChanged, record_subject
from medmesh.ledger import note
from medmesh.security.keys import Identity
from medmesh.service.asgi import Observed, serve
from medmesh.service.runtime import Runtime
from medmesh.service.spec import ServiceSpec
from medmesh.store.objects.open import stores
from medmesh.telemetry import metrics
from medmesh_audit import exports, handlers, pruning, retention
from medmesh_audit.anomalies import Anomalies
from medmesh_audit.api import application
from medmesh_audit.intake import EDGE, receiver
from medmesh_audit.ports import HANDLERS, Ports
from medmesh_audit.pulse import Pulse
from medmesh_audit.sealing import Sealer, newest_sealed
from medmesh_audit.second import Second, load_keys
from medmesh_audit.sequencer import Sequencer
from medmesh_audit.settings import Settings
from medmesh_audit.tables import METADATA, state
from medmesh_audit.watch import Watch
from medmesh_audit.witnesses import Witnesses

if TYPE_CHECKING:
    from medmesh.store.objects.sealed import SealedStore

DECLARING = (exports, handlers, retention)


@asynccontextmanager
async def open_ports(runtime: Runtime) -> AsyncIterator[Ports]:
    """The sequencer, one intake an emitter, and the auditors' door."""
    settings = cast(Settings, runtime.settings)
    key = Identity.load(settings.log_key).private_key

    @asynccontextmanager
    async def intakes() -> AsyncIterator[None]:
        """Records are taken where they can be written, and nowhere else."""
        async with AsyncExitStack() as stack:
            for emitter in (*runtime.trust().services, EDGE):
                receive = receiver(runtime, sequencer, emitter, refused)
                intake = await runtime.bus.serve(record_subject(emitter), receive, queue="audit")
                stack.push_async_callback(intake.stop)
            yield

    anomalies = Anomalies(runtime)

    def refused(emitter: str, code: str) -> None:
        """A batch was not taken: a gap or a rewritten number is an anomaly."""
        metrics.AUDIT_REFUSED.labels(code).inc()
        if code in ("audit.gap", "audit.rewritten"):
            anomalies.report("emitter_gap", emitter)

    vkey = note.verifier_key(settings.origin, key.public_key())
    sealed = await _sealed(settings)

    async def promised() -> note.Checkpoint | None:
        return await newest_sealed(sealed, vkey) if sealed else None

    sequencer = Sequencer(runtime, settings.origin, key, intakes, promised)
    runtime.checks["log"] = sequencer.ready
    async with runtime.unit() as uow:
        await uow.execute(insert(state).values(one=1, size=0).on_conflict_do_nothing())
    runtime.background(sequencer.run, "sequencer")
    await sequencer.settle()
    runtime.background(sequencer.publish, "checkpoint", every=settings.checkpoint_seconds)
    runtime.background(Watch(runtime).look, "watch", every=settings.watch_seconds)
    witnesses = Witnesses(
        runtime,
        sequencer.vkey,
        settings.witness_policy,
        timeout=settings.witness_timeout_seconds,
        patience=settings.witness_patience_seconds,
        ca=settings.witness_ca,
    )
    await witnesses.start(settings.witness_seconds)
    second = Second(runtime, vkey, load_keys(settings.sm_keys, settings.origin)) if settings.sm_keys else None
    async with AsyncExitStack() as stack:
        stack.push_async_callback(witnesses.close)
        opened = await stack.enter_async_context(stores(settings.objects))
        ports = Ports(settings, sequencer, runtime, opened, anomalies, witnesses)
        pulse = Pulse(runtime, timedelta(seconds=settings.heartbeat_seconds))
        anomalies.further.append(pulse.look)
        runtime.background(anomalies.run, "anomalies", every=settings.anomaly_seconds)
        runtime.background(lambda: _leading(sequencer, pulse.beat), "heartbeat", every=settings.heartbeat_seconds)
        runtime.background(lambda: exports.work(ports), "exports")
        if second is not None:
            runtime.background(
                partial(second.run, settings.sm_seconds, lambda: sequencer.leading), "second tree", every=settings.sm_seconds
            )
        if sealed:
            stack.callback(sealed.close)
            sealer = Sealer(runtime, sealed)
            runtime.background(lambda: pruning.work(ports, sealer, lambda: sequencer.leading), "pruning")
            runtime.background(lambda: _leading(sequencer, sealer.run), "sealer", every=settings.seal_seconds)
            runtime.background(lambda: _leading(sequencer, sealer.inspect), "inspector", every=settings.inspect_seconds)
        door = serve(
            Observed(application(runtime, ports), "audit", runtime.ready),
            host=settings.host,
            port=settings.port,
            certificate=settings.tls_certificate,
            key=settings.tls_key,
            client_ca=settings.client_ca if settings.tls_certificate else None,
        )
        await stack.enter_async_context(door)
        yield ports


async def _sealed(settings: Settings) -> SealedStore | None:
    where = settings.objects
    if not where.s3_url or where.s3_credentials is None:
        return None
    from medmesh.store.objects.sealed import SealedStore

    return await SealedStore.open(where.s3_url, settings.sealed_bucket, where.s3_credentials, retain_days=settings.retain_days)


async def _leading(sequencer: Sequencer, run: Callable[[], Awaitable[None]]) -> None:
    if sequencer.leading:
        await run()


SERVICE = ServiceSpec(
    name="audit",
    purpose="The append-only log of every sensitive action, and the auditors' door to it.",
    handlers=HANDLERS,
    settings=Settings,
    metadata=METADATA,
    migrations=Path(__file__).parent / "migrations",
    open=open_ports,
    emits=(AlertRaised, CheckpointPublished, ExportFinished, LogChanged),
    extra_subscriptions=("medmesh.audit.*.record.v1",),
    http=True,
)
