"""Exports: asked for, approved for their exact digest, built from the log as it stood, kept as one object, fetched by who asked.

Whatever the format, the file holds the evidence: tree, entry headers, and each record with salt, body and inclusion proof, laid
out as a copy of the log, so that whatever verifies a copy verifies an export.
"""

from __future__ import annotations

import asyncio
from typing import Any

from sqlalchemy import insert, select, update

from medmesh.contracts.audit import EventFilter, ExportFinished, ExportView, GetExport, RequestExport
from medmesh.contracts.governance import ApprovalGranted, ApprovalRefused
from medmesh.contracts.message import Envelope, ObjectRef, new_id
from medmesh.errors import Problem
from medmesh.security import approvals
from medmesh.service.approved import spend
from medmesh.store.unit import AuditEntry, Entity, UnitOfWork
from medmesh.telemetry import log
from medmesh_audit import search
from medmesh_audit.domain import scope
from medmesh_audit.ports import HANDLERS, Ports
from medmesh_audit.tables import exports

ACTION = "audit.export"


@HANDLERS.on(RequestExport)
async def request_export(command: Envelope[RequestExport], uow: UnitOfWork[Ports]) -> dict[str, Any]:
    """Fix what would be exported. Result: `{"export", "digest", "request"}`; the digest binds all of `request`."""
    wanted = command.data
    request = {
        "export": new_id(),
        "requester": uow.actor.text,
        "scope": scope(uow.actor) or "",
        "format": wanted.format,
        "filter": wanted.filter.model_dump(mode="json", exclude_none=True),
        "complete": wanted.complete,
    }
    digest = approvals.request_digest(request)
    values = {
        "export": request["export"],
        "requester": request["requester"],
        "scope": request["scope"],
        "format": request["format"],
        "filters": request["filter"],
        "complete": request["complete"],
        "digest": digest,
        "state": "waiting",
        "approval": "",
        "size": 0,
        "done": 0,
        "code": "",
        "created_at": uow.now,
    }
    await uow.execute(insert(exports).values(values))
    uow.audit(AuditEntry(ACTION, "C", entities=(_entity(request["export"], digest),), detail={"format": wanted.format, "state": "waiting"}))
    return {"export": request["export"], "digest": digest, "request": request}


@HANDLERS.on(ApprovalGranted, durable="export-approved")
async def export_approved(event: Envelope[ApprovalGranted], uow: UnitOfWork[Ports]) -> None:
    """A second person approved exactly this request. A grant that does not fit raises (a dead letter) and changes nothing."""
    grant = event.data
    if grant.action != ACTION:
        return
    row = await _row(uow, grant.target, lock=True)
    trust, roster = uow.ports.trust(), uow.ports.runtime.roster()
    found = await spend(uow, grant, trust, roster, target=row.export, digest=row.digest, maker=row.requester)
    if row.state != "waiting":
        raise Problem("audit.export_closed", export=row.export, state=row.state)
    size = (await uow.ports.witnesses.newest(uow)).size
    await uow.execute(update(exports).where(exports.c.export == row.export).values(state="approved", approval=found.id, size=size))
    detail: dict[str, str | int | bool] = {"format": row.format, "state": "approved", "size": size}
    uow.audit(
        AuditEntry(
            ACTION, "U", entities=(_entity(row.export, row.digest),), approval=found.evidence(), hospitals=_whose(row), detail=detail
        )
    )
    uow.on_commit(uow.ports.wake.set)


@HANDLERS.on(ApprovalRefused, durable="export-refused")
async def export_refused(event: Envelope[ApprovalRefused], uow: UnitOfWork[Ports]) -> None:
    """An approver refused it."""
    said = event.data
    if said.action != ACTION:
        return
    fits = (exports.c.export == said.target) & (exports.c.digest == said.digest) & (exports.c.state == "waiting")
    done = await uow.execute(update(exports).where(fits).values(state="refused", approval=said.approval, finished_at=uow.now))
    if done.rowcount:
        refused = {"id": said.approval, "digest": said.digest}
        uow.audit(AuditEntry(ACTION, "U", 4, "audit.export_refused", (_entity(said.target, said.digest),), approval=refused))


@HANDLERS.answers(GetExport)
async def get_export(query: Envelope[GetExport], uow: UnitOfWork[Ports]) -> ExportView:
    """How an export stands; who sees all of its organisation's records may ask."""
    return view(await visible(uow, query.data.export, scope(uow.actor)))


async def visible(uow: UnitOfWork[Any], export: str, within: str | None) -> Any:
    """The row of an export. Raises `Problem`; one of another organisation is not there."""
    row = await _row(uow, export)
    if within is not None and row.scope != within:
        raise Problem("request.not_found", kind="export", id=export)
    return row


def view(row: Any) -> ExportView:
    """A row as it is answered."""
    return ExportView(
        export=row.export,
        requester=row.requester,
        format=row.format,
        filter=EventFilter.model_validate(row.filters),
        digest=row.digest,
        state=row.state,
        size=row.size,
        done=row.done,
        object=ObjectRef.model_validate(row.object) if row.object else None,
        code=row.code,
        created=row.created_at,
    )


async def work(ports: Ports) -> None:
    """Forever: build what was approved. Two instances may build the same export: the same bytes, and one of them finishes it."""
    while True:
        ports.wake.clear()
        async with ports.runtime.unit() as uow:
            row = await uow.first(select(exports).where(exports.c.state == "approved").order_by(exports.c.created_at).limit(1))
        if row is not None:
            await _build(ports, row)
            continue
        try:
            async with asyncio.timeout(ports.settings.export_poll_seconds):
                await ports.wake.wait()
        except TimeoutError:
            pass


async def _build(ports: Ports, row: Any) -> None:
    from medmesh_audit.package import build

    made, records, code = None, 0, ""
    try:
        made, records = await build(ports, row)
    except Problem as problem:
        code = problem.code
        log("audit.export_failed", level=40, export=row.export, code=code)
    async with ports.runtime.unit() as uow:
        values = {"state": "failed" if code else "ready", "object": made.model_dump() if made else None, "code": code, "done": row.size}
        open_ = (exports.c.export == row.export) & (exports.c.state == "approved")
        done = await uow.execute(update(exports).where(open_).values(**values, finished_at=uow.now))
        if done.rowcount:
            uow.emit(ExportFinished(export=row.export, format=row.format, records=records, object=made, code=code))
            about = (_entity(row.export, row.digest), *((Entity("object", made.sha256, digest=made.sha256),) if made else ()))
            detail: dict[str, str | int | bool] = {"format": row.format, "state": values["state"], "records": records}
            uow.audit(AuditEntry(ACTION, "E", 8 if code else 0, code, about, hospitals=_whose(row), detail=detail))


def restricted(wanted: Any, row: Any) -> Any:
    """A selection from `facts` of what an export holds."""
    return search.restrict(search.conditions(wanted, EventFilter.model_validate(row.filters)), row.scope or None)


async def _row(uow: UnitOfWork[Any], export: str, *, lock: bool = False) -> Any:
    wanted = select(exports).where(exports.c.export == export)
    if (row := await uow.first(wanted.with_for_update() if lock else wanted)) is None:
        raise Problem("request.not_found", kind="export", id=export)
    return row


def _entity(export: str, digest: str) -> Entity:
    return Entity("export", export, digest=digest)


def _whose(row: Any) -> tuple[str, ...]:
    return (row.scope,) if row.scope else ()
