"""Doing the hospital's part of a round: train, train alone, or evaluate; then hand the result in.

A trained model is made durable before anything is sent, so that a node which dies afterwards never trains the round again.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import bindparam, case, select, update

from medmesh.client.gateway import Gateway
from medmesh.contracts.data import pipeline_of
from medmesh.contracts.federation import RoundKind, RoundOpened
from medmesh.contracts.plan import Plan
from medmesh.errors import Problem
from medmesh.federated.cells import rounded
from medmesh.federated.plan import evaluates, fixed
from medmesh.federated.trainer import Trainer
from medmesh.learning import weights
from medmesh.learning.host import Worker, worker
from medmesh.store.attempts import attempt, of_attempt
from medmesh.store.prepared import Prepared, as_text
from medmesh.store.unit import AuditEntry, Entity
from medmesh.telemetry import log, span
from medmesh_edge import (
    attempts,
    chain,
    counting,
    encoding,
    evaluation,
    fetching,
    handing,
    memorised,
    pipelines,
    preparing,
    privacy,
    samples,
    sealing,
    secure,
    telling,
    training,
    workers,
)
from medmesh_edge.fetching import Fetched
from medmesh_edge.handing import Trained, is_over
from medmesh_edge.outgoing import has_left, is_transient, queue
from medmesh_edge.policy import hours_begin, refusal
from medmesh_edge.ports import Site
from medmesh_edge.proofs import Proofs, Proven
from medmesh_edge.releasing import DISPENSABLE, Releases
from medmesh_edge.tables import among, federations, tasks
from medmesh_edge.timing import Clock

_OURS = of_attempt(tasks)
_OPEN = Prepared(
    select(*[column if column.name != "event" else as_text(column) for column in tasks.c], federations.c.state.label("taking_part"))
    .outerjoin_from(tasks, federations, federations.c.federation == tasks.c.federation)
    .where(among(tasks.c.state, "trained", "received") | DISPENSABLE)
    .order_by(tasks.c.at)
)
_BEGIN = Prepared(update(tasks).where(_OURS).values(trained=tasks.c.trained + 1))
_DONE = {name: bindparam(name, type_=tasks.c[name].type) for name in ("update", "samples", "metrics", "counts", "milliseconds")}


def _trained(*over: str) -> Prepared:
    """Keep what a round left; what is `over` stays so."""
    return Prepared(update(tasks).where(_OURS).values(state=case((among(tasks.c.state, *over), tasks.c.state), else_="trained"), **_DONE))


# What failed beside, or was void meanwhile and got no masks any more, stays so: then the update is dispensable.
_TRAINED, _TRAINED_MASKED = _trained("failed"), _trained("failed", "superseded")
_FAIL = Prepared(
    update(tasks).where(_OURS, tasks.c.state != "failed").values(state="failed", code=bindparam("why")).returning(tasks.c.round)
)
_GIVE_UP = Prepared(update(tasks).where(_OURS).values(state="superseded"))
_EVALUATED = Prepared(update(tasks).where(_OURS).values(state="sent"))


@dataclass
class Rounds:
    """Works on one round at a time with a worker that stays for the next; `start` starts one."""

    site: Site
    gateway: Gateway
    start: Callable[..., AbstractAsyncContextManager[Worker]] = worker
    linger: float = 0.0
    """For how many seconds what nobody has more need of may wait for the next round."""
    doing: dict[str, Any] = field(default_factory=dict)
    """How far the round is that is worked on; nothing between rounds."""
    _untold: bool = False
    _at_work: tuple[Any, Any] = (None, None)
    _left: Trained | None = None
    """What was trained last and waits for its masks: a small one is not read again from the store."""
    proven: dict[str, Proven] = field(default_factory=dict)
    proofs: Proofs = field(init=False)
    fetched: Fetched = field(init=False)
    worker: workers.Kept = field(init=False)
    releases: Releases = field(init=False)

    def __post_init__(self) -> None:
        self.proofs = Proofs(self.site, self.gateway, self.proven)
        self.fetched = Fetched(self.site, self.gateway)
        self.worker = workers.Kept(self.site, self.gateway, self.start)
        self.releases = Releases(self.site, self.linger)

    async def step(self) -> bool:
        """Do the most urgent thing; False when there is nothing to do. Raises transient problems."""
        await self.worker.forget()
        found, mark = await self.site.database.look(_OPEN), self.site.database.mark
        trained = [one for one in found if one.state == "trained" and await secure.ready(self.site, one)]
        received = [one for one in found if one.state == "received"]
        over = [one for one in found if one.state not in ("trained", "received")]
        row = trained[0] if trained else received[-1] if received else None
        if row is None:
            self.doing = {}
            if not self.releases.wait(over):
                await self.releases.release(over, mark)
            await encoding.sweep(self.site)
            await sealing.sweep(self.site)
            await self.worker.rest()
            return False
        event = chain.opened(row.event)
        if row.taking_part == "withdrawn" and await is_over(self.site, event):
            return True
        if row.state == "received" and datetime.now(UTC) > event.deadline:
            async with self.site.unit() as uow:
                await uow.rows(_GIVE_UP, **attempt(event))
            return True
        if (wait := hours_begin(self.site.policy(), now := datetime.now().astimezone())) > now:
            if row.state == "received" and wait > event.deadline:
                await self._fail(event, Problem("policy.hours"))  # nobody needs to wait for us
                return True
            return False
        try:
            with span(f"edge round {event.kind}"):
                await (self._send(event, self._kept(row)) if row.state == "trained" else self._work(event))
        except Problem as problem:
            if is_transient(problem):
                raise
            await self._fail(event, problem)
        await self.releases.release(over, mark)
        return True

    def _kept(self, row: Any) -> Trained:
        """What a round left, with what of it is here still."""
        found, (left, self._left) = Trained.read(row), (self._left, None)
        if left is None or left.update != found.update:
            return found
        return replace(found, marks=left.marks, data=left.data, since=left.since)

    async def phases(self) -> bool:
        """Answer a phase of a secure sum, beside a training of the same round; False when there is none. Raises transient problems."""
        return await secure.step(self.site, self.proofs.plan, self._say_failed)

    async def _send(self, event: RoundOpened, done: Trained) -> None:
        if await is_over(self.site, event):
            return
        plan = await self.proofs.plan(event)
        await handing.send(self.site, self.gateway, plan, event, done, lambda sent, total: self._tell(event, "send", sent, total))

    async def _fail(self, event: RoundOpened, problem: Problem) -> None:
        """Tell the platform at once, so that nobody waits for us; the next round is a new chance."""
        await self.worker.close()
        await self._say_failed(event, problem)

    async def _say_failed(self, event: RoundOpened, problem: Problem) -> None:
        async with self.site.unit() as uow:
            if not await uow.rows(_FAIL, **attempt(event), why=problem.code):
                return  # said already: a phase of the same round failed beside its training
            await attempts.forget(uow, event)
            body = {"round": event.round, "attempt": event.attempt, "code": problem.code}
            await queue(uow, f"/v1/federations/{event.federation}/failures", body)
            about = (Entity("federation", event.federation, digest=event.plan_hash),)
            uow.audit(AuditEntry("federation.train", "E", outcome=8, why=problem.code, entities=about, detail={"round": event.round}))
        log("edge.round.failed", level=40, federation=event.federation, round=event.round, error=problem)

    async def _work(self, event: RoundOpened) -> None:
        plan, package = await self.proofs.allowed(event)
        # The policy may be another by now than when the plan was signed, and it is this round's steps and batch that are looked at.
        if (refused := refusal(self.site.policy(), fixed(plan), await privacy.cohort(self.site, plan, event.federation))) is not None:
            raise refused
        fetching.check(plan, event)
        await self._prepare(plan, event)
        self.fetched.forget(event)
        opened = await self.worker.of(package, plan, event.federation)
        if event.kind is RoundKind.EVALUATE:
            await self._evaluate(opened, plan, event)
        else:
            await self._train(opened, plan, event)
        self.worker.used()

    async def _prepare(self, plan: Plan, event: RoundOpened) -> None:
        """Apply the plan's pipeline to what is new, before a worker starts."""
        if pipeline_of(plan.data) is None:
            return
        found = await preparing.items_of(self.site, plan.data)
        await pipelines.ensure(self.site, plan.data, found, lambda *done: self._tell(event, "prepare", *telling.prepared(*done)))

    async def _train(self, opened: Worker, plan: Plan, event: RoundOpened) -> None:
        found = await samples.rows(self.site, plan.data, held_out=False)
        data, count = await samples.arrays(self.site, plan.data, found), len(found)
        await privacy.charge(self.site, plan, event)
        clock, counts = Clock(), None
        with clock.of("fetch"):
            base = await self.fetched.model(event, lambda done, total: self._tell(event, "fetch", done, total))
        async with training.side(self.site, plan, event, count, base, self.fetched.beside) as local:
            if event.kind is RoundKind.TRAIN and evaluates(plan, event.round):
                with clock.of("evaluate"):
                    counts = await evaluation.beginning(self.site, opened, plan, local)
            async with self.site.unit(durable=False) as uow:  # what could not be fetched was no training
                await uow.rows(_BEGIN, **attempt(event))
            with clock.of("train"):
                trainer = self._trainer(opened, plan, event, data)
                alone = event.kind is RoundKind.BASELINE
                left, loss = await (trainer.alone(local, event.steps) if alone else trainer.update(local))
            with clock.of("evaluate"):
                await memorised.scan(self.site, opened, plan, event, local)
            with clock.of("store"):
                kept, residual = (await training.store(self.site, left.keep))[0] if left.keep else None, None
                out = await privacy.protect(plan, event, base, left.upload, local.folder / "protected")
                if plan.codec != "none" and event.kind is RoundKind.TRAIN:
                    await asyncio.to_thread(weights.check_finite, out)
                    out, residual = await encoding.encode(self.site, plan, event, base, out, local.folder)
                ref, marks, few = await training.store(self.site, out)
        patients, smallest = Counter(row.patient for row in found), counting.smallest_told(self.site, plan)
        # A loss of few patients says much of each; in a sum it is one of many.
        tells = secure.is_secure(plan, event) or len(patients) >= smallest
        said = rounded(patients, smallest, counting.key(self.site) if smallest > 1 else b"")
        done = Trained(ref, said, {"loss": telling.loss(loss)} if tells else {}, counts, clock.milliseconds, marks=marks, data=few)
        if plan.privacy is not None:
            done = Trained(ref, 1, {}, marks=marks, data=few)  # neither samples, a loss nor a time is noised: they stay
        sources, mark, masks = samples.sources(self.site, found), self.site.database.mark, False
        async with self.site.unit() as uow:
            if residual is not None:
                await encoding.keep(uow, event, residual)
            await training.remember(uow, event, kept)
            await sealing.named(uow, ref.sha256, *([kept.sha256] if kept else []), *([residual] if residual else []))
            await uow.rows(_TRAINED_MASKED if secure.is_secure(plan, event) else _TRAINED, **attempt(event), **done.values())
            if secure.is_secure(plan, event):
                masks = await secure.prepare(self.site, uow, event, plan)
            # A hash is as good as the model to whoever can guess it: nothing is told of one that goes masked.
            digest = "" if secure.is_secure(plan, event) else ref.sha256
            about = (Entity("federation", event.federation, digest=event.plan_hash), Entity("update", str(event.round), digest=digest))
            used = [Entity("dataset", name) for name in sources]
            if (pipeline := pipeline_of(plan.data)) is not None:
                used.append(Entity("pipeline", pipeline.name, digest=pipeline.hash))
            detail: dict[str, str | int | bool] = {"round": event.round, "steps": event.steps, "framework": opened.framework}
            detail["environment"] = self.worker.environment
            detail |= {"chain": event.chain or "", "kind": event.kind.value, "base": event.base.sha256, "committed": event.committed or ""}
            uow.audit(AuditEntry("federation.train", "E", entities=(*about, *used), detail=detail))
        if event.kind is RoundKind.TRAIN and kept is not None:
            await training.forget(self.site, event)
        if residual is not None:
            await encoding.forget(self.site, event)
        log("edge.round.trained", federation=event.federation, round=event.round, steps=event.steps)
        if secure.is_secure(plan, event):
            self._left = replace(done, since=mark if masks else None)  # until its masks are fixed
        else:
            await self._send(event, done)

    def _trainer(self, opened: Worker, plan: Plan, event: RoundOpened, data: Path) -> Trainer:
        return Trainer(
            opened,
            plan,
            opened.give(data, "data"),
            hospital_seed(event.seed, self.site.settings.hospital),
            lambda step, _steps, _loss: self._tell(event, "train", *telling.progress(step, event.steps)),
        )

    async def _evaluate(self, opened: Worker, plan: Plan, event: RoundOpened) -> None:
        clock = Clock()
        with clock.of("evaluate"):
            results, personal = await evaluation.everything(
                self.site, plan, event, lambda data: self._trainer(opened, plan, event, data), self.fetched.beside
            )
        body = {"round": event.round, "attempt": event.attempt, "results": results, "milliseconds": clock.milliseconds}
        if personal is not None:
            body["personal"] = personal
        masked = secure.is_secure(plan, event)
        async with self.site.unit() as uow:
            if masked:  # they wait for their masks, as an update does
                done = Trained(None, 1, {}, evaluation.together(plan, results, personal), clock.milliseconds)
                await uow.rows(_TRAINED_MASKED, **attempt(event), **done.values())
                await secure.prepare(self.site, uow, event, plan)
            else:
                await uow.rows(_EVALUATED, **attempt(event))
            if await has_left(uow.rows, event):
                return
            if not masked:
                await queue(uow, f"/v1/federations/{event.federation}/evaluations", body)
            about = (Entity("federation", event.federation, digest=event.plan_hash),)
            detail: dict[str, str | int | bool] = {"models": len(results) + (personal is not None)}
            uow.audit(AuditEntry("federation.evaluate", "E", entities=about, detail=detail))

    def _tell(self, event: RoundOpened, phase: str, done: int, total: int) -> None:
        self.doing = {"federation": event.federation, "round": event.round, "phase": phase, "done": done, "total": total}
        self._untold = True

    async def tell_progress(self) -> None:
        """Pass the newest progress on, if there is any since the last look, of a round of which there was some before: of a shorter one
        nobody could read. Nobody minds when it is lost."""
        if not self._untold or not self.doing:
            return  # a large piece takes longer than from one look to the next
        self._untold, told = False, dict(self.doing)
        before, self._at_work = self._at_work, (told["federation"], told["round"])
        if self._at_work == before:
            await self.gateway.request("POST", f"/v1/federations/{told.pop('federation')}/progress", told)


def hospital_seed(seed: int, hospital: str) -> int:
    """Each hospital draws its batches differently, and a repeated attempt draws the same."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{hospital}".encode()).digest()[:6], "big")
