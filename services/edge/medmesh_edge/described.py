"""What the hospital tells of its data sets: counts, never samples, and none of a few."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import Any

from sqlalchemy import select

from medmesh.contracts.ingestion import SMALL_CELL, Descriptor
from medmesh.errors import Problem
from medmesh.security.keys import read_secret
from medmesh.store.unit import AuditEntry, Entity, UnitOfWork
from medmesh.timeline import records
from medmesh.timeline.codes import category
from medmesh.timeline.identity import subject_of
from medmesh_edge import samples, timeline
from medmesh_edge.ethics import usable
from medmesh_edge.outgoing import queue
from medmesh_edge.ports import Site
from medmesh_edge.tables import datasets


async def publish(site: Site, dataset: str, *, within: bool = False, project: str = "") -> Descriptor:
    """Queue the descriptor for the platform's catalogue, or with `within` for the hospital's own people there. With the timelines of a
    `project` it says what the patients are ill with, and the record of the question commits with it. Raises `Problem`
    (`timeline.nobody`)."""
    told = await descriptor(site, dataset)
    patients = {row.patient for row in await samples.held(site, dataset)} if project else set()
    async with site.unit() as uow:
        if project:
            told = told.model_copy(update={"diseases": await diseases(uow, site, project, patients)})
            about = (timeline.dataset(site, project), Entity("dataset", f"{site.settings.hospital}/{dataset}", str(told.version)))
            uow.audit(AuditEntry("timeline.ask", "E", entities=about, detail={"categories": len(told.diseases)}))
        await queue(uow, "/v1/catalogue", {"descriptor": told.model_dump(mode="json"), "within": within})
    return told


async def descriptor(site: Site, dataset: str) -> Descriptor:
    """Counts of what may be used today, small ones hidden."""
    found = await samples.held(site, dataset)
    async with site.unit() as uow:
        version = (await uow.execute(select(datasets.c.version).where(datasets.c.dataset == dataset))).scalar_one_or_none() or 1
    modality = Counter(row.modality for row in found).most_common(1)
    labels = Counter(row.label for row in found if row.label)
    kind = modality[0][0] if modality else ""
    return Descriptor(
        dataset=dataset,
        version=version,
        modality=kind,
        samples=_hidden(len(found)),
        patients=_hidden(len({row.patient for row in found})),
        labels={label: _hidden(number) for label, number in sorted(labels.items())},
        deidentification=_declared(kind, site.settings.deidentification),
    )


async def diseases(uow: UnitOfWork[Any], site: Site, project: str, patients: Collection[str]) -> dict[str, int]:
    """How many of these patients (pseudonyms) have a diagnosis of each category in a project's timelines, under approvals that are valid
    today; those of at least `SMALL_CELL` alone. Who has several numbers that were merged is one. Raises `Problem` (`timeline.nobody`)."""
    key = read_secret(site.layout.site_key).strip()
    if not await records.people(uow, project):
        raise Problem("timeline.nobody", project=project)
    only = [subject_of(patient, key) for patient in patients]
    found: Counter[str] = Counter()
    async for _, events in records.stream(
        uow, project, timeline.PatientVault(site), only=only, texts=False, usable=await usable(uow, site)
    ):
        found.update({name for event in events if (name := category(event.code))})
    return {name: number for name, number in sorted(found.items()) if number >= SMALL_CELL}


def _hidden(number: int) -> int | None:
    return None if number < SMALL_CELL else number


def _declared(kind: str, options: str) -> str:
    if kind.startswith("table:"):
        return "allow-list of columns"
    if kind.startswith("text:"):
        return "by rules, doubts by a person"
    if kind.startswith(("volume:", "signal:")):
        return "samples and geometry alone; headers rewritten"
    return f"PS3.15 Basic Profile; {options}" if options else "PS3.15 Basic Profile"
