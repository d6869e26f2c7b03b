"""The disk that outputs of pipelines take: no more than the node's settings say, and what was used least lately goes first.

An object goes before the row that names it. Killed between the two, the row names nothing: who reads it drops the row, and the output is
made again (`lost`). So nothing stays on the disk that no row counts.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Collection, Iterable, Sequence
from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, and_, delete, func, select, update

from medmesh.contracts.data import ItemSchema
from medmesh.errors import Problem
from medmesh.store.unit import UnitOfWork
from medmesh.telemetry import log
from medmesh_edge.ports import Site
from medmesh_edge.tables import outputs

AROUND = 4096
"""More than an output takes beside its values: names and numbers of its own, its sealed header, the tags of its pieces."""
BATCH = 64
_FRESH = timedelta(minutes=1)
"""A use is written down no more often."""


def at_most(schema: ItemSchema) -> int:
    """Bytes that an output of a schema's pipeline takes of the disk, at most."""
    values = 4 * math.prod(schema.shape)
    return values + values // 1024 + AROUND


def most(site: Site) -> int:
    """Bytes that all outputs may take."""
    return int(site.settings.pipelines_gib * 2**30)


async def taken(site: Site) -> int:
    """Bytes that they take."""
    async with site.unit() as uow:
        unknown = await uow.all(select(outputs.c.output).where(outputs.c.bytes == 0))
    for start in range(0, len(unknown), BATCH):  # of a release that did not count
        found = {row.output: await site.objects.size(row.output) for row in unknown[start : start + BATCH]}
        async with site.unit() as uow:
            for output, size in found.items():
                await uow.execute(update(outputs).where(outputs.c.output == output).values(bytes=(size or 0) + AROUND))
    async with site.unit() as uow:
        return int((await uow.execute(select(func.coalesce(func.sum(outputs.c.bytes), 0)))).scalar_one())


async def make_room(site: Site, need: int, keep: ColumnElement[bool]) -> None:
    """Have `need` more bytes fit: what is not to `keep` goes, what was used least lately first. Raises `Problem` (`pipelines.full`)."""
    limit, now = most(site), await taken(site)
    gone = 0
    while now + need > limit:
        oldest = (
            select(outputs.c.output, outputs.c.bytes).where(~keep).order_by(func.coalesce(outputs.c.used, outputs.c.at), outputs.c.output)
        )
        async with site.unit() as uow:
            rows = await uow.all(oldest.limit(BATCH))
        if not rows:
            raise full(site, now + need)
        going: list[str] = []
        for row in rows:
            if now + need <= limit:
                break
            going.append(row.output)
            now -= row.bytes
        await remove(site, going)
        gone += len(going)
    if gone:
        log("edge.pipeline.made_room", outputs=gone)


def full(site: Site, wanted: int) -> Problem:
    """Says how much is wanted, and how much there may be."""
    return Problem("pipelines.full", wanted=f"{wanted / 2**20:.1f}", limit=f"{most(site) / 2**20:.1f}")


def of(pipeline: str, objects: Collection[str]) -> ColumnElement[bool]:
    """What a pipeline, by its hash, made of these objects."""
    each = func.json_each(json.dumps(sorted(objects))).table_valued("value")
    return and_(outputs.c.pipeline == pipeline, outputs.c.object.in_(select(each.c.value)))


async def use(uow: UnitOfWork[Any], these: ColumnElement[bool]) -> None:
    """They are used now."""
    old = (outputs.c.used.is_(None)) | (outputs.c.used < uow.now - _FRESH)
    await uow.execute(update(outputs).where(these, old).values(used=uow.now))


async def remove(site: Site, names: Sequence[str]) -> None:
    """Delete outputs with their keys, then what names them. May be done twice."""
    for start in range(0, len(names), BATCH):
        part = names[start : start + BATCH]
        for one in part:
            await site.objects.delete(one)
        async with site.unit() as uow:
            await uow.execute(delete(outputs).where(outputs.c.output.in_(part)))


async def lost(site: Site, names: Iterable[str]) -> bool:
    """Drop the rows of outputs that are not there any more; whether there were any."""

    def gone() -> list[str]:
        return [one for one in names if site.objects.header(one) is None]

    found = await asyncio.to_thread(gone)
    await remove(site, found)
    return bool(found)
