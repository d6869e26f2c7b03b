"""Between rows of the database and the values of `medmesh.labelling`."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Row, and_, select, update

from medmesh.errors import Problem
from medmesh.labelling.items import Claim, ItemState, ItemStatus
from medmesh.store.unit import UnitOfWork
from medmesh_annotation.ports import Ports
from medmesh_annotation.tables import items, projects, readings


def status(row: Row[Any], last: Row[Any] | None = None) -> ItemStatus:
    """What the rules decide on, from a row of `items` and its last reading."""
    return ItemStatus(
        state=ItemState(row.state),
        claim=Claim(row.claimed_by, row.claim_expires) if row.claimed_by else None,
        reader=row.reader,
        label=last.label if last else None,
        reviewer=last.reviewer if last else None,
        comment=last.comment if last else "",
        readings=row.readings,
    )


def one(project: str, item: str) -> ColumnElement[bool]:
    """The condition that names an item."""
    return and_(items.c.project == project, items.c.item == item)


def reading(project: str, item: str, number: int) -> ColumnElement[bool]:
    """The condition that names a reading."""
    return and_(readings.c.project == project, readings.c.item == item, readings.c.number == number)


async def find_project(uow: UnitOfWork[Ports], project: str, *, lock: bool = False) -> Row[Any]:
    """A project's row. Raises `Problem` (`request.not_found`)."""
    wanted = select(projects).where(projects.c.project == project)
    if (row := await uow.first(wanted.with_for_update() if lock else wanted)) is None:
        raise Problem("request.not_found", kind="annotation project", id=project)
    return row


async def find_item(uow: UnitOfWork[Ports], project: str, item: str) -> ItemStatus:
    """An item with its last reading, locked. Raises `Problem` (`request.not_found`)."""
    # PostgreSQL holds no NUL in a text, so no item has one.
    row = None if "\x00" in item else await uow.first(select(items).where(one(project, item)).with_for_update())
    if row is None:
        raise Problem("request.not_found", kind="item", id=item.replace("\x00", ""))
    # Not joined above: whoever waits for the lock would see the item as it became and its reading as it was.
    return status(row, await uow.first(select(readings).where(reading(project, item, row.readings))))


async def store_status(uow: UnitOfWork[Ports], project: str, item: str, new: ItemStatus) -> None:
    """Write what `items` holds of a status; readings are rows of their own."""
    held = new.claim
    values = {
        "state": new.state.value,
        "claimed_by": held.person if held else None,
        "claim_expires": held.expires if held else None,
        "reader": new.reader,
        "readings": new.readings,
    }
    await uow.execute(update(items).where(one(project, item)).values(values))
