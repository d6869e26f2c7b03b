"""Runs queued jobs, one at a time: claims, trains from checkpoint to checkpoint, measures, and gives the job back when it must stop.

An undisturbed job and one that was interrupted anywhere end with the same weights: each segment starts from the checked bytes of the
last checkpoint, with a fresh optimiser and a seed of its own.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from medmesh.contracts.message import ObjectRef
from medmesh.errors import Problem
from medmesh.learning import isolation
from medmesh.learning import package as packages
from medmesh.learning.host import worker
from medmesh.learning.package import Package
from medmesh.security.residue import wipe
from medmesh.service.runtime import Runtime
from medmesh.store.objects.port import fetch, file_digest, load
from medmesh.tasks import end
from medmesh.telemetry import log
from medmesh_training import claims
from medmesh_training.claims import Claim, Lost
from medmesh_training.domain import check_pipeline, held_out, read_content, segment_at, segment_seed, transient
from medmesh_training.ports import Ports

if TYPE_CHECKING:
    from medmesh_training.trainer import Trainer

MEDIA_TYPE = "application/vnd.safetensors"


@dataclass(frozen=True, slots=True)
class Part:
    """A file of samples, of which so many are of each class."""

    path: Path
    counts: tuple[int, ...]


class Runner:
    """The background task of the service."""

    def __init__(self, runtime: Runtime, ports: Ports) -> None:
        self._runtime = runtime
        self._ports = ports
        self._settings = ports.settings
        self._folder = ports.settings.state / "attempts"
        # What an earlier process left holds images; it may not outlive the job it was for.
        wipe(self._folder)
        self._folder.mkdir(parents=True, mode=0o700)

    async def serve(self) -> None:
        """Run whatever is due, then wait to be woken."""
        while True:
            if not await self.once():
                await self._pause(self._settings.poll_seconds)

    async def once(self) -> bool:
        """Run one attempt at one job; answers whether there was one."""
        held = await claims.claim(self._runtime, self._settings)
        if held is None:
            return False
        log("training.attempt.started", job=held.job, attempt=held.attempt, step=held.step)
        try:
            await self._attempt(held)
        except Lost:
            log("training.attempt.lost", job=held.job, attempt=held.attempt)
        return True

    async def _attempt(self, held: Claim) -> None:
        """One attempt and what becomes of the job after it. Raises `Lost`."""
        try:
            await self._while_held(held)
        except Lost:
            raise
        except asyncio.CancelledError:
            with suppress(Exception):  # the lease ends by itself when the database is away
                await claims.release(self._runtime, held)
            raise
        except Problem as problem:
            log("training.attempt.failed", level=logging.WARNING, job=held.job, attempt=held.attempt, code=problem.code)
            if transient(problem):
                await claims.retry(self._runtime, held, problem, self._settings)
            else:
                await claims.fail(self._runtime, held, problem)
        except Exception as error:
            log("training.attempt.failed", level=logging.ERROR, error=error, job=held.job, attempt=held.attempt)
            await claims.retry(self._runtime, held, Problem("training.gave_up", attempts=self._settings.max_attempts), self._settings)

    async def _while_held(self, held: Claim) -> None:
        """Train, and stop at once when the job is cancelled or taken over."""
        training, keeping = asyncio.create_task(self._train(held)), asyncio.create_task(self._keep(held))
        try:
            await asyncio.wait((training, keeping), return_when=asyncio.FIRST_COMPLETED)
            await (training if training.done() else keeping)
        finally:
            await end(training, keeping)

    async def _keep(self, held: Claim) -> None:
        """Renew the lease until it is lost. A database that is away for a moment costs nothing unless another takes the job."""
        while True:
            await self._pause(self._settings.lease_seconds / 3)
            try:
                await claims.keep(self._runtime, held, self._settings.lease_seconds)
            except Lost:
                raise
            except Exception as error:
                log("training.lease.not_renewed", level=logging.WARNING, error=error, job=held.job)

    async def _pause(self, seconds: float) -> None:
        """Wait, or until woken. Only one of `serve` and `_keep` waits at a time: an instance runs one job."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._ports.wake.wait()
        self._ports.wake.clear()

    async def _train(self, held: Claim) -> None:
        from medmesh_training.trainer import Trainer  # numpy: not before the first job

        kept, settings = self._ports.stores.kept, self._settings
        package = packages.read(await load(kept, held.package))
        folder = self._folder / f"{held.job}-{held.attempt}"
        folder.mkdir(mode=0o700)
        try:
            training, measuring = await self._samples(held, package, folder)
            limits = isolation.Limits(
                memory_bytes=settings.worker_memory_bytes,
                cpu_seconds=settings.worker_cpu_seconds,
                mapped_bytes=sum(part.path.stat().st_size for part in (training, measuring)),
            )
            running = worker(
                package,
                folder / "worker",
                python=settings.interpreters.get(package.manifest.package.framework),
                silence=settings.worker_silence_seconds,
                limits=limits,
                account=settings.worker_account,
            )
            async with running as process:
                trainer = Trainer(process, package.manifest, held.schedule, folder)
                weights = await self._segments(held, trainer, training.path, folder)
                counts = await trainer.evaluate(weights, measuring.path, measuring.counts)
        finally:
            await asyncio.to_thread(wipe, folder)
        await claims.finish(self._runtime, held, _metrics(counts, training, measuring))
        log("training.job.finished", job=held.job, attempt=held.attempt)

    async def _samples(self, held: Claim, package: Package, folder: Path) -> tuple[Part, Part]:
        """(to train on, to measure on). All are read first: an item that cannot be read shows before hours of training."""
        data = package.manifest.items()
        check_pipeline(data, held.schedule)
        content = await load(self._ports.stores.kept, held.content)
        items = await asyncio.to_thread(read_content, content, data)
        made: list[Part] = []
        for name, aside in (("training", False), ("measuring", True)):
            some = [item for item in items if held_out(item) is aside]
            await self._ports.write_samples(some, data, self._ports.stores, folder / name)
            counted = Counter(item.label for item in some)
            made.append(Part(folder / name, tuple(counted[one] for one in data.classes)))
        return made[0], made[1]

    async def _segments(self, held: Claim, trainer: Trainer, samples: Path, folder: Path) -> Path:
        """The final weights, each checkpoint on the way stored and told of."""
        if held.weights:
            weights = await fetch(self._ports.stores.kept, held.weights, folder / "checkpoint")
        else:
            weights = await trainer.initial(segment_seed(held.seed, 0))
        data, step = await trainer.give_samples(samples), held.step
        while step < held.steps:
            segment = segment_at(step, held.steps, held.seed, held.schedule)
            weights, loss = await trainer.segment(weights, data, segment)
            step += segment.steps
            await claims.checkpoint(self._runtime, held, step, await self._store(weights), loss)
        return weights

    async def _store(self, weights: Path) -> ObjectRef:
        sha256, _ = await asyncio.to_thread(file_digest, weights)
        stored = await self._ports.stores.kept.put_file(weights, sha256)
        return stored.model_copy(update={"media_type": MEDIA_TYPE})


def _metrics(counts: list[list[int]], training: Part, measuring: Part) -> dict[str, float]:
    """Balanced accuracy on what was held out, with its 95 % interval, and how many samples each part had."""
    from medmesh.learning import metrics

    low, high = metrics.interval(counts)
    return {
        "balanced_accuracy": metrics.balanced_accuracy(counts),
        "balanced_accuracy_low": low,
        "balanced_accuracy_high": high,
        "samples_trained": float(sum(training.counts)),
        "samples_held_out": float(sum(measuring.counts)),
    }
