"""Archives become versions of data sets; hospitals publish what they hold."""

from __future__ import annotations

import asyncio
from typing import Any

from sqlalchemy import Row, insert, select, update
from sqlalchemy.dialects.postgresql import insert as upsert

from medmesh.canonical import digest
from medmesh.contracts.ingestion import DatasetVersionCreated, DescriptorPublished, IngestArchive, PublishDescriptor
from medmesh.contracts.message import Envelope, ObjectRef
from medmesh.errors import Problem
from medmesh.security.access import EVERYBODY
from medmesh.security.labels import Label, Level
from medmesh.security.residue import wipe
from medmesh.service import files, labels
from medmesh.service.dispatch import Work
from medmesh.store.objects.port import fetch
from medmesh.store.unit import AuditEntry, Entity, UnitOfWork
from medmesh_ingestion.archive import Limits, unpack
from medmesh_ingestion.domain import Sample, check_descriptor, content, label_counts
from medmesh_ingestion.ports import HANDLERS, Ports
from medmesh_ingestion.tables import datasets, descriptors, versions


@HANDLERS.slow(IngestArchive)
async def ingest_archive(command: Envelope[IngestArchive], work: Work[Ports]) -> dict[str, Any]:
    """A version of the data set with what could be kept; the same archive again answers the version it became.

    Every step before the last transaction gives the same objects when it is done again. The archive names patients: it is erased
    as soon as it is a version, or refused for what its files hold.
    """
    wanted = command.data
    async with work.unit() as uow:
        known = await _version(uow, wanted)
    if known is None:
        samples, rejected = await _samples(wanted, work.ports)
        manifest = await work.ports.stores.kept.put(await asyncio.to_thread(content, samples), "application/json")
        async with work.finish() as uow:
            work.result = {"dataset": wanted.dataset, "version": await _create(uow, wanted, manifest, samples, rejected)}
    else:
        work.result = {"dataset": wanted.dataset, "version": known.version}
        work.unchanged()
    await _erase(work.ports, wanted.archive)
    return work.result


async def _samples(wanted: IngestArchive, ports: Ports) -> tuple[list[Sample], dict[str, int]]:
    """The stored samples of an archive, and how many files were rejected for which reason. Raises `Problem`, and has stored nothing."""
    from medmesh_ingestion.intake import holds_images, private_folder, store, take_in  # decoders: not before the first archive

    source = await ports.stores.holding(wanted.archive.sha256)
    size = await source.size(wanted.archive.sha256) or 0
    if size > ports.settings.max_bytes:
        raise Problem("ingestion.archive_too_large", what="bytes", limit=ports.settings.max_bytes)
    async with private_folder(ports.folder) as folder:
        archive = await fetch(source, wanted.archive, folder / "archive")
        (folder / "files").mkdir()
        settings = ports.settings
        limits = Limits(settings.max_files, settings.max_bytes, settings.max_ratio)
        files = await asyncio.to_thread(unpack, archive, folder / "files", limits)
        wipe(archive)
        intended = await asyncio.to_thread(holds_images, files)
        try:
            kept, rejected = await take_in(files, ports.key, settings.max_file_bytes, settings.deidentification)
        except Problem:
            # Corrected, it will be another object: nobody would ever come back for this one. What holds no image may be
            # anybody's object that was named by mistake or on purpose, and stays.
            if intended:
                await _erase(ports, wanted.archive)
            raise
        return await store(kept, ports.stores.kept), rejected


async def _version(uow: UnitOfWork[Ports], wanted: IngestArchive) -> Row[Any] | None:
    same = (versions.c.dataset == wanted.dataset) & (versions.c.archive == wanted.archive.sha256)
    return await uow.first(select(versions).where(same))


async def _create(
    uow: UnitOfWork[Ports], wanted: IngestArchive, manifest: ObjectRef, samples: list[Sample], rejected: dict[str, int]
) -> int:
    """The number of the version, made unless another process was faster."""
    await uow.execute(upsert(datasets).values(dataset=wanted.dataset, newest=0, created_at=uow.now).on_conflict_do_nothing())
    this = datasets.c.dataset == wanted.dataset
    row = await uow.first(select(datasets.c.newest).where(this).with_for_update())
    assert row is not None
    if (known := await _version(uow, wanted)) is not None:
        uow.unchanged()
        return int(known.version)
    version, counts = int(row.newest) + 1, label_counts(samples)
    # Nobody has seen what is in the archive: it may hold anything that whoever sends it could read.
    await labels.made(uow, "dataset", wanted.dataset, wanted=wanted.label, outside=True)
    await files.keep(uow, "dataset", wanted.dataset, [manifest.sha256, *(sample.object.sha256 for sample in samples)])
    await uow.execute(update(datasets).where(this).values(newest=version))
    values = {
        "dataset": wanted.dataset,
        "version": version,
        "archive": wanted.archive.sha256,
        "content": manifest.model_dump(),
        "samples": len(samples),
        "labels": counts,
        "rejected": rejected,
        "created_at": uow.now,
        "maker": uow.actor.text,
        "organisation": uow.actor.organisation,
    }
    await uow.execute(insert(versions).values(values))
    refused = sum(rejected.values())
    uow.emit(
        DatasetVersionCreated(
            dataset=wanted.dataset, version=version, content=manifest, samples=len(samples), rejected=refused, labels=counts
        )
    )
    entities = (
        Entity("dataset", wanted.dataset, version=str(version), digest=manifest.sha256),
        Entity("archive", wanted.archive.sha256, digest=wanted.archive.sha256),
    )
    uow.audit(AuditEntry("dataset.create", "C", entities=entities, detail={"samples": len(samples), "rejected": refused}))
    return version


async def _erase(ports: Ports, archive: ObjectRef) -> None:
    """Forget an original. A crash before this leaves the message unacknowledged, so that it comes again and gets here."""
    for place in (ports.stores.kept, ports.stores.scratch):
        await place.delete(archive.sha256)


@HANDLERS.on(PublishDescriptor)
async def publish_descriptor(command: Envelope[PublishDescriptor], uow: UnitOfWork[Ports]) -> dict[str, Any]:
    """A hospital's counts of one version; published again they are a no-op, published otherwise they are refused."""
    wanted, hospital = command.data.descriptor, uow.actor.organisation
    check_descriptor(wanted)
    document = wanted.model_dump(mode="json")
    answer = {"hospital": hospital, "dataset": wanted.dataset, "version": wanted.version}
    made = await uow.execute(upsert(descriptors).values(**answer, descriptor=document, published_at=uow.now).on_conflict_do_nothing())
    if made.rowcount == 0:
        own = (descriptors.c.hospital == hospital) & (descriptors.c.dataset == wanted.dataset) & (descriptors.c.version == wanted.version)
        before = await uow.first(select(descriptors.c.descriptor).where(own))
        if before is None or before.descriptor != document:
            raise Problem("ingestion.descriptor_changed", dataset=wanted.dataset, version=wanted.version)
        uow.unchanged()
        return answer
    # To publish is to share counts with everybody; a hospital may keep them to its own people instead.
    label = Label(Level.INTERNAL, frozenset({hospital})) if command.data.within else labels.DEFAULT
    seen = () if command.data.within else (EVERYBODY,)
    name = f"{hospital}/{wanted.dataset}/{wanted.version}"
    await labels.give(uow, "descriptor", name, label, owner=hospital, organisations=seen, maker=uow.actor.text)
    uow.emit(DescriptorPublished(hospital=hospital, descriptor=wanted))
    entity = Entity("descriptor", f"{hospital}/{wanted.dataset}", version=str(wanted.version), digest=digest(document))
    uow.audit(AuditEntry("catalogue.publish", "C", entities=(entity,)))
    return answer
