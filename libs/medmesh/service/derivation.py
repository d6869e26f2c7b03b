"""What was made from what, and that it is raised with it.

Each labelled object remembers what it was made from. Whoever raises a label raises, in the same transaction, what the same service made
from the object; other services do so when they hear of it, and tell on. A row's lock makes both orders right: whoever makes something
holds its sources' rows (its own service's labels, or what it heard of another's) until the new object is there, and whoever raises one
waits for that. Nothing here ever lowers a label.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from sqlalchemy import Table, and_, select
from sqlalchemy.dialects.postgresql import insert as upsert

from medmesh.contracts.labels import OWNERS, LabelChanged
from medmesh.security.access import Object
from medmesh.security.labels import NOTHING, Label, join, level, read
from medmesh.store.tables import add_label_tables, service_metadata
from medmesh.store.unit import UnitOfWork

_TABLES = add_label_tables(service_metadata()).tables
LABELS, SOURCES, HEARD = _TABLES["object_labels"], _TABLES["label_sources"], _TABLES["labels_heard"]

Source = tuple[str, str]
"""Kind and id."""
Raise = Callable[[UnitOfWork[Any], Any, Label, Source], Awaitable[None]]
"""Labels a row of `object_labels` higher, because of a source."""


async def hold(uow: UnitOfWork[Any], own: frozenset[str], sources: Iterable[Source]) -> Label:
    """The join of the sources' labels as far as this service knows them, held still until the transaction ends. `own` are the kinds
    whose labels are this service's."""
    found = []
    for kind, id_ in sorted(set(sources)):
        table = LABELS if kind in own else HEARD
        if table is HEARD:
            await uow.execute(upsert(HEARD).values(_row(kind, id_, NOTHING, -1)).on_conflict_do_nothing())
        row = await uow.first(select(table).where(_key(table, kind, id_)).with_for_update(read=True))
        found += [Label(level(row.level), frozenset(row.compartments))] if row is not None else []
    return join(found)


async def note(uow: UnitOfWork[Any], kind: str, id_: str, sources: Iterable[Source]) -> None:
    """Remember what an object was made from; it must be `hold`ing them."""
    rows = [{"kind": kind, "id": id_, "of_kind": one, "of_id": of} for one, of in sorted(set(sources) - {(kind, id_)})]
    if rows:
        await uow.execute(upsert(SOURCES).on_conflict_do_nothing(), rows)


async def heard(uow: UnitOfWork[Any], changed: LabelChanged, follow: Raise) -> None:
    """Another service labelled an object anew. A fact that comes twice, or after a later one, changes nothing more."""
    if changed.service not in OWNERS.get(changed.kind, ()) or changed.service == uow.context.service:
        return
    label = read(changed.label)
    values = _row(changed.kind, changed.id, label, changed.revision)
    newer = upsert(HEARD).values(values)
    # The row is locked also where the condition does not hold.
    await uow.execute(
        newer.on_conflict_do_update(index_elements=["kind", "id"], set_=values, where=HEARD.c.revision < newer.excluded.revision)
    )
    if changed.before is None or not read(changed.before).dominates(label):
        await spread(uow, (changed.kind, changed.id), label, follow)


async def spread(uow: UnitOfWork[Any], source: Source, label: Label, follow: Raise) -> None:
    """Raise what this service made from an object whose label was raised."""
    made_from = and_(SOURCES.c.kind == LABELS.c.kind, SOURCES.c.id == LABELS.c.id)
    wanted = select(LABELS).join(SOURCES, made_from).where(SOURCES.c.of_kind == source[0], SOURCES.c.of_id == source[1])
    for row in await uow.all(wanted.order_by(LABELS.c.kind, LABELS.c.id).with_for_update(of=LABELS)):
        before = Label(level(row.level), frozenset(row.compartments))
        if not before.dominates(label):
            await follow(uow, row, join((before, label)), source)


def sources_of(things: Iterable[Object]) -> list[Source]:
    """Of what the guard found: those that have a label of their own."""
    return [(thing.kind, thing.id) for thing in things if thing.labelled]


def _key(table: Table, kind: str, id_: str) -> Any:
    return (table.c.kind == kind) & (table.c.id == id_)


def _row(kind: str, id_: str, label: Label, revision: int) -> dict[str, Any]:
    return {"kind": kind, "id": id_, "level": label.level.text, "compartments": sorted(label.compartments), "revision": revision}
