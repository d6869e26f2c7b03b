"""What the hospital says of what its PACS sent: labels by the hospital's own numbers, which never leave.

`labels.csv` beside files names files; of what came by DICOM there are none. So a row names a patient, an accession number, a study, a
series or an object, as the PACS does, and is about everything of it that is in the data set.
"""

from __future__ import annotations

import csv
import io
import json
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import func, select, update

from medmesh.archive.tables import known_scope, open_archive
from medmesh.errors import Problem
from medmesh.store.unit import AuditEntry, Entity
from medmesh_edge.ports import Site
from medmesh_edge.tables import datasets, items, parts

NAMES = {"patient": "t.patient_id", "accession": "t.accession", "study": "t.uid", "series": "s.uid", "object": "i.uid"}
"""What a row may name, and where the archive's index has it."""


@dataclass(slots=True)
class Labelled:
    """How many items have a label by it, and how many rows are about nothing that is in the data set."""

    items: int = 0
    unknown: int = 0


async def label(site: Site, dataset: str, data: bytes) -> Labelled:
    """Label items of a data set by a CSV file: one of `NAMES`, `label`, and where it is wanted `split`. The last row that is about an item
    counts. The data set is another version then. Raises `Problem` (`dicom.labels`), and has changed nothing."""
    found, done = Labelled(), set[str]()
    rows = list(_read(data))
    connection = open_archive(site.layout.archive, read_only=True)
    try:
        made = [(_made(connection, dataset, *named), value, split) for named, value, split in rows]
    finally:
        connection.close()
    async with site.unit() as uow:
        for objects, value, split in made:
            each = select(func.json_each(json.dumps(objects)).table_valued("value").c.value)
            volumes = select(parts.c.volume).where(parts.c.dataset == dataset, parts.c.object.in_(each))
            mine = (items.c.dataset == dataset) & (items.c.object.in_(each) | items.c.item.in_(volumes))
            values = {"label": value, **({"held_out": split == "test"} if split else {})}
            changed = await uow.all(update(items).where(mine).values(values).returning(items.c.item))
            done |= {row.item for row in changed}
            found.unknown += not changed
        found.items = len(done)
        if done:
            await uow.execute(update(datasets).where(datasets.c.dataset == dataset).values(version=datasets.c.version + 1))
        about = (Entity("dataset", f"{site.settings.hospital}/{dataset}"),)
        uow.audit(AuditEntry("edge.label", "U", entities=about, detail={"items": found.items, "unknown": found.unknown}))
    return found


def _made(connection: sqlite3.Connection, dataset: str, name: str, value: str) -> list[str]:
    """What was made of everything that has this number, by the SHA-256 of its bytes."""
    wanted = (
        "SELECT c.sha256 FROM studies t JOIN series s ON s.study = t.id JOIN instances i ON i.series = s.id"
        " JOIN objects c ON c.source = i.object WHERE t.scope = ? AND "
    )
    rows = connection.execute(f"{wanted}{NAMES[name]} = ?", (known_scope(connection, dataset, "original"), value))
    return [row[0] for row in rows]


def _read(data: bytes) -> Iterator[tuple[tuple[str, str], str, str]]:
    """((which number, the number), label, split) of each row."""
    try:
        reader = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""))
        named = sorted(set(NAMES) & set(reader.fieldnames or ()))
        if len(named) != 1 or "label" not in (reader.fieldnames or ()):
            raise Problem("dicom.labels", row=1, reason=f"a column label is needed, and one of {', '.join(NAMES)}")
        for number, row in enumerate(reader, start=2):
            value, label, split = ((row.get(one) or "").strip() for one in (named[0], "label", "split"))
            if not value or not 1 <= len(label) <= 80 or split not in ("", "train", "test"):
                raise Problem("dicom.labels", row=number, reason=f"a {named[0]}, a label, and train, test or nothing as split")
            yield (named[0], value), label, split
    except (UnicodeDecodeError, csv.Error):
        raise Problem("dicom.labels", row=0, reason="not a UTF-8 CSV file") from None
