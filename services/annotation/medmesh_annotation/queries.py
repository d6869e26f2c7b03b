"""The next item for a person, and how a project stands."""

from __future__ import annotations

from sqlalchemy import Row, func, or_, select

from medmesh.contracts.annotation import GetProject, Item, NextItem, ProjectView
from medmesh.contracts.message import Envelope
from medmesh.labelling.items import ItemState, claim
from medmesh.security.access import Object
from medmesh.store.unit import UnitOfWork
from medmesh_annotation.ports import HANDLERS, Ports
from medmesh_annotation.rows import find_project, one, status, store_status
from medmesh_annotation.tables import exports, items, readings


@HANDLERS.answers(NextItem)
async def next_item(query: Envelope[NextItem], uow: UnitOfWork[Ports]) -> Item:
    """Claim an item for the person who asks: the one they hold, else one that was sent back to them, else a free one."""
    project, person = query.data.project, uow.actor.text
    await find_project(uow, project)
    # One person's questions take turns, or two windows that ask at once would hold two items.
    await uow.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(f"{project}/{person}", 0))))
    row = await _waiting(uow, project, person)
    if row is None:
        return Item(item=None)
    before = status(row)
    claimed = claim(before, person, uow.now, uow.ports.settings.claim_minutes)
    if claimed != before:
        await store_status(uow, project, row.item, claimed)
    return Item(item=row.item, state=claimed.state.value, object=row.object, comment=await _comment(uow, project, row.item))


async def _comment(uow: UnitOfWork[Ports], project: str, item: str) -> str:
    """What the reviewer of the last reading said."""
    mine = (readings.c.project == project) & (readings.c.item == item)
    last = await uow.first(select(readings.c.comment).where(mine).order_by(readings.c.number.desc()).limit(1))
    return str(last.comment) if last is not None else ""


async def _waiting(uow: UnitOfWork[Ports], project: str, person: str) -> Row | None:
    """A row of `items` that `person` may claim, locked."""
    mine = select(items).where(items.c.project == project, items.c.claimed_by == person)
    # Waits for a label that is being submitted this moment, and then no longer finds the claim.
    if (row := await uow.first(mine.with_for_update())) is not None:
        return row
    free = or_(items.c.claimed_by.is_(None), items.c.claim_expires <= uow.now)
    for condition in (
        (items.c.state == ItemState.RETURNED) & (items.c.reader == person),
        (items.c.state == ItemState.UNLABELLED) & free,
    ):
        first = select(items).where(items.c.project == project, condition).order_by(items.c.place).limit(1)
        # What somebody else is claiming right now is passed over, not waited for.
        if (row := await uow.first(first.with_for_update(skip_locked=True))) is not None:
            return row
    return None


@HANDLERS.knows("item")
async def item(id_: str, uow: UnitOfWork[Ports]) -> Object | None:
    """Who read an item: decides who may review it."""
    project, _, name = id_.partition("/")
    row = None if "\x00" in id_ else await uow.first(select(items.c.reader).where(one(project, name)))
    return None if row is None else Object("item", id_, reader=row.reader or "")


@HANDLERS.knows("content")
async def content(sha256: str, uow: UnitOfWork[Ports]) -> Object | None:
    """What an export of labels is that was let out: its project's, with that one's label."""
    row = await uow.first(
        select(exports.c.project).where(exports.c.labels["sha256"].as_string() == sha256, exports.c.state == "exported").limit(1)
    )
    return None if row is None else Object("project", row.project)


@HANDLERS.answers(GetProject)
async def get_project(query: Envelope[GetProject], uow: UnitOfWork[Ports]) -> ProjectView:
    """The project with the number of items in every state, zeros too."""
    project = await find_project(uow, query.data.project)
    counted = select(items.c.state, func.count().label("n")).where(items.c.project == project.project).group_by(items.c.state)
    counts = {row.state: row.n for row in await uow.all(counted)}
    return ProjectView(
        project=project.project,
        dataset=project.dataset,
        version=project.version,
        classes=tuple(project.classes),
        states={state.value: counts.get(state.value, 0) for state in ItemState},
    )
