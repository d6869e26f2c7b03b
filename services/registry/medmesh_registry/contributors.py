"""Hospitals that left a federation for good whose part is in the model it made: named wherever the version is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Row, select
from sqlalchemy.dialects.postgresql import insert as upsert

from medmesh.contracts.federation import ParticipantWithdrew
from medmesh.contracts.message import Envelope
from medmesh.contracts.registry import ContributorsWithdrew
from medmesh.store.unit import UnitOfWork
from medmesh_registry.domain import ReleaseState
from medmesh_registry.ports import HANDLERS, Ports
from medmesh_registry.tables import releases, versions, withdrawals


@HANDLERS.on(ParticipantWithdrew)
async def participant_withdrew(event: Envelope[ParticipantWithdrew], uow: UnitOfWork[Ports]) -> None:
    """Kept, also before there is a version: what the hospital gave to committed rounds stays in the model, and its page says so. Hospitals
    that have the model are told."""
    said = event.data
    left = upsert(withdrawals).values(federation=said.federation, hospital=said.hospital, at=uow.now)
    if not (await uow.execute(left.on_conflict_do_nothing())).rowcount:
        return
    # The version is held: a release at the same moment either sees who left, or is seen here.
    version = await uow.first(select(versions).where(versions.c.federation == said.federation).with_for_update())
    if version is not None and said.hospital in version.lineage["hospitals"]:
        mine = (releases.c.model == version.model) & (releases.c.version == version.version) & (releases.c.state == ReleaseState.RELEASED)
        given = await uow.all(select(releases.c.hospitals).where(mine))
        await tell(uow, version, sorted({hospital for row in given for hospital in row.hospitals}))


async def withdrawn(uow: UnitOfWork[Ports], found: Sequence[Row[Any]]) -> Mapping[tuple[str, int], tuple[str, ...]]:
    """By model and version, of these rows, who left of those in the lineage. A hospital that has no part in a model is not among them."""
    federations = [row.federation for row in found if row.federation]
    left = {(row.federation, row.hospital) for row in await uow.all(select(withdrawals).where(withdrawals.c.federation.in_(federations)))}
    return {
        (row.model, row.version): tuple(hospital for hospital in row.lineage["hospitals"] if (row.federation, hospital) in left)
        for row in found
    }


async def tell(uow: UnitOfWork[Ports], version: Row[Any], hospitals: Sequence[str]) -> None:
    """Tell these, who have the version, who left of it; nothing where nobody did. The version is locked."""
    left = (await withdrawn(uow, [version]))[version.model, version.version]
    if left and hospitals:
        uow.emit(ContributorsWithdrew(hospitals=tuple(hospitals), model=version.model, version=version.version, withdrawn=left))
