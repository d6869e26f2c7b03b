"""Pipelines applied ahead: what the rounds of a federation will need is made once the hospital takes part, not while a round waits."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import select

from medmesh.contracts.data import DataSchema, pipeline_of
from medmesh.errors import Problem
from medmesh.federated.plan import plan_of
from medmesh.store.prepared import Prepared, as_text
from medmesh.telemetry import log
from medmesh_edge import pipelines, samples
from medmesh_edge.policy import hours_begin
from medmesh_edge.ports import Site
from medmesh_edge.tables import among, federations

_JOINED = Prepared(
    select(federations.c.federation, federations.c.plan_hash, as_text(federations.c.plan))
    .where(among(federations.c.state, "accepted", "running", "paused"))
    .order_by(federations.c.at)
)


class Ahead:
    """Applies the pipelines of federations that this hospital takes part in before their rounds need what they make."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._refused: dict[str, frozenset[str]] = {}
        """By federation, the items of which some did not fit, or for which there was no room: not tried again before they are others."""

    async def step(self) -> bool:
        """Do what is not done yet; False, as there is never more. Raises nothing that another look would not mend."""
        joined = [(row.federation, plan_of(row)) for row in await self._site.database.look(_JOINED)]
        # Where there is no room for all of them, none takes another's ahead of its round: they would make them in turn for ever.
        others = {said.hash for _, plan in joined if (said := pipeline_of(plan.data)) is not None}
        for federation, plan in joined:
            if pipeline_of(plan.data) is None:
                continue
            now = datetime.now().astimezone()
            if hours_begin(self._site.policy(), now) > now:
                return False
            found = await items_of(self._site, plan.data)
            objects = frozenset(one.object for one in found)
            if self._refused.get(federation) == objects:
                continue
            try:
                await pipelines.ensure(self._site, plan.data, found, beside=others)
            except Problem as problem:
                log("edge.pipeline.refused", level=40, federation=federation, error=problem)
                self._refused[federation] = objects
        return False


async def items_of(site: Site, schema: DataSchema) -> list[Any]:
    """Every item that a plan about this schema uses, to train on and to test with."""
    return [row for held_out in (False, True) for row in await samples.rows(site, schema, held_out=held_out)]


async def progress(site: Site) -> list[dict[str, Any]]:
    """For the people of the hospital: each pipeline of a federation that it takes part in, and how many of how many items went through."""
    told: list[dict[str, Any]] = []
    for row in await site.database.look(_JOINED):
        plan = plan_of(row)
        if (said := pipeline_of(plan.data)) is not None:
            objects = {one.object for one in await items_of(site, plan.data)}
            done = sum(one.object in objects for one in await site.database.look(pipelines.MADE, pipeline=said.hash))
            told.append({"federation": row.federation, "pipeline": said.name, "hash": said.hash, "done": done, "items": len(objects)})
    return told
