"""Archives become versions of data sets; hospitals publish what they hold."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.dialects.postgresql import insert as upsert

from medmesh.canonical import digest, parse
from medmesh.contracts.ingestion import (
    Descriptor,
    DescriptorPublished,
    IngestArchive,
    PublishDescriptor,
    SplitVersion,
)
from medmesh.contracts.message import Envelope, ObjectRef
from medmesh.errors import Problem
from medmesh.security.access import EVERYBODY
from medmesh.security.labels import Label, Level
from medmesh.service import labels
from medmesh.service.dispatch import Work
from medmesh.store.objects.port import ObjectStore, fetch, load
from medmesh.store.unit import AuditEntry, Entity, UnitOfWork
from medmesh_ingestion.domain import Sample, check_descriptor, content, samples_of, tables_of
from medmesh_ingestion.making import Found, Origin, create, erase, version_of
from medmesh_ingestion.ports import HANDLERS, Ports
from medmesh_ingestion.queries import seen
from medmesh_ingestion.splitting import placed, sides, units_of
from medmesh_ingestion.tables import descriptors, versions


@HANDLERS.slow(IngestArchive)
async def ingest_archive(command: Envelope[IngestArchive], work: Work[Ports]) -> dict[str, Any]:
    """A version of the data set with what could be kept; the same archive again answers the version it became.

    Every step before the last transaction gives the same objects when it is done again. The archive names patients: it is erased
    as soon as it is a version, or refused for what its files hold.
    """
    wanted = command.data
    origin = Origin(wanted.archive.sha256, "archive", {"volumes": True} if wanted.volumes else {}, wanted.label)
    async with work.unit() as uow:
        known = await version_of(uow, wanted.dataset, origin.key)
    if known is None:
        found = await _taken_in(wanted, work.ports)
        manifest = await work.ports.stores.kept.put(await asyncio.to_thread(content, *found.whole), "application/json")
        async with work.finish() as uow:
            work.result = {"dataset": wanted.dataset, "version": await create(uow, wanted.dataset, origin, manifest, found)}
    else:
        work.result = {"dataset": wanted.dataset, "version": known.version}
        work.unchanged()
    await erase(work.ports, wanted.archive)
    return work.result


async def _taken_in(wanted: IngestArchive, ports: Ports) -> Found:
    """What could be kept of an archive, stored.

    Raises `Problem`, and has stored nothing.
    """
    from medmesh.importing.cleaning import Project
    from medmesh.importing.sources import Limits
    from medmesh_ingestion.archive import opened_archive
    from medmesh_ingestion.intake import holds_images, private_folder, store, take_in  # decoders: not before the first archive
    from medmesh_ingestion.layouts import layout_of, take_in_layout
    from medmesh_ingestion.rows import store_tables

    source = await ports.stores.holding(wanted.archive.sha256)
    size = await source.size(wanted.archive.sha256) or 0
    if size > ports.settings.max_bytes:
        raise Problem("ingestion.archive_too_large", what="bytes", limit=ports.settings.max_bytes)
    async with private_folder(ports.folder) as folder:
        archive = await fetch(source, wanted.archive, folder / "archive")
        (folder / "files").mkdir()
        settings = ports.settings
        limits = Limits(settings.max_files, settings.max_bytes, settings.max_ratio)
        layout = await asyncio.to_thread(layout_of, archive, limits)
        with ExitStack() as stack:
            files = None if layout is not None else await asyncio.to_thread(stack.enter_context, opened_archive(archive, limits))
            intended = files is None or await asyncio.to_thread(holds_images, files)
            try:
                if layout is not None:
                    found = await take_in_layout(archive, layout, folder / "files", ports.key, limits, settings.max_file_bytes)
                else:
                    assert files is not None
                    project = Project(ports.key, settings.deidentification, published=True, volumes=wanted.volumes)
                    found = await take_in(files, folder / "files", project, settings.max_file_bytes)
            except Problem as problem:
                # Corrected, it will be another object: nobody would ever come back for this one. What holds no image, or cannot be
                # read, may be anybody's object that was named by mistake or on purpose, and stays.
                if intended and (files is None or not problem.code.startswith("importing.")):
                    await erase(ports, wanted.archive)
                raise
        samples, tables = await store(found.kept, ports.stores.kept), await store_tables(found.tables, ports.stores.kept)
        return Found(samples, tables, found.rejected, found.about)


@HANDLERS.slow(SplitVersion)
async def split_version(command: Envelope[SplitVersion], work: Work[Ports]) -> dict[str, Any]:
    """The same items, split; the same split again answers the version it became."""
    wanted = command.data
    if not wanted.ratios[0] or not any(wanted.ratios[1:]):
        raise Problem("request.invalid", reason="ratios: some for train, and some for val or test")
    async with work.unit() as uow:
        row = await uow.first(select(versions).where(versions.c.dataset == wanted.dataset, versions.c.version == wanted.version, seen(uow)))
    if row is None:
        raise Problem("request.not_found", kind="data set", id=f"{wanted.dataset} version {wanted.version}")
    from medmesh_ingestion.intake import private_folder
    from medmesh_ingestion.rows import fetch_parts, resplit_tables, units_of_rows

    kept = work.ports.stores.kept
    whole = ObjectRef.model_validate(row.content)
    document = parse(await load(kept, whole, limit=whole.bytes))
    samples, tables = samples_of(document), tables_of(document)
    if not samples and not any(table.is_split for table in tables):
        raise Problem("ingestion.split_nothing", dataset=wanted.dataset, version=wanted.version)
    groups = {sample.item: sample.facts.group for sample in samples if sample.facts and sample.facts.group}
    groups |= await patients([sample for sample in samples if not sample.facts], kept)
    ratios = dict(zip(("train", "val", "test"), wanted.ratios, strict=True))
    async with private_folder(work.ports.folder) as folder:
        await fetch_parts(tables, kept, folder)
        rows = await asyncio.to_thread(units_of_rows, tables, folder, _same_side(document))
        units = [*units_of(samples, groups), *rows]
        found = await asyncio.to_thread(sides, units, ratios, wanted.seed, anew=wanted.anew)
        split_ = await resplit_tables(tables, found, kept, folder)
        made = Found(placed(samples, groups, found), split_, row.rejected, document.get("about"))
    manifest = await kept.put(await asyncio.to_thread(content, *made.whole), "application/json")
    # Not the bytes of an archive, but as much as them what this version was made from.
    origin = digest({"split": whole.sha256, "ratios": list(wanted.ratios), "seed": wanted.seed, "anew": wanted.anew})
    parent = Origin(origin, "version", {"from": wanted.version})
    async with work.finish() as uow:
        work.result = {"dataset": wanted.dataset, "version": await create(uow, wanted.dataset, parent, manifest, made)}
    return work.result


def _same_side(document: Mapping[str, Any]) -> Mapping[str, str]:
    """Published splits that are a part of another one."""
    from medmesh.importing import registry

    layout = (document.get("about") or {}).get("layout")
    return registry.named(layout).same_side if layout else {}


async def patients(samples: Sequence[Sample], store: ObjectStore) -> dict[str, str]:
    """Item to the pseudonym of its patient, which stands in the object; an image that came by itself is a patient of its own."""
    if not samples:
        return {}
    from medmesh.imaging import reading  # decoders: not before they are needed

    found = {}
    for sample in samples:
        data = await load(store, sample.object, limit=sample.object.bytes)
        found[sample.item] = str(reading.read(data).PatientID)
    return found


@HANDLERS.on(PublishDescriptor)
async def publish_descriptor(command: Envelope[PublishDescriptor], uow: UnitOfWork[Ports]) -> dict[str, Any]:
    """A hospital's counts of one version; published again they are a no-op, published otherwise they are refused. What its patients are ill
    with is told anew as the hospital learns it: that is no part of the version."""
    wanted, hospital = command.data.descriptor, uow.actor.organisation
    check_descriptor(wanted)
    document = wanted.model_dump(mode="json")
    answer = {"hospital": hospital, "dataset": wanted.dataset, "version": wanted.version}
    made = await uow.execute(upsert(descriptors).values(**answer, descriptor=document, published_at=uow.now).on_conflict_do_nothing())
    if made.rowcount == 0:
        own = (descriptors.c.hospital == hospital) & (descriptors.c.dataset == wanted.dataset) & (descriptors.c.version == wanted.version)
        row = await uow.first(select(descriptors.c.descriptor).where(own).with_for_update())
        before = None if row is None else Descriptor.model_validate(row.descriptor)
        if before is None or before.model_copy(update={"diseases": wanted.diseases}) != wanted:
            raise Problem("ingestion.descriptor_changed", dataset=wanted.dataset, version=wanted.version)
        if before == wanted:
            uow.unchanged()
            return answer
        await uow.execute(update(descriptors).where(own).values(descriptor=document))
    # To publish is to share counts with everybody; a hospital may keep them to its own people instead.
    label = Label(Level.INTERNAL, frozenset({hospital})) if command.data.within else labels.DEFAULT
    seen = () if command.data.within else (EVERYBODY,)
    name = f"{hospital}/{wanted.dataset}/{wanted.version}"
    await labels.give(uow, "descriptor", name, label, owner=hospital, organisations=seen, maker=uow.actor.text)
    uow.emit(DescriptorPublished(hospital=hospital, descriptor=wanted))
    entity = Entity("descriptor", f"{hospital}/{wanted.dataset}", version=str(wanted.version), digest=digest(document))
    uow.audit(AuditEntry("catalogue.publish", "C" if made.rowcount else "U", entities=(entity,)))
    return answer
