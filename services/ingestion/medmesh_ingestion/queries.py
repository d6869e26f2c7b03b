"""What may be asked about data sets, here and in the hospitals."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import ColumnElement, Integer, exists, false, func, or_, select, true, type_coerce
from sqlalchemy.dialects.postgresql import JSONB

from medmesh.contracts.ingestion import Catalogue, DatasetView, Descriptor, DescriptorEntry, GetDataset, ListDescriptors, TableView
from medmesh.contracts.message import Envelope, ObjectRef
from medmesh.errors import Problem
from medmesh.security.access import Object
from medmesh.store.unit import UnitOfWork
from medmesh_ingestion.domain import release_digest
from medmesh_ingestion.ports import HANDLERS, Ports
from medmesh_ingestion.tables import descriptors, versions

_MOST = 500


@HANDLERS.answers(ListDescriptors)
async def list_descriptors(query: Envelope[ListDescriptors], uow: UnitOfWork[Ports]) -> Catalogue:
    """The last 500 of those asked for that the asker may see, newest first."""
    fits = _asked(query.data)
    wanted = select(descriptors).where(*fits).order_by(descriptors.c.published_at.desc(), descriptors.c.version.desc())
    rows = await uow.access.visible(uow, "descriptor", wanted, lambda row: f"{row.hospital}/{row.dataset}/{row.version}", _MOST)
    entries = (
        DescriptorEntry(hospital=row.hospital, descriptor=Descriptor.model_validate(row.descriptor), label=thing.label.record)
        for row, thing in rows
    )
    return Catalogue(descriptors=tuple(entries))


def _asked(asked: ListDescriptors) -> Iterator[ColumnElement[bool]]:
    """What of a descriptor must hold."""
    row, told = descriptors.c, type_coerce(descriptors.c.descriptor, JSONB)
    if asked.hospital is not None:
        yield row.hospital == asked.hospital
    if asked.name is not None:
        yield row.dataset.icontains(asked.name, autoescape=True)
    if asked.modality is not None:
        # Of `volume:MR` both are its modality: what kind of thing it is, and how it was made.
        modality, one = func.lower(told["modality"].astext), asked.modality.lower()
        yield or_(modality == one, modality.endswith(f":{one}", autoescape=True), modality.startswith(f"{one}:", autoescape=True))
    if asked.labelled is not None:
        label = func.jsonb_object_keys(told["labels"]).column_valued("label")
        yield exists(select(label).where(func.lower(label) == asked.labelled.lower()))
    if asked.disease is not None:
        # Descriptors have categories: who asks for J18.9 finds J18.
        code = func.jsonb_object_keys(told["diseases"]).column_valued("code")
        category = asked.disease.strip().upper().partition(".")[0]
        yield exists(select(code).where(func.split_part(code, "//", 2).startswith(category, autoescape=True)))
    for name, least in (("patients", asked.patients), ("samples", asked.samples)):
        if least is not None:
            yield told[name].astext.cast(Integer) >= least


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
        tables=tuple(TableView.model_validate(one) for one in row.tables),
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
