"""What the hospital tells of its data sets: counts, never samples, and none of a few."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from typing import Any

from sqlalchemy import select

from medmesh.contracts.ingestion import SMALL_CELL, Descriptor
from medmesh.errors import Problem
from medmesh.federated.cells import rounded
from medmesh.security.keys import read_secret
from medmesh.store.unit import AuditEntry, Entity, UnitOfWork
from medmesh.timeline import records
from medmesh.timeline.codes import category
from medmesh.timeline.identity import subject_of
from medmesh_edge import counting, samples, timeline
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
    """Counts of what may be used today, rounded; those of few patients hidden."""
    found = await samples.held(site, dataset)
    async with site.unit() as uow:
        version = (await uow.execute(select(datasets.c.version).where(datasets.c.dataset == dataset))).scalar_one_or_none() or 1
    modality = Counter(row.modality for row in found).most_common(1)
    by_label: dict[str, Counter[str]] = defaultdict(Counter)
    for row in found:
        if row.label:
            by_label[row.label][row.patient] += 1
    patients, key = Counter(row.patient for row in found), counting.key(site)
    kind = modality[0][0] if modality else ""
    return Descriptor(
        dataset=dataset,
        version=version,
        modality=kind,
        samples=_told(patients, key),
        patients=_told(dict.fromkeys(patients, 1), key),
        labels={label: _told(many, key) for label, many in sorted(by_label.items())},
        deidentification=_declared(kind, site.settings.deidentification),
    )


async def diseases(uow: UnitOfWork[Any], site: Site, project: str, patients: Collection[str]) -> dict[str, int]:
    """How many of these patients (pseudonyms) have a diagnosis of each category in a project's timelines, under approvals that are valid
    today, rounded; those of at least `SMALL_CELL` alone. Who has several numbers that were merged is one. Raises `Problem`
    (`timeline.nobody`)."""
    key = read_secret(site.layout.site_key).strip()
    if not await records.people(uow, project):
        raise Problem("timeline.nobody", project=project)
    only = [subject_of(patient, key) for patient in patients]
    found: dict[str, dict[str, int]] = defaultdict(dict)
    async for subject, events in records.stream(
        uow, project, timeline.PatientVault(site), only=only, texts=False, usable=await usable(uow, site)
    ):
        for event in events:
            if name := category(event.code):
                found[name][str(subject)] = 1
    told = {name: _told(ill, counting.key(site)) for name, ill in sorted(found.items())}
    return {name: number for name, number in told.items() if number is not None}


def _told(samples: Mapping[str, int], key: bytes) -> int | None:
    """How many samples these patients have. Each number is rounded by itself, the whole like its parts: what is hidden is not their
    difference, nor a patient that of two versions."""
    return None if len(samples) < SMALL_CELL else rounded(samples, SMALL_CELL, key)


def _declared(kind: str, options: str) -> str:
    if kind.startswith("table:"):
        return "allow-list of columns"
    if kind.startswith("text:"):
        return "by rules, doubts by a person"
    if kind.startswith(("volume:", "signal:")):
        return "samples and geometry alone; headers rewritten"
    return f"PS3.15 Basic Profile; {options}" if options else "PS3.15 Basic Profile"
