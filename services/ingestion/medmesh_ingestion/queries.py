"""What may be asked about data sets, here and in the hospitals."""

from __future__ import annotations

from sqlalchemy import ColumnElement, false, or_, select, true

from medmesh.contracts.ingestion import Catalogue, DatasetView, Descriptor, DescriptorEntry, GetDataset, ListDescriptors
from medmesh.contracts.message import Envelope, ObjectRef
from medmesh.errors import Problem
from medmesh.security.access import Object
from medmesh.store.unit import UnitOfWork
from medmesh_ingestion.domain import release_digest
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
    """One version; 0 is the newest of those the actor may see."""
    wanted = query.data
    found = select(versions).where(versions.c.dataset == wanted.dataset, seen(uow))
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
        maker=row.maker,
        released=row.released_at is not None,
        release_digest=release_digest(row.dataset, row.version, row.content["sha256"]),
    )


def seen(uow: UnitOfWork[Ports]) -> ColumnElement[bool]:
    """Services see every version, people what was released and their own; an emergency access opens its organisation's, whatever else
    its person may see, and nothing of others to who may see nothing."""
    actor, decision = uow.actor, uow.context.decision
    if actor.kind == "service":
        return true()
    theirs = versions.c.organisation == actor.emergency.organisation if actor.emergency else false()
    if decision is not None and decision.rule == "emergency":
        return theirs
    return or_(versions.c.released_at.is_not(None), versions.c.maker == actor.text, theirs)
