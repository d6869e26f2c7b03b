"""Packages are run on invented data before hospitals are asked to run them on their own."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert as upsert

from medmesh.contracts.message import Envelope, ObjectRef, new_id
from medmesh.contracts.training import GetRehearsal, RehearsalReport, RehearsalView, RehearsePackage
from medmesh.errors import Problem
from medmesh.learning import isolation
from medmesh.learning import package as packages
from medmesh.learning.host import worker
from medmesh.security.residue import wipe
from medmesh.service.dispatch import Work
from medmesh.store.objects.port import load
from medmesh.store.unit import AuditEntry, Entity, UnitOfWork
from medmesh_training.ports import HANDLERS, Ports
from medmesh_training.tables import rehearsals


@HANDLERS.slow(RehearsePackage, concurrency=2)
async def rehearse_package(command: Envelope[RehearsePackage], work: Work[Ports]) -> dict[str, Any]:
    """A rehearsal from its beginning to its report; when this process dies on the way, the next one begins anew."""
    from medmesh.federated import rehearsal  # numpy: not before the first

    wanted, ports = command.data, work.ports
    package = packages.read(await load(ports.stores.kept, wanted.package))
    folder = ports.settings.state / "rehearsals" / new_id()
    folder.mkdir(parents=True, mode=0o700)
    try:
        async with asyncio.timeout(ports.settings.rehearsal_seconds):
            tell = partial(ports.rehearsing.__setitem__, package.digest)
            found = await rehearsal.rehearse(package, wanted.how, partial(_worker, ports), folder, tell)
    except TimeoutError:
        raise Problem("rehearsal.too_long", seconds=int(ports.settings.rehearsal_seconds)) from None
    finally:
        ports.rehearsing.pop(package.digest, None)
        await asyncio.to_thread(wipe, folder)
    report = await ports.stores.kept.put(rehearsal.pack(found), "application/json")
    measured = {"memory_mib": found.memory_mib, "step_microseconds": found.step_microseconds}
    work.result = {"report": report.model_dump(), "passed": found.passed, **measured}
    async with work.finish() as uow:
        values = {"report": report.sha256, "package": package.digest, "object": report.model_dump(), "found": found.model_dump(mode="json")}
        row = upsert(rehearsals).values(**values, by=work.actor.text, at=uow.now)
        await uow.execute(row.on_conflict_do_update(index_elements=["report"], set_={"at": uow.now}))
        about = package.manifest.package
        entities = (Entity("package", about.name, about.version, package.digest), Entity("rehearsal", package.digest, digest=report.sha256))
        why = next((str(stage.problem["code"]) for stage in found.stages if stage.problem), "")
        detail: dict[str, str | int | bool] = {"passed": found.passed, **measured}
        uow.audit(AuditEntry("training.rehearse", "E", outcome=0 if found.passed else 8, why=why, entities=entities, detail=detail))
    return work.result


def _worker(ports: Ports, package: packages.Package, folder: Any) -> Any:
    """As for a job."""
    settings = ports.settings
    return worker(
        package,
        folder,
        python=settings.interpreters.get(package.manifest.package.framework),
        silence=settings.worker_silence_seconds,
        limits=isolation.Limits(memory_bytes=settings.worker_memory_bytes, cpu_seconds=settings.worker_cpu_seconds),
        account=settings.worker_account,
    )


@HANDLERS.answers(GetRehearsal)
async def get_rehearsal(query: Envelope[GetRehearsal], uow: UnitOfWork[Ports]) -> RehearsalView:
    """What is known of a package; where a running one is, is known to the instance that runs it."""
    wanted = query.data
    if wanted.report is None and (stage := uow.ports.rehearsing.get(wanted.package)) is not None:
        return RehearsalView(state="running", stage=stage)
    rows = select(rehearsals).where(rehearsals.c.package == wanted.package)
    if wanted.report is not None:
        rows = rows.where(rehearsals.c.report == wanted.report)
    row = await uow.first(rows.order_by(rehearsals.c.at.desc()).limit(1))
    if row is None:
        return RehearsalView(state="none")
    found = RehearsalReport.model_validate(row.found)
    return RehearsalView(state="passed" if found.passed else "failed", report=ObjectRef(**row.object), found=found)
