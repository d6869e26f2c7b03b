"""A plan's pipeline at the node: applied to each item once, before any worker starts.

What is made of an item is kept under the patient's key, by the item's content and the pipeline's hash, and goes with the patient. An output
is stored before the row that names it, a few at a time: a node that is killed goes on with the items that have no row. How much of the
disk they take is bounded (`outputs`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import bindparam, func, select
from sqlalchemy.dialects.sqlite import insert as upsert

from medmesh.contracts.data import DataSchema, ItemSchema, pipeline_of
from medmesh.errors import Problem
from medmesh.security.keyring.memory import MemoryKey
from medmesh.store.prepared import Prepared
from medmesh.telemetry import log
from medmesh_edge import outputs as room
from medmesh_edge.patients import images, known, opened
from medmesh_edge.ports import Site
from medmesh_edge.tables import outputs

if TYPE_CHECKING:
    import numpy as np

    from medmesh.pipelines.pipeline import Pipeline

BATCH = 8
"""Items between two transactions: what a kill may cost."""
T = TypeVar("T")
Tell = Callable[[int, int], None]
MADE = Prepared(select(outputs.c.object, outputs.c.output).where(outputs.c.pipeline == bindparam("pipeline")))
"""Which output a pipeline, by its hash, made of which object."""


def _silent(done: int, total: int) -> None:
    return None


def check(schema: DataSchema) -> Pipeline | None:
    """The schema's pipeline as it is done here; None where it has none. Raises `Problem` (`pipelines.*`) where it cannot be."""
    if (said := pipeline_of(schema)) is None:
        return None
    from medmesh.pipelines.pipeline import of

    return of(said)


async def ensure(
    site: Site, schema: DataSchema, found: Sequence[Any], tell: Tell = _silent, *, beside: Collection[str] = ()
) -> dict[str, str]:
    """Apply the schema's pipeline to those of these items that it was not applied to; answers the output by the item's object. `tell` hears
    how many of them are done; what pipelines made whose hashes are `beside` stays. Raises `Problem`: as `check`, `pipelines.items` where it
    does not fit some of them, `pipelines.full` and `pipelines.disk` where there is no room for what it makes."""
    if schema.kind == "table" or (pipeline := check(schema)) is None:
        return {}
    async with site.preparing:  # one at a time: nothing is made twice
        return await _ensured(site, schema, pipeline, found, tell, beside)


async def through(site: Site, schema: DataSchema, found: Sequence[Any], read: Callable[[Mapping[str, str]], T]) -> T:
    """What `read` answers, in a thread, of the outputs by the items' objects; empty where the schema has no pipeline. None of them goes for
    want of room before it is over, and what another process took away is made again. Raises `Problem` as `ensure`, and what `read` does."""
    if schema.kind == "table" or (pipeline := check(schema)) is None:
        return await asyncio.to_thread(read, {})
    for again in (True, True, False):
        async with site.preparing:
            made = await _ensured(site, schema, pipeline, found, _silent, ())
            try:
                return await asyncio.to_thread(read, made)
            except Problem as problem:
                if not (again and problem.code in ("objects.missing", "objects.damaged") and await room.lost(site, made.values())):
                    raise
    raise AssertionError


async def _ensured(
    site: Site, schema: ItemSchema, pipeline: Pipeline, found: Sequence[Any], tell: Tell, beside: Collection[str]
) -> dict[str, str]:
    wanted = {row.object for row in found}
    before = await site.database.look(MADE, pipeline=pipeline.version)
    done = {row.object: row.output for row in before if row.object in wanted}
    missing = [row for row in found if row.object not in done]
    unfit: list[Problem] = []
    each, mine = room.at_most(schema), room.of(pipeline.version, wanted)
    async with site.unit() as uow:
        await room.use(uow, mine)
    if missing and each * len(wanted) > room.most(site):  # said before hours went into it
        raise room.full(site, each * len(wanted))
    for start in range(0, len(missing), BATCH):
        batch = missing[start : start + BATCH]
        await room.make_room(site, each * len(batch), mine | outputs.c.pipeline.in_(sorted(beside)))
        async with site.unit() as uow:  # as they are now: a forgetting wraps every key anew
            keys = await known(uow, site, {row.patient for row in batch})
        try:
            made, wrong = await asyncio.to_thread(_make, site, schema, pipeline, batch, keys)
        except Problem as problem:
            if problem.code != "objects.full":
                raise
            raise Problem("pipelines.disk", pipeline=pipeline.name) from None
        done |= {row.object: output for row, output in await _keep(site, pipeline, made, each)}
        unfit += wrong
        tell(min(start + BATCH, len(missing)), len(missing))
    if missing:
        log("edge.pipeline.applied", pipeline=pipeline.version[:16], items=len(missing) - len(unfit), unfit=len(unfit))
    if len(done) + len(unfit) < len(wanted):
        raise Problem("edge.patient_forgotten")
    if unfit:
        first = f"{unfit[0].code}: {unfit[0].detail()}"
        raise Problem("pipelines.items", pipeline=pipeline.name, count=len(unfit), total=len(found), first=first[:300])
    return done


def _make(
    site: Site, schema: ItemSchema, pipeline: Pipeline, batch: Sequence[Any], keys: Mapping[str, MemoryKey]
) -> tuple[list[tuple[Any, str]], list[Problem]]:
    """Of those whose patient is still known: (row, output) of each, and why the others do not fit."""
    from medmesh.pipelines.data import packed
    from medmesh.pipelines.samples import decoded, through

    made: list[tuple[Any, str]] = []
    unfit: list[Problem] = []
    for row in (row for row in batch if row.patient in keys):
        store = images(site, keys[row.patient])
        try:
            data = through(pipeline, decoded(b"".join(store.open(row.object)), schema), schema)
        except Problem as problem:
            if problem.code.startswith(("objects.", "keyring.")):
                raise  # the store's fault, not the item's
            unfit.append(problem)
            continue
        # With its origin in it: outputs that are equal are no two patients' object.
        made.append((row, store.put_now(packed(data, input=row.object, pipeline=pipeline.version))))
    return made, unfit


async def _keep(site: Site, pipeline: Pipeline, made: Sequence[tuple[Any, str]], size: int) -> list[tuple[Any, str]]:
    """Name what was stored, of `size` bytes each at most, unless its patient was forgotten meanwhile; answers what was named."""
    async with site.unit() as uow:
        here = await known(uow, site, {row.patient for row, _ in made})
        for row, output in made:
            if row.patient in here:
                values = {"object": row.object, "pipeline": pipeline.version, "patient": row.patient, "output": output, "bytes": size}
                values |= {"used": uow.now, "at": uow.now}
                await uow.execute(upsert(outputs).values(values).on_conflict_do_nothing())
    for row, output in made:
        if row.patient not in here:
            await site.objects.delete(output)
    return [(row, output) for row, output in made if row.patient in here]


def read(site: Site, row: Any, output: str) -> np.ndarray:
    """float32 [*shape] of one item, as it was made. Raises `Problem` (`objects.*`, `keyring.*`)."""
    from medmesh.pipelines.data import unpacked

    return unpacked(b"".join(images(site, opened(site, row.patient, row.key)).open(output))).values


async def listed(site: Site) -> list[dict[str, Any]]:
    """How many items each pipeline was applied to and how much of the disk that takes, by its hash."""
    await room.taken(site)  # what was not counted yet is now
    columns = func.count().label("items"), func.sum(outputs.c.bytes).label("bytes"), func.max(outputs.c.at).label("last")
    used = func.max(func.coalesce(outputs.c.used, outputs.c.at), type_=outputs.c.at.type).label("used")
    async with site.unit() as uow:
        rows = await uow.all(select(outputs.c.pipeline, *columns, used).group_by(outputs.c.pipeline).order_by(outputs.c.pipeline))
    return [
        {"pipeline": row.pipeline, "items": row.items, "mib": mib(row.bytes)}
        | {name: f"{getattr(row, name):%Y-%m-%d %H:%M}" for name in ("last", "used")}
        for row in rows
    ]


async def disk(site: Site) -> dict[str, float]:
    """How much of the disk all outputs take, and how much they may, in MiB."""
    return {"mib": mib(await room.taken(site)), "most_mib": mib(room.most(site))}


def mib(size: int) -> float:
    """Of bytes."""
    return round(size / 2**20, 1)


async def clear(site: Site, pipeline: str) -> int:
    """Delete what a pipeline made, by the beginning of its hash; it can be made again. Answers how many."""
    async with site.preparing:
        async with site.unit() as uow:
            rows = await uow.all(select(outputs.c.output).where(outputs.c.pipeline.startswith(pipeline, autoescape=True)))
        await room.remove(site, [row.output for row in rows])
    return len(rows)
