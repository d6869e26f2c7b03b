"""Projects are made from a data set version; items are labelled and reviewed by another person."""

from __future__ import annotations

import asyncio
from typing import Any

from sqlalchemy import insert, update
from sqlalchemy.dialects.postgresql import insert as upsert

from medmesh.contracts.annotation import CreateProject, ProjectCreated, ReviewLabel, SubmitLabel
from medmesh.contracts.message import Envelope
from medmesh.errors import Problem
from medmesh.labelling.items import ItemState, review, submit
from medmesh.labelling.schema import LabelSchema
from medmesh.service import labels
from medmesh.service.dispatch import Work
from medmesh.store.objects.port import load
from medmesh.store.unit import AuditEntry, Entity, UnitOfWork
from medmesh_annotation.domain import check_project, read_content
from medmesh_annotation.ports import HANDLERS, Ports
from medmesh_annotation.rows import find_item, find_project, reading, store_status
from medmesh_annotation.tables import items, projects, readings

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


def _touched(project: str, item: str, number: int) -> tuple[Entity, ...]:
    return (Entity("project", project), Entity("item", item, version=str(number)))
