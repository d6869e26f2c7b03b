"""A version leaves its maker's hands: after a second person's approval of exactly its content."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row, select, update

from medmesh.contracts.governance import ApprovalGranted, ApprovalRevoked
from medmesh.contracts.ingestion import DatasetReleased
from medmesh.contracts.message import Envelope, ObjectRef
from medmesh.errors import Problem
from medmesh.security.access import EVERYBODY
from medmesh.service import labels
from medmesh.service.approved import read_target, spend, target_of
from medmesh.store.unit import AuditEntry, Entity, UnitOfWork
from medmesh_ingestion.domain import release_digest
from medmesh_ingestion.ports import HANDLERS, Ports
from medmesh_ingestion.tables import versions

ACTION = "dataset.release"


@HANDLERS.on(ApprovalGranted, durable="dataset-approved")
async def release_approved(event: Envelope[ApprovalGranted], uow: UnitOfWork[Ports]) -> None:
    """Release what was approved. A grant that does not fit raises (a dead letter) and changes nothing."""
    grant = event.data
    if grant.action != ACTION:
        return
    row = await _version(uow, *read_target(grant.target, "data set"))
    target, content = target_of(row.dataset, row.version), ObjectRef.model_validate(row.content)
    digest = release_digest(row.dataset, row.version, content.sha256)
    found = await spend(uow, grant, uow.ports.trust(), uow.ports.roster(), target=target, digest=digest, asked_by=row.maker)
    if row.released_at is not None:
        raise Problem("ingestion.released", dataset=row.dataset, version=row.version)
    this = (versions.c.dataset == row.dataset) & (versions.c.version == row.version)
    await uow.execute(update(versions).where(this).values(approval=found.id, released_at=uow.now))
    # Other organisations may use it from now on, as far as its label lets them.
    await labels.share(uow, "dataset", row.dataset, (EVERYBODY,))
    uow.emit(DatasetReleased(dataset=row.dataset, version=row.version, content=content, approval=found.id))
    entity = Entity("dataset", row.dataset, version=str(row.version), digest=content.sha256)
    whose = () if row.organisation == "platform" else (row.organisation,)
    uow.audit(AuditEntry(ACTION, "E", entities=(entity,), hospitals=whose, approval=found.evidence()))


@HANDLERS.on(ApprovalRevoked, durable="dataset-revoked")
async def release_revoked(event: Envelope[ApprovalRevoked], uow: UnitOfWork[Ports]) -> None:
    """Taken back: a grant that is still on its way comes too late. What was released stays released."""
    if event.data.action == ACTION:
        await uow.withhold_approval(event.data.approval)


async def _version(uow: UnitOfWork[Ports], dataset: str, version: int) -> Row[Any]:
    this = (versions.c.dataset == dataset) & (versions.c.version == version)
    if (row := await uow.first(select(versions).where(this).with_for_update())) is None:
        raise Problem("request.not_found", kind="data set", id=target_of(dataset, version)[:128])
    return row
