"""Which stored files an object consists of, so that whoever may not see the object may not read them by their names either."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Row, and_, bindparam, select
from sqlalchemy.dialects.postgresql import insert as upsert

from medmesh.contracts.labels import FileView, FindFile, ObjectView
from medmesh.contracts.message import Envelope
from medmesh.security.access import Object
from medmesh.security.labels import Label, level
from medmesh.store.prepared import Prepared
from medmesh.store.tables import add_label_tables, service_metadata
from medmesh.store.unit import UnitOfWork

_TABLES = add_label_tables(service_metadata()).tables
LABELS, FILES = _TABLES["object_labels"], _TABLES["object_files"]
ROWS = 5_000
"""How many files one statement inserts."""
_KEEP = Prepared(upsert(FILES).values({column.name: bindparam(column.name) for column in FILES.c}).on_conflict_do_nothing())


async def keep(uow: UnitOfWork[Any], kind: str, id_: str, files: Iterable[str]) -> None:
    """Note that files (SHA-256) belong to an object of this service. A file may belong to several: whoever sees one of them reads it."""
    rows = [{"sha256": sha256, "kind": kind, "id": id_} for sha256 in sorted(set(files))]
    if len(rows) == 1:
        await uow.rows(_KEEP, **rows[0])
        return
    for start in range(0, len(rows), ROWS):
        await uow.execute(upsert(FILES).on_conflict_do_nothing(), rows[start : start + ROWS])


async def whose(uow: UnitOfWork[Any], sha256: str) -> list[Object]:
    """The objects of this service that a file is a part of."""
    same = and_(FILES.c.kind == LABELS.c.kind, FILES.c.id == LABELS.c.id)
    rows = await uow.all(select(LABELS).join(FILES, same).where(FILES.c.sha256 == sha256).order_by(LABELS.c.kind, LABELS.c.id))
    return [thing_of(row) for row in rows]


async def find_file(query: Envelope[FindFile], uow: UnitOfWork[Any]) -> FileView:
    """The answer to `FindFile`."""
    return FileView(things=tuple(map(view, await whose(uow, query.data.sha256))))


def thing_of(row: Row[Any]) -> Object:
    """From a row of `object_labels`."""
    label = Label(level(row.level), frozenset(row.compartments))
    return Object(row.kind, row.id, label, True, row.owner, frozenset(row.organisations), row.maker)


def view(thing: Object) -> ObjectView:
    """What decides who may read an object, as other services are told."""
    return ObjectView(
        known=True,
        kind=thing.kind,
        id=thing.id,
        label=thing.label.record if thing.labelled else None,
        owner=thing.owner,
        organisations=tuple(sorted(thing.organisations)),
        maker=thing.maker,
    )
