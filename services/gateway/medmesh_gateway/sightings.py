"""The checkpoints that hospitals were shown: each node leaves its own and takes along a few others'. Kept here and not where the log is
written, so that whoever forges the log alone does not choose who compares what."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert

from medmesh.contracts.audit import Sighting, Sightings
from medmesh.errors import Problem
from medmesh.ledger import note
from medmesh.store.unit import UnitOfWork
from medmesh_gateway.tables import sightings

OTHERS = 3
"""How many a node takes along each time, drawn by lot: what each compares does not grow with the number of hospitals."""
LATELY = timedelta(days=1)
"""An older one is of a hospital that is gone."""


def read(body: bytes) -> Sighting:
    """Raises `Problem` unless it has the form of a signed checkpoint; whether the log signed it, those ask who compare it."""
    from pydantic import ValidationError

    try:
        found = Sighting.model_validate_json(body, extra="ignore")
    except ValidationError:
        raise Problem("request.invalid", reason="not a checkpoint") from None
    note.parse_checkpoint(note.split(found.note)[0])
    return found


async def exchange(uow: UnitOfWork[Any], hospital: str, shown: Sighting) -> Sightings:
    """Keep what `hospital` was shown; answers what some others were."""
    values = {"hospital": hospital, "note": shown.note, "at": uow.now}
    await uow.execute(insert(sightings).values(values).on_conflict_do_update(index_elements=["hospital"], set_=values))
    others = select(sightings).where(sightings.c.hospital != hospital, sightings.c.note != shown.note, sightings.c.at > uow.now - LATELY)
    rows = await uow.all(others.order_by(func.random()).limit(OTHERS))
    return Sightings(others=tuple(Sighting(note=row.note, hospital=row.hospital) for row in rows))
