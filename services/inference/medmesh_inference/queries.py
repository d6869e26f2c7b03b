"""What is asked of the tables."""

from __future__ import annotations

from typing import Any

from sqlalchemy import func, select

from medmesh.contracts.inference import ListServed, ServedModel, ServedModels
from medmesh.contracts.message import Envelope
from medmesh.contracts.registry import ModelReleased
from medmesh.errors import Problem
from medmesh.store.unit import UnitOfWork
from medmesh_inference.domain import ReleaseState
from medmesh_inference.ports import HANDLERS, Ports
from medmesh_inference.tables import releases, withdrawals

_MOST = 1_000


async def serving(uow: UnitOfWork[Any]) -> list[ModelReleased]:
    """The releases that ought to be served, one a model."""
    rows = await uow.all(select(releases.c.event).where(releases.c.state == ReleaseState.SERVING).order_by(releases.c.model))
    return [ModelReleased.model_validate(row.event) for row in rows]


async def installable(uow: UnitOfWork[Any]) -> set[tuple[str, str, int]]:
    """(release, model, version) of all that may lie on the disk."""
    fine = (ReleaseState.SERVING.value, ReleaseState.SUPERSEDED.value)
    rows = await uow.all(select(releases.c.release, releases.c.model, releases.c.version).where(releases.c.state.in_(fine)))
    return {(row.release, row.model, row.version) for row in rows}


async def hold(uow: UnitOfWork[Any], model: str) -> None:
    """Wait until no other transaction, of whichever instance, changes what is known of this model."""
    await uow.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(model, 0))))


async def is_withdrawn(uow: UnitOfWork[Any], model: str, version: int) -> bool:
    """Whether a version was withdrawn."""
    return await uow.first(select(withdrawals.c.at).where(withdrawals.c.model == model, withdrawals.c.version == version)) is not None


async def standing(uow: UnitOfWork[Any], model: str, version: int) -> tuple[bool, int | None]:
    """(whether this version is withdrawn, which version of the model is served)."""
    served = await uow.first(select(releases.c.version).where(releases.c.model == model, releases.c.state == ReleaseState.SERVING))
    return await is_withdrawn(uow, model, version), served.version if served else None


@HANDLERS.answers(ListServed)
async def list_served(query: Envelope[ListServed], uow: UnitOfWork[Ports]) -> ServedModels:
    """Every model that ought to be served and that the asker may see: `serving` where this instance answers for it, else `unavailable`."""
    found = []
    wanted = select(releases).where(releases.c.state == ReleaseState.SERVING).order_by(releases.c.model)
    for event, thing in await uow.access.visible(uow, "model", wanted, lambda row: f"{row.model}/{row.version}", _MOST):
        try:
            uow.ports.repository.active(event.model, event.version)
            state = "serving"
        except Problem:
            state = "unavailable"
        found.append(ServedModel(model=event.model, version=event.version, state=state, label=thing.label.record))
    return ServedModels(models=tuple(found))
