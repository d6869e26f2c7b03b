"""Who runs a job: one attempt at a time, held by a lease, and every write of an attempt only while it holds the job.

The database's clock decides, because those of several machines differ. An attempt that was cancelled, or that was silent
for longer than its lease while another took the job over, finds its number gone and gets `Lost`: nothing it still does counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Self

from sqlalchemy import Row, func, select, update

from medmesh.contracts.message import ObjectRef
from medmesh.contracts.training import JobFailed, JobFinished, JobProgressed, JobStarted
from medmesh.errors import Problem
from medmesh.service import files
from medmesh.service.runtime import Runtime
from medmesh.store.unit import AuditEntry, Entity, UnitOfWork
from medmesh_training.domain import OPEN, Schedule, State
from medmesh_training.settings import Settings
from medmesh_training.tables import jobs


class Lost(Exception):
    """The job is no longer this attempt's."""


@dataclass(frozen=True, slots=True)
class Claim:
    """A job as the attempt that claimed it found it."""

    job: str
    attempt: int
    package: ObjectRef
    content: ObjectRef
    steps: int
    seed: int
    schedule: Schedule
    step: int
    weights: ObjectRef | None

    @classmethod
    def of(cls, row: Row[Any]) -> Self:
        """From its row."""
        return cls(
            job=row.job,
            attempt=row.attempt + 1,
            package=ObjectRef(**row.package),
            content=ObjectRef(**row.content),
            steps=row.steps,
            seed=row.seed,
            schedule=Schedule(**row.schedule),
            step=row.step,
            weights=ObjectRef(**row.weights) if row.weights else None,
        )


async def claim(runtime: Runtime, settings: Settings) -> Claim | None:
    """The job that has waited longest, claimed; None when there is none. One that was tried too often ends here."""
    async with runtime.unit() as uow:
        due = (
            select(jobs)
            .where(jobs.c.state.in_(OPEN), jobs.c.due_at <= func.now())
            .order_by(jobs.c.due_at)
            .limit(1)
            .with_for_update(skip_locked=True)
        )
        row = await uow.first(due)
        if row is None:
            return None
        if row.stalled < settings.max_attempts:
            claimed = Claim.of(row)
            values = {
                "state": State.RUNNING.value,
                "attempt": claimed.attempt,
                "stalled": row.stalled + 1,
                "due_at": _after(settings.lease_seconds),
            }
            await _set(uow, row.job, values)
            uow.emit(JobStarted(job=row.job, attempt=claimed.attempt, resumed_at=claimed.step))
            return claimed
        await _fail(uow, row, Problem("training.gave_up", attempts=row.stalled))
    return await claim(runtime, settings)


async def keep(runtime: Runtime, held: Claim, seconds: float) -> None:
    """Renew the lease. Raises `Lost`."""
    async with runtime.unit() as uow:
        await _holding(uow, held)
        await _set(uow, held.job, {"due_at": _after(seconds)})


async def checkpoint(runtime: Runtime, held: Claim, step: int, weights: ObjectRef, loss: float) -> None:
    """Record the weights after `step`, and tell of them. Raises `Lost`."""
    async with runtime.unit() as uow:
        await _holding(uow, held)
        await _set(uow, held.job, {"step": step, "weights": weights.model_dump(), "stalled": 0})
        await files.keep(uow, "job", held.job, [weights.sha256])
        uow.emit(JobProgressed(job=held.job, step=step, steps=held.steps, loss=loss))


async def finish(runtime: Runtime, held: Claim, metrics: dict[str, float]) -> None:
    """The last checkpoint is the result. Raises `Lost`."""
    async with runtime.unit() as uow:
        row = await _holding(uow, held)
        await _set(uow, held.job, {"state": State.FINISHED.value, "metrics": metrics, "ended_at": uow.now})
        weights = ObjectRef(**row.weights)
        uow.emit(JobFinished(job=held.job, weights=weights, package=held.package, metrics=metrics))
        entities = (*_entities(row), Entity("weights", held.job, digest=weights.sha256))
        uow.audit(AuditEntry("training.finish", "C", entities=entities, detail=_detail(row)))


async def fail(runtime: Runtime, held: Claim, problem: Problem) -> None:
    """End the job for good. Raises `Lost`."""
    async with runtime.unit() as uow:
        await _fail(uow, await _holding(uow, held), problem)


async def retry(runtime: Runtime, held: Claim, problem: Problem, settings: Settings) -> None:
    """Let another attempt go on from the last checkpoint, later the more attempts achieved nothing; after the last one allowed,
    end the job with what ended this attempt. Raises `Lost`."""
    async with runtime.unit() as uow:
        row = await _holding(uow, held)
        if row.stalled >= settings.max_attempts:
            await _fail(uow, row, problem)
        else:
            await _set(uow, held.job, {"state": State.QUEUED.value, "due_at": _after(min(0.5 * 2**row.stalled, 60))})


async def release(runtime: Runtime, held: Claim) -> None:
    """Give the job back because this instance stops: others may go on at once, and the attempt does not count. Raises `Lost`."""
    async with runtime.unit() as uow:
        await _holding(uow, held)
        values = {"state": State.QUEUED.value, "due_at": func.now(), "stalled": func.greatest(jobs.c.stalled - 1, 0)}
        await _set(uow, held.job, values)


async def _holding(uow: UnitOfWork[Any], held: Claim) -> Row[Any]:
    mine = (jobs.c.job == held.job) & (jobs.c.attempt == held.attempt) & (jobs.c.state == State.RUNNING)
    row = await uow.first(select(jobs).where(mine).with_for_update())
    if row is None:
        raise Lost
    return row


async def _fail(uow: UnitOfWork[Any], row: Row[Any], problem: Problem) -> None:
    failure = f"{problem.code}: {problem.detail()}"[:300]
    await _set(uow, row.job, {"state": State.FAILED.value, "failure": failure, "ended_at": uow.now})
    uow.emit(JobFailed(job=row.job, code=problem.code))
    uow.audit(AuditEntry("training.fail", "E", outcome=8, why=problem.code, entities=_entities(row), detail=_detail(row)))


async def _set(uow: UnitOfWork[Any], job: str, values: dict[str, Any]) -> None:
    await uow.execute(update(jobs).where(jobs.c.job == job).values(values))


def _after(seconds: float) -> Any:
    return func.now() + timedelta(seconds=seconds)


def _entities(row: Row[Any]) -> tuple[Entity, ...]:
    return (
        Entity("job", row.job),
        Entity("package", row.package["sha256"], digest=row.package["sha256"]),
        Entity("dataset", row.dataset, str(row.version), row.content["sha256"]),
        *((Entity("pipeline", made[:16], digest=made),) if (made := row.schedule.get("pipeline")) else ()),
    )


def _detail(row: Row[Any]) -> dict[str, str | int | bool]:
    return {"attempt": row.attempt, "step": row.step, "submitter": row.submitter}
