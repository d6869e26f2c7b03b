"""Releases: prepared, approved by others, signed, installed by the hospitals, withdrawn."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

from sqlalchemy import Row, insert, or_, select, update
from sqlalchemy.dialects.postgresql import insert as upsert

from medmesh.contracts.governance import ApprovalExpired, ApprovalGranted, ApprovalRefused, ApprovalRevoked
from medmesh.contracts.message import Envelope, ObjectRef, new_id
from medmesh.contracts.registry import (
    Lineage,
    Manifest,
    ModelInstalled,
    ModelReleased,
    ModelWithdrawn,
    PrepareRelease,
    ReportInstall,
    WithdrawModel,
)
from medmesh.errors import Problem
from medmesh.service import labels
from medmesh.service.approved import spend
from medmesh.store.unit import AuditEntry, Entity, UnitOfWork
from medmesh.telemetry import log
from medmesh_registry import contributors
from medmesh_registry.domain import ACTION, ReleaseState, VersionState, hospitals, install_code, manifest_bytes
from medmesh_registry.handlers import change, locked, present
from medmesh_registry.ports import HANDLERS, Ports
from medmesh_registry.tables import artefacts, installs, releases


@HANDLERS.on(PrepareRelease)
async def prepare_release(command: Envelope[PrepareRelease], uow: UnitOfWork[Ports]) -> dict[str, Any]:
    """Fix the bytes that would be released; the same again answers the open release. Result: `{"release", "digest", "manifest"}`."""
    wanted = command.data
    version = await _version(uow, wanted.model, wanted.version)
    _not_withdrawn(version)
    manifest = await _manifest(uow, version, hospitals(wanted.hospitals))
    label = await labels.label_of(uow, "model", f"{wanted.model}/{wanted.version}")
    labels.cleared(label, manifest.hospitals)
    for needed in (manifest.onnx, manifest.package):
        await present(uow, needed)  # what no hospital could fetch is not worth an approval
    body = manifest_bytes(manifest)
    digest = hashlib.sha256(body).hexdigest()
    same = (releases.c.model == wanted.model) & (releases.c.version == wanted.version) & (releases.c.digest == digest)
    known = await uow.first(select(releases.c.release).where(same, releases.c.state == ReleaseState.OPEN))
    release = known.release if known is not None else new_id()
    if known is None:
        values = {
            "release": release,
            "model": wanted.model,
            "version": wanted.version,
            "hospitals": list(manifest.hospitals),
            "digest": digest,
            "manifest": body,
            "state": ReleaseState.OPEN.value,
            "created_at": uow.now,
        }
        await uow.execute(insert(releases).values(values))
        await labels.made(uow, "release", release, wanted=label.record, organisations=manifest.hospitals)
        entities = _entities(release, digest, wanted.model, wanted.version)
        uow.audit(AuditEntry("model.prepare-release", "C", entities=entities, hospitals=manifest.hospitals))
    else:
        uow.unchanged()
    return {"release": release, "digest": digest, "manifest": json.loads(body)}


async def _manifest(uow: UnitOfWork[Ports], version: Row[Any], named: tuple[str, ...]) -> Manifest:
    of_version = (artefacts.c.model == version.model) & (artefacts.c.version == version.version)
    onnx = await uow.first(select(artefacts).where(of_version, artefacts.c.format == "onnx"))
    if onnx is None:
        raise Problem("registry.not_converted", model=version.model, version=version.version)
    lineage = Lineage.model_validate(version.lineage)
    if said := onnx.preprocess.get("data", {}).get("pipeline"):  # the package's, which whoever registers a job's model does not state
        lineage = lineage.model_copy(update={"pipeline": said["hash"]})
    return Manifest(
        model=version.model,
        version=version.version,
        onnx=ObjectRef.model_validate(onnx.object),
        package=ObjectRef.model_validate(version.package),
        preprocess=onnx.preprocess,
        classes=tuple(onnx.classes),
        lineage=lineage,
        hospitals=named,
    )


@HANDLERS.on(ApprovalGranted, durable="release-approved")
async def release_approved(event: Envelope[ApprovalGranted], uow: UnitOfWork[Ports]) -> None:
    """Sign and publish what was approved. A grant that does not fit raises (a dead letter) and changes nothing."""
    if event.data.action != ACTION:
        return
    found = await _release(uow, event.data.target)
    version = await _version(uow, found.model, found.version)
    row = await _release(uow, found.release)  # again, now that nobody else can change it
    approval = await spend(uow, event.data, uow.ports.trust(), uow.ports.roster(), target=row.release, digest=row.digest)
    _not_withdrawn(version)
    if row.state != ReleaseState.OPEN:
        raise Problem("registry.release_closed", release=row.release, state=row.state)
    name = f"{row.model}/{row.version}"
    label = await labels.label_of(uow, "model", name)
    labels.cleared(label, row.hospitals)  # it may have been raised meanwhile
    await labels.share(uow, "model", name, row.hospitals)
    signature = uow.ports.release.sign(row.manifest)
    values = {
        "state": ReleaseState.RELEASED.value,
        "approval": approval.id,
        "token": event.data.token,
        "signature": signature,
        "released_at": uow.now,
    }
    await uow.execute(update(releases).where(releases.c.release == row.release).values(values))
    await change(uow, row.model, row.version, state=VersionState.RELEASED.value)
    uow.emit(
        ModelReleased(
            hospitals=tuple(row.hospitals),
            release=row.release,
            model=row.model,
            version=row.version,
            manifest=base64.b64encode(row.manifest).decode(),
            signature=base64.b64encode(signature).decode(),
            approval=event.data.token,
            label=label.record,
        )
    )
    await contributors.tell(uow, version, row.hospitals)
    entities = _entities(row.release, row.digest, row.model, row.version)
    named = tuple(row.hospitals)
    uow.audit(
        AuditEntry("model.release", "E", entities=entities, approval=approval.evidence(), hospitals=named, detail={"version": row.version})
    )


@HANDLERS.on(ApprovalRefused, ApprovalRevoked, ApprovalExpired, durable="release-refused")
async def release_refused(event: Envelope[ApprovalRefused | ApprovalRevoked | ApprovalExpired], uow: UnitOfWork[Ports]) -> None:
    """An approver refused it, it was taken back, or its time is over: the release is closed, the version stays. What is said of
    other bytes is not about this release."""
    said = event.data
    if said.action != ACTION:
        return
    row = await uow.first(select(releases).where(releases.c.release == said.target, releases.c.digest == said.digest))
    if row is None:
        log("release.refusal_ignored", approval=said.approval)
        return
    await _version(uow, row.model, row.version)
    still_open = (releases.c.release == row.release) & (releases.c.state == ReleaseState.OPEN)
    if (await uow.execute(update(releases).where(still_open).values(state=ReleaseState.REFUSED.value))).rowcount:
        refused = {"id": said.approval, "digest": said.digest}
        entities = _entities(row.release, row.digest, row.model, row.version)
        uow.audit(AuditEntry("model.release", "E", 4, "registry.release_refused", entities, approval=refused, hospitals=row.hospitals))


@HANDLERS.on(ReportInstall, concurrency=1)
async def report_install(command: Envelope[ReportInstall], uow: UnitOfWork[Ports]) -> dict[str, Any]:
    """What a hospital did with a release that was published to it; the newest report counts, the same again is harmless."""
    said, actor = command.data, uow.actor
    row = await _release(uow, said.release)
    if row.released_at is None:
        raise Problem("request.not_found", kind="release", id=said.release)
    code = install_code(said.installed, said.code)
    values = {"installed": said.installed, "code": code, "at": uow.now}
    write = upsert(installs).values(release=row.release, hospital=actor.id, **values)
    other = or_(installs.c.installed != write.excluded.installed, installs.c.code != write.excluded.code)
    write = write.on_conflict_do_update(index_elements=["release", "hospital"], set_=values, where=other)
    if (await uow.execute(write.returning(installs.c.release))).first() is not None:
        uow.emit(ModelInstalled(release=row.release, hospital=actor.id, installed=said.installed, code=code))
        entities = (*_entities(row.release, row.digest, row.model, row.version), Entity("hospital", actor.id))
        uow.audit(AuditEntry("model.install", "E", 0 if said.installed else 4, code, entities))
    else:
        uow.unchanged()
    return {"release": row.release, "installed": said.installed}


@HANDLERS.on(WithdrawModel)
async def withdraw_model(command: Envelope[WithdrawModel], uow: UnitOfWork[Ports]) -> dict[str, Any]:
    """Take a version back from every hospital it was released to, for good; again is harmless."""
    wanted = command.data
    version = await _version(uow, wanted.model, wanted.version)
    if version.state != VersionState.WITHDRAWN:
        rows = await uow.all(select(releases).where(releases.c.model == wanted.model, releases.c.version == wanted.version))
        told = {hospital for row in rows if row.state == ReleaseState.RELEASED for hospital in row.hospitals}
        key = (releases.c.model == wanted.model) & (releases.c.version == wanted.version)
        live = releases.c.state.in_([ReleaseState.OPEN.value, ReleaseState.RELEASED.value])
        await uow.execute(update(releases).where(key, live).values(state=ReleaseState.WITHDRAWN.value))
        notes = {**version.notes, "withdrawn": {"reason": wanted.reason, "at": uow.now.isoformat()}}
        await change(uow, wanted.model, wanted.version, state=VersionState.WITHDRAWN.value, notes=notes)
        uow.emit(ModelWithdrawn(hospitals=tuple(sorted(told)), model=wanted.model, version=wanted.version, reason=wanted.reason))
        entity = Entity("model", wanted.model, str(wanted.version), version.weights["sha256"])
        detail = {"hospitals": len(told)}
        uow.audit(AuditEntry("model.withdraw", "U", entities=(entity,), hospitals=sorted(told), detail=detail))
    else:
        uow.unchanged()
    return {"model": wanted.model, "version": wanted.version, "state": VersionState.WITHDRAWN.value}


async def _release(uow: UnitOfWork[Ports], release: str) -> Row[Any]:
    if (row := await uow.first(select(releases).where(releases.c.release == release))) is None:
        raise Problem("request.not_found", kind="release", id=release)
    return row


async def _version(uow: UnitOfWork[Ports], model: str, version: int) -> Row[Any]:
    if (row := await locked(uow, model, version)) is None:
        raise Problem("request.not_found", kind="model version", id=f"{model}/{version}")
    return row


def _not_withdrawn(version: Row[Any]) -> None:
    if version.state == VersionState.WITHDRAWN:
        raise Problem("registry.withdrawn", model=version.model, version=version.version)


def _entities(release: str, digest: str, model: str, version: int) -> tuple[Entity, ...]:
    return (Entity("release", release, digest=digest), Entity("model", model, str(version)))
