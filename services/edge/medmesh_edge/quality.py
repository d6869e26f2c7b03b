"""What a data set of this hospital is worth: every object opened here and judged by the rules of `medmesh.quality`. Nothing leaves."""

from __future__ import annotations

import asyncio
import csv
import io
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import select

from medmesh.archive import states
from medmesh.archive.tables import open_archive
from medmesh.canonical import parse
from medmesh.errors import Problem
from medmesh.importing import stored
from medmesh.quality.inspecting import Inspection
from medmesh.quality.report import Report
from medmesh.quality.tables import of_table, of_text
from medmesh.store.unit import AuditEntry, Entity
from medmesh_edge.patients import images, opened
from medmesh_edge.ports import Site
from medmesh_edge.settling import STAGE
from medmesh_edge.tables import items, patients


async def judge(
    site: Site,
    dataset: str,
    blocking: frozenset[str] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Report:
    """The report of `dataset`, its items by their own names, which are no patient's, by the rules that block in it unless others are given;
    and what was held back by them. Leaves a record. Raises `Problem` (`edge.no_dataset`, `policy.invalid`)."""
    blocking = site.policy().blocking(dataset) if blocking is None else blocking
    columns = (items.c.item, items.c.modality, items.c.object, items.c.patient, patients.c.key)
    wanted = select(*columns).join(patients, items.c.patient == patients.c.patient).where(items.c.dataset == dataset)
    async with site.unit() as uow:
        rows = await uow.all(wanted.order_by(items.c.item))
        kept_out = held(site, dataset)
        if not rows and not kept_out:
            raise Problem("edge.no_dataset", dataset=dataset)
        about = (Entity("dataset", f"{site.settings.hospital}/{dataset}"),)
        uow.audit(AuditEntry("edge.quality", "R", entities=about, detail={"items": len(rows)}))
    report = await asyncio.to_thread(_judge, site, dataset, rows, blocking, progress)
    report.held = kept_out
    return report


def held(site: Site, dataset: str) -> dict[str, int]:
    """How many objects the rules hold back from a data set, by what they say: in quarantine, where a person looks at them."""
    if not site.layout.archive.exists():
        return {}
    connection = open_archive(site.layout.archive, read_only=True)
    try:
        return states.held_back(connection, dataset, ("quality", STAGE))
    finally:
        connection.close()


def _judge(site: Site, dataset: str, rows: Sequence[Any], blocking: frozenset[str], progress: Callable[[int, int], None]) -> Report:
    made = Inspection(dataset, blocking)
    tables: dict[str, list[dict[str, Any]]] = {}
    for done, row in enumerate(rows, start=1):
        data = b"".join(images(site, opened(site, row.patient, row.key)).open(row.object))
        if row.modality.startswith("table:"):
            tables.setdefault(row.modality.removeprefix("table:"), []).append(parse(data)["values"])
        elif row.modality.startswith("text:"):
            made.report.add("text", row.item, of_text(parse(data)["text"]))
        elif stored.is_stored(data):
            found = stored.unpack(data)
            first, *beside = found.files.items()
            if found.format == "dicom":  # a series
                for place, one in found.files.items():
                    made.look_at(f"{row.item}/{place}", one)
            else:
                made.look_at(row.item, first[1], dict(beside))
        else:
            made.look_at(row.item, data)
        progress(done, len(rows))
    for name, values in tables.items():
        made.report.add("table", name, of_table(_as_csv(values)))
    return made.finish()


def _as_csv(rows: Sequence[dict[str, Any]]) -> io.BytesIO:
    names = sorted({name for row in rows for name in row})
    written = io.StringIO(newline="")
    writer = csv.DictWriter(written, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return io.BytesIO(written.getvalue().encode())
