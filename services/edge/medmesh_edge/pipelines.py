"""A plan's pipeline at the node: applied to each item once, before any worker starts.

What is made of an item is kept under the patient's key, by the item's content and the pipeline's hash, and goes with the patient. An output
is stored before the row that names it, a few at a time: a node that is killed goes on with the items that have no row.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import bindparam, delete, func, select
from sqlalchemy.dialects.sqlite import insert as upsert

from medmesh.contracts.data import DataSchema, ItemSchema, pipeline_of
from medmesh.errors import Problem
from medmesh.security.keyring.memory import MemoryKey
from medmesh.store.prepared import Prepared
from medmesh.telemetry import log
from medmesh_edge.patients import images, known, opened
from medmesh_edge.ports import Site
from medmesh_edge.tables import outputs

if TYPE_CHECKING:
    import numpy as np

    from medmesh.pipelines.pipeline import Pipeline

BATCH = 8
"""Items between two transactions: what a kill may cost."""
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


async def ensure(site: Site, schema: DataSchema, found: Sequence[Any], tell: Tell = _silent) -> dict[str, str]:
    """Apply the schema's pipeline to those of these items that it was not applied to; answers the output by the item's object. `tell` hears
    how many of them are done. Raises `Problem`: as `check`, and `pipelines.items` where it does not fit some of them."""
    if schema.kind == "table" or (pipeline := check(schema)) is None:
        return {}
    async with site.preparing:  # one at a time: nothing is made twice
        wanted = {row.object for row in found}
        before = await site.database.look(MADE, pipeline=pipeline.version)
        done = {row.object: row.output for row in before if row.object in wanted}
        missing = [row for row in found if row.object not in done]
        unfit: list[Problem] = []
        for start in range(0, len(missing), BATCH):
            batch = missing[start : start + BATCH]
            async with site.unit() as uow:  # as they are now: a forgetting wraps every key anew
                keys = await known(uow, site, {row.patient for row in batch})
            made, wrong = await asyncio.to_thread(_make, site, schema, pipeline, batch, keys)
            done |= {row.object: output for row, output in await _keep(site, pipeline, made)}
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


async def _keep(site: Site, pipeline: Pipeline, made: Sequence[tuple[Any, str]]) -> list[tuple[Any, str]]:
    """Name what was stored, unless its patient was forgotten meanwhile; answers what was named."""
    async with site.unit() as uow:
        here = await known(uow, site, {row.patient for row, _ in made})
        for row, output in made:
            if row.patient in here:
                values = {"object": row.object, "pipeline": pipeline.version, "patient": row.patient, "output": output, "at": uow.now}
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
    """How many items each pipeline was applied to since it was last cleared, by its hash."""
    counted = select(outputs.c.pipeline, func.count().label("items"), func.max(outputs.c.at).label("last")).group_by(outputs.c.pipeline)
    async with site.unit() as uow:
        rows = await uow.all(counted.order_by(outputs.c.pipeline))
    return [{"pipeline": row.pipeline, "items": row.items, "last": f"{row.last:%Y-%m-%d %H:%M}"} for row in rows]


async def clear(site: Site, pipeline: str) -> int:
    """Delete what a pipeline made, by the beginning of its hash; it can be made again. Answers how many. The rows go first: what is left
    when this is killed is under the patients' keys, and is made anew under the same name."""
    async with site.preparing, site.unit() as uow:
        mine = outputs.c.pipeline.startswith(pipeline, autoescape=True)
        rows = await uow.all(select(outputs.c.output).where(mine))
        await uow.execute(delete(outputs).where(mine))
    for row in rows:
        await site.objects.delete(row.output)
    return len(rows)
