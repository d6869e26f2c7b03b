"""Whose data may be taken in: under an approval that is valid, of a patient who agreed where that is asked and was not forgotten."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Protocol

from medmesh.store.unit import UnitOfWork
from medmesh_edge import withdrawn
from medmesh_edge.ethics import admitted, kind_of
from medmesh_edge.ports import Site


class Entry(Protocol):
    """An item: its name, its patient's pseudonym, and what it is of."""

    @property
    def item(self) -> str: ...
    @property
    def patient(self) -> str: ...
    @property
    def modality(self) -> str: ...


async def refused_of(uow: UnitOfWork[Any], site: Site, entries: Collection[Entry], ethics: str) -> dict[str, str]:
    """The items that may not be taken in, with the reason. Raises `Problem` (`ethics.*`) when nobody may."""
    away = withdrawn.away(site, {entry.patient for entry in entries})
    kinds = sorted({kind_of(entry.modality) for entry in entries})
    agreed = {kind: await admitted(uow, site, ethics, kind, {entry.patient for entry in entries}) for kind in kinds}
    return {
        entry.item: "intake.withdrawn" if entry.patient in away else "intake.no_consent"
        for entry in entries
        if entry.patient in away or entry.patient not in agreed[kind_of(entry.modality)]
    }
