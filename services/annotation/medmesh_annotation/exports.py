"""Labels leave as frozen versions: asked for, approved by a second person for their exact bytes, then told to who asked."""

from __future__ import annotations

import asyncio
from typing import Any

from sqlalchemy import Row, and_, insert, select, update

from medmesh.contracts.annotation import ExportLabels, GetLabelExport, LabelExport, LabelsExported
from medmesh.contracts.governance import ApprovalExpired, ApprovalGranted, ApprovalRefused, ApprovalRevoked
from medmesh.contracts.message import Envelope, ObjectRef
from medmesh.errors import Problem
from medmesh.labelling.items import ItemState
from medmesh.service import files
from medmesh.service.approved import read_target, spend, target_of
from medmesh.service.dispatch import Work
from medmesh.store.unit import AuditEntry, Entity, UnitOfWork
from medmesh_annotation.domain import export_digest, labels_document
from medmesh_annotation.ports import HANDLERS, Ports
from medmesh_annotation.rows import find_project
from medmesh_annotation.tables import exports, items, readings

ACTION = "annotation.export"
KIND = "label export"
WAITING, EXPORTED, CLOSED = "waiting", "exported", "closed"


@HANDLERS.slow(ExportLabels, concurrency=2)
async def export_labels(command: Envelope[ExportLabels], work: Work[Ports]) -> None:
    """The accepted labels as the next version; when nothing was accepted since one's last one, that one is the answer."""
    async with work.finish() as uow:
        # The project's lock is held while the object is written: two exports take turns and get two numbers.
        project = await find_project(uow, command.data.project, lock=True)
        accepted = await _accepted(uow, project.project)
        if not accepted:
            raise Problem("annotation.nothing_accepted", project=project.project)
        document = await asyncio.to_thread(
            labels_document,
            project=project.project,
            dataset=project.dataset,
            version=project.version,
            content=project.content,
            classes=project.classes,
            accepted=accepted,
        )
        # Written now, so that what is approved cannot change; nobody is told its name, which would be the leave to read it.
        labels = await work.ports.stores.kept.put(document, "application/json")
        rows = await uow.all(select(exports).where(exports.c.project == project.project).order_by(exports.c.version.desc()))
        mine = next((row for row in rows if row.requester == uow.actor.text and row.state != CLOSED), None)
        if mine is not None and mine.labels["sha256"] == labels.sha256:
            work.result = _answer(mine)
            uow.unchanged()
            return
        version = rows[0].version + 1 if rows else 1
        values = {
            "project": project.project,
            "version": version,
            "labels": labels.model_dump(),
            "accepted": len(accepted),
            "created_at": uow.now,
            "requester": uow.actor.text,
            "digest": export_digest(project.project, version, labels.sha256),
            "state": WAITING,
        }
        row = (await uow.execute(insert(exports).values(values).returning(exports))).one()
        await files.keep(uow, "project", project.project, [labels.sha256])
        work.result = _answer(row)
        detail: dict[str, str | int | bool] = {"accepted": row.accepted, "state": row.state}
        uow.audit(AuditEntry(ACTION, "C", entities=_entities(row), detail=detail))


@HANDLERS.on(ApprovalGranted, durable="export-approved")
async def export_approved(event: Envelope[ApprovalGranted], uow: UnitOfWork[Ports]) -> None:
    """A second person approved exactly these labels. A grant that does not fit raises (a dead letter) and changes nothing."""
    grant = event.data
    if grant.action != ACTION:
        return
    row = await _export(uow, *read_target(grant.target, KIND), lock=True)
    target = target_of(row.project, row.version)
    found = await spend(uow, grant, uow.ports.trust(), uow.ports.roster(), target=target, digest=row.digest, asked_by=row.requester)
    if row.state != WAITING:
        raise Problem("annotation.export_closed", project=row.project, version=row.version, state=row.state)
    await uow.execute(update(exports).where(_this(row)).values(state=EXPORTED, approval=found.id, finished_at=uow.now))
    labels = ObjectRef.model_validate(row.labels)
    uow.emit(LabelsExported(project=row.project, version=row.version, labels=labels, accepted=row.accepted))
    detail: dict[str, str | int | bool] = {"accepted": row.accepted, "state": EXPORTED}
    uow.audit(AuditEntry(ACTION, "E", entities=_entities(row), approval=found.evidence(), detail=detail))


@HANDLERS.on(ApprovalRefused, ApprovalRevoked, ApprovalExpired, durable="export-refused")
async def export_refused(event: Envelope[ApprovalRefused | ApprovalRevoked | ApprovalExpired], uow: UnitOfWork[Ports]) -> None:
    """Refused, taken back or too late: this version never leaves. What is said of other bytes is not about it."""
    said = event.data
    if said.action != ACTION:
        return
    await uow.withhold_approval(said.approval)
    row = await _export(uow, *read_target(said.target, KIND), lock=True)
    if row.digest == said.digest and row.state == WAITING:
        await uow.execute(update(exports).where(_this(row)).values(state=CLOSED, finished_at=uow.now))
        refused = {"id": said.approval, "digest": said.digest}
        uow.audit(AuditEntry(ACTION, "U", 4, "annotation.export_closed", _entities(row), approval=refused))


@HANDLERS.answers(GetLabelExport)
async def get_label_export(query: Envelope[GetLabelExport], uow: UnitOfWork[Ports]) -> LabelExport:
    """One's own; somebody else's is not there."""
    wanted = query.data
    row = await _export(uow, wanted.project, max(-1, min(wanted.version, 2**31 - 1)))
    if row.requester != uow.actor.text:
        raise _unknown(wanted.project, wanted.version)
    labels = ObjectRef.model_validate(row.labels) if row.state == EXPORTED else None
    return LabelExport(project=row.project, version=row.version, accepted=row.accepted, digest=row.digest, state=row.state, labels=labels)


async def _accepted(uow: UnitOfWork[Ports], project: str) -> list[tuple[str, dict[str, Any], str]]:
    """(item, object reference, label) of every accepted item."""
    last = and_(readings.c.project == items.c.project, readings.c.item == items.c.item, readings.c.number == items.c.readings)
    found = select(items.c.item, items.c.object, readings.c.label).join(readings, last)
    wanted = found.where(items.c.project == project, items.c.state == ItemState.ACCEPTED)
    return [(row.item, row.object, row.label) for row in await uow.all(wanted)]


async def _export(uow: UnitOfWork[Ports], project: str, version: int, *, lock: bool = False) -> Row[Any]:
    wanted = select(exports).where(exports.c.project == project, exports.c.version == version)
    if (row := await uow.first(wanted.with_for_update() if lock else wanted)) is None:
        raise _unknown(project, version)
    return row


def _unknown(project: str, version: int) -> Problem:
    return Problem("request.not_found", kind=KIND, id=target_of(project, version)[:128])


def _this(row: Any) -> Any:
    return (exports.c.project == row.project) & (exports.c.version == row.version)


def _answer(row: Any) -> dict[str, Any]:
    target = target_of(row.project, row.version)
    return {"target": target, "digest": row.digest, "version": row.version, "accepted": row.accepted, "state": row.state}


def _entities(row: Any) -> tuple[Entity, ...]:
    labels = Entity("labels", row.project, version=str(row.version), digest=row.labels["sha256"])
    return (Entity("project", row.project), labels)
