"""Rows on their way into a version's tables: written in parts where they are made, stored when nothing can be refused any more."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path

from medmesh.importing.columns import Reader, small
from medmesh.importing.port import Source
from medmesh.importing.reading import plain
from medmesh.importing.records import Record
from medmesh.importing.rows import MEDIA_TYPE, Shape, Writer, Written, read, resplit
from medmesh.store.objects.port import ObjectStore, fetch
from medmesh_ingestion.domain import Table, TablePart
from medmesh_ingestion.splitting import Unit

VOUCHED = "vouched.txt"
"""Words, one a line, in which rules for free text doubt and of which whoever brings the archive says that they name nobody."""
_IMAGES = "images"
_SOME = 500
_LARGEST_LIST = 4 << 20


class Tables:
    """The tables of one version while they are written, in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[Shape, Writer] = {}
        self._done: list[Written] = []
        self.rejected: Counter[str] = Counter()

    async def fill(self, records: Iterable[Record | str]) -> None:
        """Take rows in, and count those that are put aside by reason."""
        rows = iter(records)
        while await asyncio.to_thread(self._some, rows):
            pass

    def _some(self, rows: Iterator[Record | str]) -> bool:
        some = list(islice(rows, _SOME))
        for one in some:
            if isinstance(one, str):
                self.rejected[one] += 1
                continue
            writer = self._open.get(one.shape) or self._begin(one.shape)
            writer.add(one.values)
            writer.emptied.update(one.emptied)
        return bool(some)

    def _begin(self, shape: Shape) -> Writer:
        """Published tables come one after the other: of those nothing waits in memory."""
        if shape.kind in ("events", "table"):
            for other in [other for other in self._open if other.kind in ("events", "table")]:
                self._done.append(self._open.pop(other).finish())
        writer = self._open[shape] = Writer(self._folder, shape)
        return writer

    def finish(self) -> tuple[Written, ...]:
        """Every table, by name."""
        self._done += [writer.finish() for writer in self._open.values()]
        self._open.clear()
        return tuple(sorted(self._done, key=lambda one: one.shape.name))


async def store_tables(written: Iterable[Written], target: ObjectStore) -> list[Table]:
    """Put the parts into the store; storing one again is harmless."""
    made = []
    for one in written:
        parts = []
        for file in one.files:
            ref = await target.put_file(file.path, file.sha256)
            parts.append(TablePart(ref.model_copy(update={"media_type": MEDIA_TYPE}), file.rows))
        fields = tuple(field.document for field in one.shape.fields)
        about = (one.shape.name, one.shape.kind, one.shape.label, fields)
        made.append(Table(*about, one.rows, one.groups, one.splits, one.emptied, tuple(parts)))
    return made


async def fetch_parts(tables: Iterable[Table], source: ObjectStore, folder: Path) -> None:
    """The parts of tables that can be split, in `folder` under their hashes."""
    for table in tables:
        for part in table.parts if table.is_split else ():
            await fetch(source, part.object, folder / part.object.sha256)


def units_of_rows(tables: Iterable[Table], folder: Path, same_side: Mapping[str, str]) -> list[Unit]:
    """What of the rows in `folder` stands on one side: all of a group, over all tables; a row without a group by itself."""
    found: dict[str, Unit] = {}
    for table in tables:
        columns = ["item", "group", "split", *(name for name in (_IMAGES, table.label) if any(one["name"] == name for one in table.fields))]
        for part in table.parts if table.is_split else ():
            for row in read(folder / part.object.sha256, columns):
                name = row["group"] or row["item"]
                unit = found.setdefault(f"row {name}", Unit(f"row {name}"))
                unit.labels[row.get(table.label)] += 1
                unit.ties |= {f"item {image}" for image in row.get(_IMAGES) or ()} | ({f"group {name}"} if row["group"] else set())
                if row["split"]:
                    unit.published.add(same_side.get(row["split"], row["split"]))
    return list(found.values())


async def resplit_tables(tables: Iterable[Table], sides: Mapping[str, str], store: ObjectStore, folder: Path) -> list[Table]:
    """The tables with their rows on these sides (by `row` and the group, or the row's own name), stored."""
    split_of = {name.removeprefix("row "): side for name, side in sides.items() if name.startswith("row ")}
    made = []
    for table in tables:
        if not table.is_split:
            made.append(table)
            continue
        parts, splits = [], Counter[str]()
        for part in table.parts:
            file, counts = await asyncio.to_thread(resplit, folder / part.object.sha256, folder, split_of)
            ref = await store.put_file(file.path, file.sha256)
            parts.append(TablePart(ref.model_copy(update={"media_type": MEDIA_TYPE}), file.rows))
            splits += counts
        made.append(replace(table, parts=tuple(parts), splits=dict(sorted(splits.items()))))
    return made


def rows_of(source: Source, name: str, reader: Reader) -> Iterator[Record | str]:
    """The rows of a file, also a gzipped one."""
    with plain(source, name) as file:
        yield from reader.read(file)


def vouched(source: Source) -> list[str]:
    """The words in `vouched.txt` at the top of the archive; none where there is no such file."""
    name = next((name for name in source.names if name.rpartition("/")[2] == VOUCHED), None)
    return [] if name is None else small(source, name, _LARGEST_LIST).decode("utf-8-sig", "replace").split("\n")
