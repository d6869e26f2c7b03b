"""Releases and withdrawals of the registry."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from sqlalchemy import update
from sqlalchemy.dialects.postgresql import insert

from medmesh.contracts.inference import ModelRejected, ModelServing
from medmesh.contracts.message import Envelope
from medmesh.contracts.registry import Manifest, ModelReleased, ModelWithdrawn
from medmesh.errors import Problem
from medmesh.security.labels import PLATFORM, read
from medmesh.service import labels
from medmesh.service.dispatch import Work
from medmesh.serving.release import verify_release
from medmesh.store.unit import AuditEntry, Entity, UnitOfWork
from medmesh_inference import queries
from medmesh_inference.adapters import obtain
from medmesh_inference.domain import ReleaseState, admit
from medmesh_inference.ports import HANDLERS, Ports
from medmesh_inference.tables import releases, withdrawals


@HANDLERS.slow(ModelReleased)
async def released(event: Envelope[ModelReleased], work: Work[Ports]) -> None:
    """Verify a release, install it and serve it; or say why not, and go on with what was served."""
    wanted, ports = event.data, work.ports
    try:
        manifest = await asyncio.to_thread(verify_release, wanted, ports.trust(), ports.roster(), hospital=None)
        with tempfile.TemporaryDirectory(dir=ports.incoming) as folder:
            path = await obtain(ports.kept, manifest, Path(folder))
            async with ports.changing, work.finish() as uow:
                await queries.hold(uow, wanted.model)
                withdrawn, served = await queries.standing(uow, wanted.model, wanted.version)
                admit(wanted.model, wanted.version, withdrawn=withdrawn, serving=served)
                # Seconds inside a transaction, on purpose: what this model's state is cannot change under it.
                await asyncio.to_thread(ports.repository.install, manifest, path, wanted.release)
                await _serve(uow, wanted, manifest)
    except Problem as problem:
        async with work.finish() as uow:
            await _reject(uow, wanted, problem.code)


async def _serve(uow: UnitOfWork[Ports], wanted: ModelReleased, manifest: Manifest) -> None:
    others = (releases.c.model == wanted.model) & (releases.c.state == ReleaseState.SERVING) & (releases.c.release != wanted.release)
    await uow.execute(update(releases).where(others).values(state=ReleaseState.SUPERSEDED.value, changed_at=uow.now))
    await _write(uow, wanted, ReleaseState.SERVING)
    label = labels.DEFAULT if wanted.label is None else read(wanted.label)
    name = f"{wanted.model}/{wanted.version}"
    await labels.give(uow, "model", name, label, owner=PLATFORM, organisations=manifest.hospitals, sources=[("model", name)])
    uow.emit(ModelServing(model=wanted.model, version=wanted.version, release=wanted.release))
    model = Entity("model", wanted.model, version=str(wanted.version), digest=manifest.onnx.sha256)
    uow.audit(AuditEntry("model.serve", "E", entities=(model, Entity("release", wanted.release))))


async def _reject(uow: UnitOfWork[Ports], wanted: ModelReleased, code: str) -> None:
    await _write(uow, wanted, ReleaseState.REJECTED, code)
    uow.emit(ModelRejected(model=wanted.model, version=wanted.version, release=wanted.release, code=code))
    entities = (Entity("model", wanted.model, version=str(wanted.version)), Entity("release", wanted.release))
    uow.audit(AuditEntry("model.reject", "E", outcome=8, why=code, entities=entities))


async def _write(uow: UnitOfWork[Ports], wanted: ModelReleased, state: ReleaseState, code: str = "") -> None:
    """A refusal never changes a release that was fine before: what is served does not fall with a bad copy of its event."""
    values = {"state": state.value, "code": code, "event": wanted.model_dump(mode="json"), "changed_at": uow.now}
    row = insert(releases).values(release=wanted.release, model=wanted.model, version=wanted.version, **values)
    replaceable = None if state is ReleaseState.SERVING else releases.c.state == ReleaseState.REJECTED
    await uow.execute(row.on_conflict_do_update(index_elements=[releases.c.release], set_=values, where=replaceable))


@HANDLERS.on(ModelWithdrawn, concurrency=1)
async def withdrawn(event: Envelope[ModelWithdrawn], uow: UnitOfWork[Ports]) -> None:
    """Stop serving a version at once. Nothing takes its place by itself: which model answers is a person's decision."""
    gone = event.data
    async with uow.ports.changing:
        await queries.hold(uow, gone.model)
        values = {"model": gone.model, "version": gone.version, "at": uow.now}
        await uow.execute(insert(withdrawals).values(values).on_conflict_do_nothing())
        same = (releases.c.model == gone.model) & (releases.c.version == gone.version) & (releases.c.state != ReleaseState.REJECTED)
        await uow.execute(update(releases).where(same).values(state=ReleaseState.WITHDRAWN.value, changed_at=uow.now))
        # Before the commit: if that fails, a model too few is served for a moment, and never one too many.
        await asyncio.to_thread(uow.ports.repository.remove, gone.model, gone.version)
    uow.audit(AuditEntry("model.withdraw", "E", entities=(Entity("model", gone.model, version=str(gone.version)),)))
