"""Jobs: submitted after everything that can be checked without running them was checked, and cancelled."""

from __future__ import annotations

import asyncio
from typing import Any

from sqlalchemy import func, insert, select, update

from medmesh.contracts.message import Envelope, new_id
from medmesh.contracts.training import CancelJob, JobFailed, SubmitJob
from medmesh.errors import Problem
from medmesh.learning import package as packages
from medmesh.service import labels
from medmesh.service.dispatch import Work
from medmesh.store.objects.port import load
from medmesh.store.unit import AuditEntry, Entity, UnitOfWork
from medmesh_training.domain import OPEN, Schedule, State, check_room, check_size, read_content
from medmesh_training.ports import HANDLERS, Ports
from medmesh_training.tables import jobs


@HANDLERS.slow(SubmitJob, concurrency=4)
async def submit_job(command: Envelope[SubmitJob], work: Work[Ports]) -> dict[str, Any]:
    """Queue a job whose package and labels are sound. Slow because it reads both from the store."""
    wanted, ports = command.data, work.ports
    check_size(wanted.steps, wanted.seed, wanted.version, ports.settings.max_steps)
    package = packages.read(await load(ports.stores.kept, wanted.package))
    data, settings = package.manifest.items(), ports.settings
    items = await asyncio.to_thread(read_content, await load(ports.stores.kept, wanted.content), data)
    check_room(len(items), data, settings.max_data_bytes)
    schedule = Schedule(
        checkpoint_steps=settings.checkpoint_steps,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        pipeline=data.pipeline.hash if data.pipeline else None,
    )
    job = new_id()
    work.result = {"job": job}
    async with work.finish() as uow:
        values: dict[str, Any] = {
            "job": job,
            "submitter": work.actor.text,
            "package": wanted.package.model_dump(),
            "dataset": wanted.dataset,
            "version": wanted.version,
            "content": wanted.content.model_dump(),
            "steps": wanted.steps,
            "seed": wanted.seed,
            "schedule": schedule.model_dump(),
            "state": State.QUEUED.value,
            "due_at": func.now(),
            "submitted_at": uow.now,
        }
        await uow.execute(insert(jobs).values(values))
        await labels.made(uow, "job", job)
        used = (Entity("pipeline", data.pipeline.name, digest=data.pipeline.hash),) if data.pipeline else ()
        entities = (
            Entity("job", job),
            Entity("package", package.manifest.package.name, package.manifest.package.version, wanted.package.sha256),
            Entity("dataset", wanted.dataset, str(wanted.version), wanted.content.sha256),
            *used,
        )
        uow.audit(AuditEntry("training.submit", "C", entities=entities, detail={"steps": wanted.steps, "seed": wanted.seed}))
        uow.on_commit(ports.wake.set)
    return work.result


@HANDLERS.on(CancelJob)
async def cancel_job(command: Envelope[CancelJob], uow: UnitOfWork[Ports]) -> dict[str, Any]:
    """Stop a job that has not ended; whoever runs it notices at its next sign of life. Cancelling twice is harmless."""
    job = command.data.job
    row = await uow.first(select(jobs.c.state, jobs.c.attempt, jobs.c.step).where(jobs.c.job == job).with_for_update())
    if row is None:
        raise Problem("request.not_found", kind="job", id=job)
    answer = {"job": job, "state": State.CANCELLED.value}
    if row.state == State.CANCELLED:
        uow.unchanged()
        return answer
    if row.state not in OPEN:
        raise Problem("training.ended", job=job, state=row.state)
    problem = Problem("training.cancelled")
    values = {"state": State.CANCELLED.value, "failure": f"{problem.code}: {problem.detail()}", "ended_at": uow.now}
    await uow.execute(update(jobs).where(jobs.c.job == job).values(values))
    uow.emit(JobFailed(job=job, code=problem.code))
    uow.audit(AuditEntry("training.cancel", "U", entities=(Entity("job", job),), detail={"attempt": row.attempt, "step": row.step}))
    uow.on_commit(uow.ports.wake.set)
    return answer
