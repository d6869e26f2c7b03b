"""What may be asked about data sets, here and in the hospitals."""

from __future__ import annotations

from sqlalchemy import select

from medmesh.contracts.ingestion import Catalogue, DatasetView, Descriptor, DescriptorEntry, GetDataset, ListDescriptors
from medmesh.contracts.message import Envelope, ObjectRef
from medmesh.errors import Problem
from medmesh.security.access import Object
from medmesh.store.unit import UnitOfWork
from medmesh_ingestion.ports import HANDLERS, Ports
from medmesh_ingestion.tables import descriptors, versions

_MOST = 500


@HANDLERS.answers(ListDescriptors)
async def list_descriptors(_query: Envelope[ListDescriptors], uow: UnitOfWork[Ports]) -> Catalogue:
    """The last 500 that the asker may see, newest first."""
    wanted = select(descriptors).order_by(descriptors.c.published_at.desc(), descriptors.c.version.desc())
    rows = await uow.access.visible(uow, "descriptor", wanted, lambda row: f"{row.hospital}/{row.dataset}/{row.version}", _MOST)
    entries = (
        DescriptorEntry(hospital=row.hospital, descriptor=Descriptor.model_validate(row.descriptor), label=thing.label.record)
        for row, thing in rows
    )
    return Catalogue(descriptors=tuple(entries))


@HANDLERS.knows("content")
async def content(sha256: str, uow: UnitOfWork[Ports]) -> Object | None:
    """What a content document is: a version of a data set, with that one's label."""
    row = await uow.first(select(versions.c.dataset).where(versions.c.content["sha256"].as_string() == sha256).limit(1))
    return None if row is None else Object("dataset", row.dataset)


@HANDLERS.answers(GetDataset)
async def get_dataset(query: Envelope[GetDataset], uow: UnitOfWork[Ports]) -> DatasetView:
    """One version; 0 is the newest."""
    wanted = query.data
    found = select(versions).where(versions.c.dataset == wanted.dataset)
    if wanted.version:
        # The column has 32 bits; no version has a larger number.
        found = found.where(versions.c.version == max(-1, min(wanted.version, 2**31 - 1)))
    row = await uow.first(found.order_by(versions.c.version.desc()).limit(1))
    if row is None:
        raise Problem("request.not_found", kind="data set", id=wanted.dataset + (f" version {wanted.version}" if wanted.version else ""))
    return DatasetView(
        dataset=row.dataset,
        version=row.version,
        content=ObjectRef.model_validate(row.content),
        samples=row.samples,
        labels=row.labels,
        rejected=row.rejected,
    )
