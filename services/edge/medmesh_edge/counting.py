"""Who is counted at this hospital where small cells are not told, and how the store keeps it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.dialects.sqlite import insert as upsert

from medmesh.contracts.ingestion import SMALL_CELL
from medmesh.contracts.plan import Plan
from medmesh.federated.cells import Group, counted, joined, without
from medmesh.security.keys import read_secret
from medmesh.store.unit import UnitOfWork
from medmesh_edge import samples
from medmesh_edge.ports import Site
from medmesh_edge.tables import cohorts, items


def smallest_told(site: Site, plan: Plan) -> int:
    """Of fewer patients than this nothing is told: the plan's number, or the hospital's own where that is larger."""
    return max(plan.small_cell, site.policy().small_cell)


def key(site: Site) -> bytes:
    """By which chance is drawn: whoever has it not cannot guess what was rounded."""
    return b"cells:" + read_secret(site.layout.site_key).strip()


async def held_out(site: Site, plan: Plan) -> tuple[Sequence[Any], int]:
    """The held-out samples that are counted, and to which multiple: the plan's, or the hospital's own where that is larger."""
    found, smallest = await samples.rows(site, plan.data, held_out=True), smallest_told(site, plan)
    if smallest < 2:
        return found, smallest
    drawn, chosen = key(site), set[str]()
    async with site.unit() as uow:
        for label in plan.data.classes:
            where = (cohorts.c.modality == plan.data.modality) & (cohorts.c.label == label)
            before = await uow.first(select(cohorts.c.members).where(where))
            now = {row.item: row.patient for row in found if row.label == label}
            groups = joined(_read(before.members, now, smallest, drawn) if before else (), now, smallest, drawn)
            values = {"modality": plan.data.modality, "label": label, "members": _written(groups)}
            if before is None or before.members != values["members"]:
                await uow.execute(upsert(cohorts).values(values).on_conflict_do_update(index_elements=["modality", "label"], set_=values))
            chosen |= counted(groups, now, smallest)
    return [row for row in found if row.item in chosen], smallest


async def forget(uow: UnitOfWork[Any], patients: Collection[str]) -> None:
    """Take the names of patients who are forgotten, and of their samples, out of what was counted; before their samples go."""
    gone, theirs = frozenset(patients), {row.item for row in await uow.all(select(items.c.item).where(items.c.patient.in_(patients)))}
    for row in await uow.all(select(cohorts)):
        which = (cohorts.c.modality == row.modality) & (cohorts.c.label == row.label)
        left = [one for one in row.members if one not in theirs] if _old(row.members) else _written(without(_groups(row.members), gone))
        await uow.execute(update(cohorts).where(which).values(members=left))


def _old(kept: Sequence[Any]) -> bool:
    """Whether it is of an earlier release, which kept the names of the samples that it counted."""
    return any(isinstance(one, str) for one in kept)


def _read(kept: Sequence[Any], now: Mapping[str, str], smallest: int, drawn: bytes) -> tuple[Group, ...]:
    """The groups of a class. Those whom an earlier release counted were told of: they come first, whoever else is there by now."""
    if not _old(kept):
        return _groups(kept)
    told = {sample: now[sample] for sample in kept if sample in now}
    return joined((), told, min(smallest, SMALL_CELL, len(set(told.values()))), drawn) if told else ()


def _groups(kept: Iterable[Mapping[str, Any]]) -> tuple[Group, ...]:
    return tuple(
        Group(one["level"], {patient: frozenset(those) for patient, those in one["members"].items()}, one["broken"]) for one in kept
    )


def _written(groups: Iterable[Group]) -> list[dict[str, Any]]:
    return [
        {"level": one.level, "members": {patient: sorted(those) for patient, those in one.members.items()}, "broken": one.broken}
        for one in groups
    ]
