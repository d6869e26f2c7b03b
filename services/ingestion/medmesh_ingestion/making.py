"""A version comes to be: its number, its files, its message and its record, in one transaction."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Row, insert, select, update
from sqlalchemy.dialects.postgresql import insert as upsert

from medmesh.canonical import digest
from medmesh.contracts.ingestion import DatasetVersionCreated
from medmesh.contracts.labels import SecurityLabel
from medmesh.contracts.message import ObjectRef
from medmesh.service import files, labels
from medmesh.store.unit import AuditEntry, Entity, UnitOfWork
from medmesh_ingestion.domain import Sample, Table, label_counts
from medmesh_ingestion.ports import Ports
from medmesh_ingestion.tables import datasets, versions


@dataclass(frozen=True, slots=True)
class Found:
    """What a version is made of: stored samples and tables, how many files and rows were rejected for which reason, and which published
    set it is, if it is one."""

    samples: list[Sample]
    tables: list[Table]
    rejected: Mapping[str, int]
    about: Mapping[str, Any] | None
    files: Mapping[str, ObjectRef] = field(default_factory=dict)

    @property
    def whole(self) -> tuple[list[Sample], Mapping[str, Any] | None, list[Table], Mapping[str, ObjectRef]]:
        """As `content` takes it."""
        return self.samples, self.about, self.tables, self.files

    @property
    def objects(self) -> set[str]:
        """The SHA-256 of everything it needs."""
        parts = {part.object.sha256 for table in self.tables for part in table.parts}
        parts |= {ref.sha256 for ref in self.files.values()}
        return parts | {sha256 for sample in self.samples for sha256 in sample.objects}


@dataclass(frozen=True, slots=True)
class Origin:
    """What a version was made from: its digest, the kind of thing that is, and what the record says of it."""

    sha256: str
    kind: str
    detail: Mapping[str, Any]
    label: SecurityLabel | None = None

    @property
    def key(self) -> str:
        """The digest that no two versions of a data set share: of an archive, and of how it was read where that was not the usual way."""
        return digest({"archive": self.sha256, "volumes": True}) if self.detail.get("volumes") else self.sha256


async def version_of(uow: UnitOfWork[Ports], dataset: str, origin: str) -> Row[Any] | None:
    return await uow.first(select(versions).where((versions.c.dataset == dataset) & (versions.c.archive == origin)))


async def create(uow: UnitOfWork[Ports], dataset: str, origin: Origin, manifest: ObjectRef, found: Found) -> int:
    """The number of the version, made unless another process was faster."""
    await uow.execute(upsert(datasets).values(dataset=dataset, newest=0, created_at=uow.now).on_conflict_do_nothing())
    this = datasets.c.dataset == dataset
    row = await uow.first(select(datasets.c.newest).where(this).with_for_update())
    assert row is not None
    if (known := await version_of(uow, dataset, origin.key)) is not None:
        uow.unchanged()
        return int(known.version)
    version, counts = int(row.newest) + 1, label_counts(found.samples)
    # Nobody has seen what is in the archive: it may hold anything that whoever sends it could read.
    await labels.made(uow, "dataset", dataset, wanted=origin.label, outside=True)
    await files.keep(uow, "dataset", dataset, [manifest.sha256, *found.objects])
    await uow.execute(update(datasets).where(this).values(newest=version))
    values = {
        "dataset": dataset,
        "version": version,
        "archive": origin.key,
        "content": manifest.model_dump(),
        "samples": len(found.samples),
        "labels": counts,
        "rejected": dict(found.rejected),
        "tables": [table.told for table in found.tables],
        "created_at": uow.now,
        "maker": uow.actor.text,
        "organisation": uow.actor.organisation,
    }
    await uow.execute(insert(versions).values(values))
    facts = {"samples": len(found.samples), "rejected": sum(found.rejected.values()), "rows": sum(table.rows for table in found.tables)}
    uow.emit(DatasetVersionCreated(dataset=dataset, version=version, content=manifest, labels=counts, **facts))
    entities = (
        Entity("dataset", dataset, version=str(version), digest=manifest.sha256),
        Entity(origin.kind, origin.sha256, digest=origin.sha256),
    )
    uow.audit(AuditEntry("dataset.create", "C", entities=entities, detail={**facts, **origin.detail}))
    return version


async def erase(ports: Ports, archive: ObjectRef) -> None:
    """Forget an original. A crash before this leaves the message unacknowledged, so that it comes again and gets here."""
    for place in (ports.stores.kept, ports.stores.scratch):
        await place.delete(archive.sha256)
