"""What training answers."""

from __future__ import annotations

from sqlalchemy import select

from medmesh.contracts.message import Envelope, ObjectRef
from medmesh.contracts.training import GetJob, JobView
from medmesh.errors import Problem
from medmesh.store.unit import UnitOfWork
from medmesh_training.ports import HANDLERS, Ports
from medmesh_training.tables import jobs


@HANDLERS.answers(GetJob)
async def get_job(query: Envelope[GetJob], uow: UnitOfWork[Ports]) -> JobView:
    """Where a job stands; `weights` is its last checkpoint, and its result once it is finished."""
    row = await uow.first(select(jobs).where(jobs.c.job == query.data.job))
    if row is None:
        raise Problem("request.not_found", kind="job", id=query.data.job)
    return JobView(
        job=row.job,
        state=row.state,
        attempt=row.attempt,
        step=row.step,
        steps=row.steps,
        weights=ObjectRef(**row.weights) if row.weights else None,
        metrics=row.metrics,
        failure=row.failure,
        pipeline=row.schedule.get("pipeline"),
        submitted=row.submitted_at,
    )
