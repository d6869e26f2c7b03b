"""Doing the hospital's part of a round: train, train alone, or evaluate; then hand the result in.

A trained model is made durable before anything is sent, so that a node which dies afterwards never trains the round again.
"""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import select, update

from medmesh.client import download, upload
from medmesh.client.gateway import Gateway
from medmesh.contracts.federation import FederationStarted, RoundKind, RoundOpened
from medmesh.contracts.message import ObjectRef
from medmesh.contracts.plan import Plan
from medmesh.errors import Problem
from medmesh.federated.proof import check_round, verify_start
from medmesh.learning import isolation, weights
from medmesh.learning.host import Worker, worker
from medmesh.learning.package import read as read_package
from medmesh.security.residue import wipe
from medmesh.store.objects.port import fetch, file_digest
from medmesh.store.unit import AuditEntry, Entity
from medmesh.telemetry import log, span
from medmesh_edge import roster as rosters
from medmesh_edge import samples, training
from medmesh_edge.consent import permitted
from medmesh_edge.outgoing import is_transient, queue
from medmesh_edge.patients import HOSPITAL
from medmesh_edge.policy import in_hours
from medmesh_edge.ports import Site
from medmesh_edge.tables import federations, tasks

WORKER_IDLE_SECONDS = 300.0


@dataclass
class Rounds:
    """Works on one round at a time with a worker that stays for the next."""

    site: Site
    gateway: Gateway
    _stack: AsyncExitStack | None = None
    _worker: Worker | None = None
    _package: str = ""
    _generation: int = 0
    _used: float = 0.0
    _progress: dict[str, Any] = field(default_factory=dict)

    async def step(self) -> bool:
        """Do the most urgent thing; False when there is nothing to do. Raises transient problems."""
        if (generation := self.site.keys.versions(HOSPITAL)[-1]) != self._generation:
            await self.close()  # a patient was forgotten: the worker's arrays may still show the images
            self._generation = generation
        async with self.site.unit() as uow:
            row = await uow.first(select(tasks).where(tasks.c.state == "trained").order_by(tasks.c.at).limit(1))
            if row is None:
                row = await uow.first(select(tasks).where(tasks.c.state == "received").order_by(tasks.c.at.desc()).limit(1))
        if row is None:
            await self._release()
            await self._rest()
            return False
        event = RoundOpened.model_validate(row.event)
        if row.state == "received" and datetime.now(UTC) > event.deadline:
            await self._set(event, state="superseded")
            return True
        if not in_hours(self.site.policy(), datetime.now().astimezone()):
            return False
        try:
            with span(f"edge round {event.kind}"):
                await (self._send(row, event) if row.state == "trained" else self._work(event))
        except Problem as problem:
            if is_transient(problem):
                raise
            await self._fail(event, problem)
        return True

    async def _set(self, event: RoundOpened, **values: Any) -> None:
        async with self.site.unit() as uow:
            await uow.execute(update(tasks).where(_key(event)).values(values))

    async def _fail(self, event: RoundOpened, problem: Problem) -> None:
        """Tell the platform at once, so that nobody waits for us; the next round is a new chance."""
        await self.close()
        async with self.site.unit() as uow:
            await uow.execute(update(tasks).where(_key(event)).values(state="failed", code=problem.code))
            body = {"round": event.round, "attempt": event.attempt, "code": problem.code}
            await queue(uow, f"/v1/federations/{event.federation}/failures", body)
            about = (Entity("federation", event.federation, digest=event.plan_hash),)
            uow.audit(AuditEntry("federation.train", "E", outcome=8, why=problem.code, entities=about, detail={"round": event.round}))
        log("edge.round.failed", level=40, federation=event.federation, round=event.round, error=problem)
        self.site.changed.set()

    async def _plan(self, event: RoundOpened) -> tuple[Plan, ObjectRef]:
        """The plan this hospital signed, and its package. Raises `Problem` when the code is not allowed to run here."""
        async with self.site.unit() as uow:
            row = await uow.first(select(federations).where(federations.c.federation == event.federation))
            if row is None or row.plan_hash != event.plan_hash:
                raise Problem("federation.plan_changed", federation=event.federation)
            package = ObjectRef.model_validate(row.package)
            if not await permitted(uow, self.site.policy(), package.sha256):
                raise Problem("policy.package", package=package.sha256[:16])
        plan = Plan.model_validate(row.plan)
        await self._proven(row, plan, event)
        return plan, package

    async def _proven(self, row: Any, plan: Plan, event: RoundOpened) -> None:
        """Who approved and who accepted is shown by their own signatures; where the roster here lacks a key, by the newest there is."""
        try:
            proven(self.site, row, plan, event)
        except Problem as problem:
            if not problem.code.startswith("roster.") or not await rosters.refresh(self.site, self.gateway):
                raise
            proven(self.site, row, plan, event)

    async def _fetch(self, ref: ObjectRef) -> Path:
        """An object of the platform, kept while it is useful."""
        folder = self.site.layout.cache / "objects"
        folder.mkdir(parents=True, mode=0o700, exist_ok=True)
        return await download(self.gateway, ref, folder / ref.sha256)

    async def _open(self, package: ObjectRef) -> Worker:
        if self._worker is not None and self._package == package.sha256:
            return self._worker
        await self.close()
        read = read_package((await self._fetch(package)).read_bytes())
        if read.digest != package.sha256:
            raise Problem("objects.digest", expected=package.sha256, found=read.digest)
        settings, stack = self.site.settings, AsyncExitStack()
        framework = read.manifest.framework(settings.frameworks)
        opened = await stack.enter_async_context(
            worker(
                read,
                self.site.layout.work / "worker",
                framework=framework,
                python=settings.python.get(framework),
                silence=settings.worker_silence_seconds,
                limits=isolation.Limits(memory_bytes=settings.worker_memory_bytes),
                account=settings.worker_account,
            )
        )
        self._stack, self._worker, self._package = stack, opened, package.sha256
        return opened

    async def close(self) -> None:
        """End the worker."""
        stack, self._stack, self._worker = self._stack, None, None
        if stack is not None:
            await stack.aclose()
            await asyncio.to_thread(samples.forget_arrays, self.site)

    async def _rest(self) -> None:
        """A worker that nobody needed for a while gives its memory back."""
        if self._worker is not None and asyncio.get_running_loop().time() - self._used > WORKER_IDLE_SECONDS:
            await self.close()

    async def _work(self, event: RoundOpened) -> None:
        plan, package = await self._plan(event)
        opened = await self._open(package)
        if event.kind is RoundKind.EVALUATE:
            await self._evaluate(opened, plan, event)
        else:
            await self._train(opened, plan, event)
        self._used = asyncio.get_running_loop().time()

    async def _train(self, opened: Worker, plan: Plan, event: RoundOpened) -> None:
        data, count = await samples.prepare(self.site, plan.data, held_out=False)
        if count < max(1, self.site.policy().min_samples):
            raise Problem("policy.samples", limit=self.site.policy().min_samples)
        async with self.site.unit() as uow:
            await uow.execute(update(tasks).where(_key(event)).values(trained=tasks.c.trained + 1))
        async with training.side(self.site, plan, event, count, self._fetch) as local:
            left, loss = await training.train(self._trainer(opened, plan, event, data), event, local)
            kept = await training.store(self.site, left)
            ref = await self.site.objects.put_file(left.upload, file_digest(left.upload)[0])
        sources = await samples.sources(self.site, plan.data)
        async with self.site.unit() as uow:
            values = {"state": "trained", "update": ref.model_dump(), "samples": count, "metrics": {"loss": loss}}
            await uow.execute(update(tasks).where(_key(event)).values(values))
            await training.remember(uow, event, kept)
            about = (Entity("federation", event.federation, digest=event.plan_hash), Entity("update", str(event.round), digest=ref.sha256))
            used = (Entity("dataset", name) for name in sources)
            detail: dict[str, str | int | bool] = {"round": event.round, "steps": event.steps, "framework": opened.framework}
            uow.audit(AuditEntry("federation.train", "E", entities=(*about, *used), detail=detail))
        await training.forget(self.site, event)
        log("edge.round.trained", federation=event.federation, round=event.round, steps=event.steps)

    def _trainer(self, opened: Worker, plan: Plan, event: RoundOpened, data: Path) -> training.Trainer:
        return training.Trainer(
            opened,
            plan,
            opened.give(data, "data"),
            hospital_seed(event.seed, self.site.settings.hospital),
            lambda step, steps, loss: self._tell(event, step, steps),
        )

    async def _evaluate(self, opened: Worker, plan: Plan, event: RoundOpened) -> None:
        data, _ = await samples.prepare(self.site, plan.data, held_out=True)
        models = []
        for place, model in enumerate(event.models):
            path = await self._fetch(model.weights)
            weights.check(path, plan.signature)
            models.append(opened.give(path, f"model-{place}"))
        models += await self._own(opened, plan, event)
        counts = (await opened.call("evaluate", data=opened.give(data, "data"), models=models))["counts"]
        results = [{"model": m.weights.sha256, "counts": c} for m, c in zip(event.models, counts, strict=False)]
        body = {"round": event.round, "attempt": event.attempt, "results": results}
        if len(models) > len(results):
            body["personal"] = counts[-1]
        async with self.site.unit() as uow:
            await uow.execute(update(tasks).where(_key(event)).values(state="sent"))
            await queue(uow, f"/v1/federations/{event.federation}/evaluations", body)
            about = (Entity("federation", event.federation, digest=event.plan_hash),)
            uow.audit(AuditEntry("federation.evaluate", "E", entities=about, detail={"models": len(models)}))
        self.site.changed.set()

    async def _own(self, opened: Worker, plan: Plan, event: RoundOpened) -> list[str]:
        """This hospital's own model as the worker sees it; none where its algorithm makes none."""
        if not training.makes_own(plan):
            return []
        data, count = await samples.prepare(self.site, plan.data, held_out=False)
        async with training.side(self.site, plan, event, count, self._fetch) as local:
            own = await training.personal(self._trainer(opened, plan, event, data), local)
            return [opened.give(own, "model-own")] if own is not None else []

    async def _send(self, row: Any, event: RoundOpened) -> None:
        """Upload what was trained, then say so."""
        ref = ObjectRef.model_validate(row.update)
        copy = self.site.layout.work / "outgoing" / ref.sha256
        copy.parent.mkdir(parents=True, mode=0o700, exist_ok=True)
        try:
            await upload(self.gateway, await fetch(self.site.objects, ref, copy))
        finally:
            await asyncio.to_thread(wipe, copy)
        async with self.site.unit() as uow:
            await uow.execute(update(tasks).where(_key(event)).values(state="sent"))
            body = {
                "round": event.round,
                "attempt": event.attempt,
                "update": ref.model_dump(),
                "samples": row.samples,
                "metrics": row.metrics,
            }
            await queue(uow, f"/v1/federations/{event.federation}/updates", body)
            about = (Entity("federation", event.federation, digest=event.plan_hash), Entity("update", str(event.round), digest=ref.sha256))
            uow.audit(AuditEntry("federation.upload", "E", entities=about, detail={"round": event.round, "bytes": ref.bytes}))
        self.site.changed.set()

    async def _release(self) -> None:
        """Updates the platform has no more need of are deleted: they are this hospital's."""
        async with self.site.unit() as uow:
            done = await uow.all(select(tasks).where(tasks.c.state == "releasable"))
        for row in done:
            if row.update:
                await self.site.objects.delete(row.update["sha256"])
            await self._set(RoundOpened.model_validate(row.event), state="released")

    def _tell(self, event: RoundOpened, done: int, total: int) -> None:
        self._progress = {"federation": event.federation, "round": event.round, "done": done, "total": total}

    async def tell_progress(self) -> None:
        """Pass the newest progress on; nobody minds when it is lost."""
        told, self._progress = self._progress, {}
        if told:
            await self.gateway.request("POST", f"/v1/federations/{told.pop('federation')}/progress", told)


def proven(site: Site, row: Any, plan: Plan, event: RoundOpened) -> None:
    """Raise a `Problem` unless the start of this federation and everybody in this round is proven by keys of the roster."""
    if row.start is None:
        raise Problem("federation.unproven", federation=event.federation)
    started = FederationStarted.model_validate(row.start)
    if started.plan_hash != row.plan_hash:
        raise Problem("federation.plan_changed", federation=event.federation)
    verify_start(started, site.trust().governance, site.roster(), datetime.now(UTC))
    check_round(started, event.everybody)
    if len(set(event.everybody)) < plan.min_participants or site.settings.hospital not in event.everybody:
        raise Problem("federation.unproven", federation=event.federation)


def _key(event: RoundOpened) -> Any:
    return (tasks.c.federation == event.federation) & (tasks.c.round == event.round) & (tasks.c.attempt == event.attempt)


def hospital_seed(seed: int, hospital: str) -> int:
    """Each hospital draws its batches differently, and a repeated attempt draws the same."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{hospital}".encode()).digest()[:6], "big")
