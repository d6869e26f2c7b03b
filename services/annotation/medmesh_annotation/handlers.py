"""Projects are made from a data set version; items are labelled, reviewed by another person, and exported."""

from __future__ import annotations

import asyncio
from typing import Any

from sqlalchemy import and_, insert, select, update
from sqlalchemy.dialects.postgresql import insert as upsert

from medmesh.contracts.annotation import CreateProject, ExportLabels, LabelsExported, ProjectCreated, ReviewLabel, SubmitLabel
from medmesh.contracts.message import Envelope
from medmesh.errors import Problem
from medmesh.labelling.items import ItemState, review, submit
from medmesh.labelling.schema import LabelSchema
from medmesh.service import labels
from medmesh.service.dispatch import Work
from medmesh.store.objects.port import load
from medmesh.store.unit import AuditEntry, Entity, UnitOfWork
from medmesh_annotation.domain import check_project, labels_document, read_content
from medmesh_annotation.ports import HANDLERS, Ports
from medmesh_annotation.rows import find_item, find_project, reading, store_status
from medmesh_annotation.tables import exports, items, projects, readings

ROWS = 5000
"""How many items one statement inserts."""

AT_ONCE = 2
"""Slow commands that run side by side: a large project does not hold up a small one."""


@HANDLERS.slow(CreateProject, concurrency=AT_ONCE)
async def create_project(command: Envelope[CreateProject], work: Work[Ports]) -> None:
    """A project with one unlabelled item for each of the version; the same project again answers the one there is."""
    wanted = command.data
    schema = LabelSchema.of(wanted.classes)
    check_project(wanted.version, wanted.purpose)
    data = await load(work.ports.stores.kept, wanted.content)
    found = await asyncio.to_thread(read_content, data)
    fixed = {
        "project": wanted.project,
        "dataset": wanted.dataset,
        "version": wanted.version,
        "content": wanted.content.sha256,
        "purpose": wanted.purpose,
        "classes": list(schema.classes),
    }
    async with work.finish() as uow:
        work.result = {"project": wanted.project, "items": len(found)}
        made = await uow.execute(upsert(projects).values(**fixed, created_at=uow.now).on_conflict_do_nothing())
        if made.rowcount == 0:
            before = await find_project(uow, wanted.project)
            if any(getattr(before, name) != value for name, value in fixed.items()):
                raise Problem("annotation.taken", project=wanted.project)
            uow.unchanged()
            return
        await labels.made(uow, "project", wanted.project)
        for start in range(0, len(found), ROWS):
            rows = [
                {"project": wanted.project, "item": i.item, "place": place, "object": i.object.model_dump(), "state": ItemState.UNLABELLED}
                for place, i in enumerate(found[start : start + ROWS], start)
            ]
            await uow.execute(insert(items), rows)
        uow.emit(ProjectCreated(project=wanted.project, dataset=wanted.dataset, version=wanted.version, items=len(found)))
        entities = (
            Entity("project", wanted.project),
            Entity("dataset", wanted.dataset, version=str(wanted.version), digest=wanted.content.sha256),
        )
        uow.audit(AuditEntry("annotation.create", "C", entities=entities, detail={"items": len(found)}))


@HANDLERS.on(SubmitLabel)
async def submit_label(command: Envelope[SubmitLabel], uow: UnitOfWork[Ports]) -> dict[str, Any]:
    """The label of the person who claimed the item."""
    wanted = command.data
    project = await find_project(uow, wanted.project)
    before = await find_item(uow, wanted.project, wanted.item)
    after = submit(before, uow.actor.text, wanted.label, LabelSchema(tuple(project.classes)), uow.now)
    if after != before:
        await store_status(uow, wanted.project, wanted.item, after)
        values = {
            "project": wanted.project,
            "item": wanted.item,
            "number": after.readings,
            "reader": after.reader,
            "label": after.label,
            "labelled_at": uow.now,
        }
        await uow.execute(insert(readings).values(values))
        uow.audit(AuditEntry("annotation.label", "U", entities=_touched(wanted.project, wanted.item, after.readings)))
    else:
        uow.unchanged()
    return {"project": wanted.project, "item": wanted.item, "state": after.state.value}


@HANDLERS.on(ReviewLabel)
async def review_label(command: Envelope[ReviewLabel], uow: UnitOfWork[Ports]) -> dict[str, Any]:
    """Another person's decision: accepted, or back to the reader with the comment."""
    wanted = command.data
    await find_project(uow, wanted.project)
    before = await find_item(uow, wanted.project, wanted.item)
    after = review(before, uow.actor.text, wanted.accept, wanted.comment)
    if after != before:
        await store_status(uow, wanted.project, wanted.item, after)
        decision = {"reviewer": after.reviewer, "accepted": wanted.accept, "comment": after.comment, "reviewed_at": uow.now}
        await uow.execute(update(readings).where(reading(wanted.project, wanted.item, after.readings)).values(decision))
        entities = _touched(wanted.project, wanted.item, after.readings)
        uow.audit(AuditEntry("annotation.review", "U", entities=entities, detail={"accept": wanted.accept}))
    else:
        uow.unchanged()
    return {"project": wanted.project, "item": wanted.item, "state": after.state.value}


@HANDLERS.slow(ExportLabels, concurrency=AT_ONCE)
async def export_labels(command: Envelope[ExportLabels], work: Work[Ports]) -> None:
    """The accepted labels as the next version; when nothing was accepted since the last one, that one is the answer."""
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
        labels = await work.ports.stores.kept.put(document, "application/json")
        last = await uow.first(select(exports).where(exports.c.project == project.project).order_by(exports.c.version.desc()).limit(1))
        if last is not None and last.labels["sha256"] == labels.sha256:
            work.result = {"version": last.version, "labels": last.labels}
            uow.unchanged()
            return
        version = last.version + 1 if last is not None else 1
        work.result = {"version": version, "labels": labels.model_dump()}
        values = {"project": project.project, "version": version, "labels": labels.model_dump(), "accepted": len(accepted)}
        await uow.execute(insert(exports).values(**values, created_at=uow.now))
        uow.emit(LabelsExported(project=project.project, version=version, labels=labels, accepted=len(accepted)))
        entities = (Entity("project", project.project), Entity("labels", project.project, version=str(version), digest=labels.sha256))
        uow.audit(AuditEntry("annotation.export", "E", entities=entities, detail={"accepted": len(accepted)}))


async def _accepted(uow: UnitOfWork[Ports], project: str) -> list[tuple[str, dict[str, Any], str]]:
    """(item, object reference, label) of every accepted item."""
    last = and_(readings.c.project == items.c.project, readings.c.item == items.c.item, readings.c.number == items.c.readings)
    found = select(items.c.item, items.c.object, readings.c.label).join(readings, last)
    wanted = found.where(items.c.project == project, items.c.state == ItemState.ACCEPTED)
    return [(row.item, row.object, row.label) for row in await uow.all(wanted)]


def _touched(project: str, item: str, number: int) -> tuple[Entity, ...]:
    return (Entity("project", project), Entity("item", item, version=str(number)))
