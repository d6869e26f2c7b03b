"""A rehearsal: a training package runs on invented data as hospitals would run it, before any hospital is asked.

The same sandboxed worker, the algorithm's own two parts and the same checks as at a node find what a package fails at: tensors of another
name, shape or type than it declares, numbers that are none, memory, time, corrections or privacy that its framework does not heed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from pydantic import ValidationError

from medmesh.canonical import canonical
from medmesh.contracts.data import DataSchema, ImageSchema, TableSchema, decimal
from medmesh.contracts.plan import Plan, SecureAggregation
from medmesh.contracts.refusals import contradiction
from medmesh.contracts.training import RehearsalReport, Rehearsing, Stage, StageName
from medmesh.errors import Problem
from medmesh.federated import codecs
from medmesh.federated.aggregation import Local, Outcome, Start, aggregate, algorithm_of, compatible, upload_signature
from medmesh.federated.secure import vectors
from medmesh.federated.trainer import Trainer
from medmesh.learning import capabilities, weights
from medmesh.learning.adapter import Samples
from medmesh.learning.host import Worker
from medmesh.learning.package import Package
from medmesh.learning.table import encode

SAMPLES = 24
"""Invented ones of each pretended hospital, unless there are more classes or a batch needs more."""
_COUNTS = (2, 3, 5, 7, 11)
"""How many hospitals are pretended: two, or as many as the algorithm needs at least."""
_NOBODYS = bytes(32)
"""By what updates of pretended hospitals are rounded: their samples are nobody's."""
Open = Callable[[Package, Path], AbstractAsyncContextManager[Worker]]
"""Starts a worker with a package in a folder, as `medmesh.learning.host.worker` does with the limits of the machine."""
Tell = Callable[[StageName], None]


def invented(data: DataSchema, count: int, seed: int) -> Samples:
    """`count` samples of a data schema, every class among them: images, volumes or signals of noise that rises with the class, or rows with
    values in their ranges, some missing where they may. Two samples a patient."""
    generator = np.random.default_rng(seed)
    y = np.arange(count, dtype=np.int64) % len(data.classes)
    if isinstance(data, TableSchema):
        x = np.stack([encode(_row(data, generator), data) for _ in range(count)])
    elif data.pipeline is not None or not isinstance(data, ImageSchema):
        raised = (y / max(1, len(data.classes) - 1)).astype(np.float32).reshape(-1, *(1 for _ in data.shape))
        x = generator.standard_normal((count, *data.shape), dtype=np.float32) + raised
    else:
        bright = (y * (128 // max(1, len(data.classes) - 1)))[:, None, None, None]
        x = (generator.integers(0, 128, (count, *data.shape)) + bright).clip(0, 255).astype(np.uint8)
    return Samples(x, y, np.arange(count, dtype=np.int64) // 2)


def _row(data: TableSchema, generator: np.random.Generator) -> Mapping[str, str | None]:
    row: dict[str, str | None] = {}
    for feature in data.features:
        if feature.missing and generator.random() < 0.2:
            row[feature.name] = None
        elif feature.kind == "code":
            row[feature.name] = str(generator.choice(feature.codes))
        else:
            low, high = decimal(feature.low or "0"), decimal(feature.high or "0")
            row[feature.name] = f"{low + (high - low) * int(generator.integers(0, 101)) / 100:f}"
    return row


def plan_of(package: Package, how: Rehearsing) -> Plan:
    """The plan that is rehearsed, with as few hospitals as its algorithm lets. Raises `Problem` (`federation.*`) for what contradicts."""
    refused: Problem | None = None
    for count in _COUNTS:
        try:
            made = _plan(package, how, count)
            compatible(made)
            return made
        except Problem as problem:
            refused = refused or problem
    assert refused is not None
    raise refused


def _plan(package: Package, how: Rehearsing, count: int) -> Plan:
    manifest, now = package.manifest, datetime.now(UTC)
    try:
        return Plan(
            name="rehearsal",
            purpose="a rehearsal on invented data",
            initiator="service:training",
            package=package.digest,
            initial=package.digest,
            framework=manifest.package.framework,
            data=manifest.data,
            signature=manifest.tensors,
            rounds=2,
            local_steps=how.steps,
            participants=tuple(f"rehearsal-{n}" for n in range(1, count + 1)),
            min_participants=count,
            secure=SecureAggregation(threshold=count, bits=how.secure_bits) if how.secure_bits else None,
            accept_by=now,
            start_at=now + timedelta(seconds=1),
            round_deadline_seconds=3600,
            **how.model_dump(exclude={"steps", "secure_bits"}),
        )
    except ValidationError as error:
        raise contradiction(error) from None


async def rehearse(package: Package, how: Rehearsing, open_worker: Open, folder: Path, tell: Tell = lambda stage: None) -> RehearsalReport:
    """Run it, in the empty private `folder`; `tell` hears each stage begin. What the package does wrong is in the report; raises `Problem`
    only for what contradicts before anything runs, and for what this machine cannot do."""
    plan = plan_of(package, how)
    run = _Rehearsal(plan, folder, tell, count=max(SAMPLES, 2 * len(plan.data.classes), min(how.batch_size, 256)))
    try:
        await run.all(package, open_worker)
    except _Over:
        pass
    return RehearsalReport(
        package=package.digest,
        framework=package.manifest.package.framework,
        how=how,
        samples=run.count,
        stages=tuple(run.stages),
        memory_mib=run.memory // 2**20,
        step_microseconds=run.step_microseconds,
        update_bytes=run.update_bytes,
        made=datetime.now(UTC).replace(microsecond=0),
    )


def pack(report: RehearsalReport) -> bytes:
    """The object's bytes."""
    return canonical(report.model_dump(mode="json"))


class _Over(Exception):
    """A stage went wrong: nothing comes after it."""


@dataclass
class _Rehearsal:
    """One, from its first stage on."""

    plan: Plan
    folder: Path
    tell: Tell
    count: int
    stages: list[Stage] = field(default_factory=list)
    memory: int = 0
    step_microseconds: int = 0
    update_bytes: int = 0
    residuals: dict[str, Path] = field(default_factory=dict)
    """What a codec left out of each hospital's last update."""

    @asynccontextmanager
    async def stage(self, name: StageName) -> AsyncIterator[None]:
        """What goes wrong inside is this stage's."""
        self.tell(name)
        began, problem = time.monotonic(), None
        try:
            yield
        except Problem as found:
            if found.code.startswith("isolation.") or found.code == "worker.not_isolated":
                raise  # this machine's fault
            # A code we have no text for carries one of the worker's, which goes no further.
            problem = found if found.code != "problem.unknown" else Problem("training.answer", operation=name)
        except (KeyError, TypeError, ValueError, AttributeError, OSError):
            problem = Problem("training.answer", operation=name)  # the worker's answer, or file, is none
        taken = round(1000 * (time.monotonic() - began))
        self.stages.append(Stage(name=name, milliseconds=taken, problem=None if problem is None else problem.document()))
        if problem is not None:
            raise _Over

    async def all(self, package: Package, open_worker: Open) -> None:
        """Every stage."""
        async with self.stage("read"):
            capabilities.check(package)
        opening = open_worker(package, self.folder / "worker")
        async with self.stage("open"):
            worker = await opening.__aenter__()
        watching = asyncio.create_task(self._watch(worker.pid))
        try:
            await self._work(worker)
        finally:
            watching.cancel()
            self._look(worker.pid)
            await opening.__aexit__(None, None, None)

    async def _work(self, worker: Worker) -> None:
        plan, parties = self.plan, {name: n for n, name in enumerate(self.plan.participants)}
        async with self.stage("initial"):
            out = worker.folder / "initial"
            await worker.call("initial", seed=plan.seed, out=str(out))
            model = self._take(out, self.folder / "model", plan)
        data: dict[str, str] = {}
        for name, n in parties.items():
            samples = invented(plan.data, self.count, plan.seed + n)
            path = self.folder / f"data-{n}"
            patients = {"patients": samples.patients} if samples.patients is not None else {}
            weights.save({"x": samples.x, "y": samples.y, **patients}, path)
            data[name] = worker.give(path, f"data-{n}")
        kept: dict[str, Path | None] = {}
        async with self.stage("train"):
            sent = [await self._hospital(worker, name, data[name], 1, model, None, kept) for name in parties]
        async with self.stage("aggregate"):
            first = self._aggregate(model, None, sent, 1)
        async with self.stage("next"):
            sent = [await self._hospital(worker, name, data[name], 2, first.model, first, kept) for name in parties]
            second = self._aggregate(first.model, first, sent, 2)
        async with self.stage("evaluate"):
            one = next(iter(parties))
            given = worker.give(second.model, "evaluated")
            answer = await worker.call("evaluate", data=data[one], models=[given])
            _check_counts(answer["counts"][0], invented(plan.data, self.count, plan.seed).y, len(plan.data.classes))
        async with self.stage("personal"):
            one = next(iter(parties))
            local = self._local(one, second.model, second, kept, self._place("personal", one))
            if (own := await Trainer(worker, plan, data[one], plan.seed).personal(local)) is not None:
                weights.check_finite(own)

    async def _hospital(
        self, worker: Worker, name: str, data: str, number: int, model: Path, before: Outcome | None, kept: dict[str, Path | None]
    ) -> tuple[str, Path, int]:
        """(name, what it sends, on how many samples) of one round, trained as a node does it."""
        local = self._local(name, model, before, kept, self._place(str(number), name))
        trainer = Trainer(worker, self.plan, data, number)
        left, _ = await trainer.update(local)
        for path in filter(None, (left.upload, left.keep)):
            weights.check_finite(path)
        kept[name], self.step_microseconds = left.keep, round(1e6 * trainer.step_seconds)
        return name, self._travelled(name, model, left.upload, local.folder), self.count

    def _travelled(self, name: str, model: Path, update: Path, folder: Path) -> Path:
        """The update as it arrives at the platform: what a codec makes of it, or its numbers as they go into a secure sum."""
        plan, arrived = self.plan, folder / "arrived"
        if plan.secure is not None:
            bits, parties = plan.secure.bits, len(plan.participants)
            vectors.encode(update, self.count, arrived, bits=bits, parties=parties, without=frozenset(plan.local))
            return arrived
        if plan.codec == "none":
            return update
        sent, left, tensors = folder / "encoded", folder / "left", upload_signature(plan)
        codecs.encode(plan.codec, tensors, model, update, self.residuals.get(name), sent, left, share=plan.codec_share, key=_NOBODYS)
        self.residuals[name] = left
        codecs.decode(plan.codec, tensors, model, sent, arrived, share=plan.codec_share)
        return arrived

    def _take(self, out: Path, target: Path, plan: Plan) -> Path:
        """Out of the worker's reach first; a link in its place is refused by the check."""
        out.rename(target)
        weights.check(target, plan.signature)
        weights.check_finite(target)
        self.update_bytes = target.stat().st_size
        return target

    def _local(self, name: str, model: Path, before: Outcome | None, kept: dict[str, Path | None], place: Path) -> Local:
        shown = before.state if before is not None and algorithm_of(self.plan).SHOWN else None
        return Local(self.plan, model, place, self.count, shown, before.personal.get(name) if before else None, kept.get(name))

    def _aggregate(self, model: Path, before: Outcome | None, sent: list[tuple[str, Path, int]], number: int) -> Outcome:
        if (secure := self.plan.secure) is not None:
            mean = self._place(str(number), "sum") / "mean"
            with vectors.Sum([path for _, path, _ in sent]) as total:
                samples = vectors.decode(total, model, mean, bits=secure.bits, without=frozenset(self.plan.local))
            sent = [("sum", mean, samples)]
        state = before.state if before is not None else None
        start = Start(model, state=state, members=len(self.plan.participants), local=frozenset(self.plan.local))
        made = aggregate(algorithm_of(self.plan), start, sent, self._place(str(number), "platform"))
        weights.check(made.model, self.plan.signature)
        weights.check_finite(made.model)
        return made

    def _place(self, *parts: str) -> Path:
        place = self.folder.joinpath(*parts)
        place.mkdir(parents=True, mode=0o700)
        return place

    async def _watch(self, pid: int) -> None:
        while True:
            self._look(pid)
            await asyncio.sleep(0.1)

    def _look(self, pid: int) -> None:
        """The most that the worker's processes have had, in bytes: each one's own high-water mark where the kernel tells it."""
        try:
            worker = psutil.Process(pid)
            self.memory = max(self.memory, sum(_most(process) for process in (worker, *worker.children(recursive=True))))
        except psutil.Error:
            return


def _most(process: psutil.Process) -> int:
    """Bytes; 0 for one that ended meanwhile."""
    try:
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    except OSError:
        return 0
    return 0


def _check_counts(counts: Any, y: np.ndarray, classes: int) -> None:
    """Raise `ValueError` unless these are counts [true][predicted] of exactly these samples."""
    rows = [[int(cell) for cell in row] for row in counts]
    if any(len(row) != classes or min(row) < 0 for row in rows) or [sum(r) for r in rows] != np.bincount(y, minlength=classes).tolist():
        raise ValueError("counts")
