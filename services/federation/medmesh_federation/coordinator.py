"""The coordinator: looks at every open federation, does the one thing that is due, and may be killed at any line.

Each step is one transaction under the federation's row lock; what is expensive (aggregation) happens outside and is done again
after a crash, from the same updates in the same order, with the same result.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import insert, select, update

from medmesh.contracts.federation import (
    CandidateModel,
    FederationCompleted,
    FederationFailed,
    FederationReady,
    FederationStarted,
    ParticipantDropped,
    ParticipantRejoined,
    RoundCommitted,
    RoundKind,
    RoundOpened,
    RoundStored,
    RoundVoided,
)
from medmesh.contracts.message import ObjectRef
from medmesh.contracts.plan import Plan
from medmesh.errors import Problem
from medmesh.service import labels
from medmesh.service.runtime import Runtime
from medmesh.store.objects.port import file_digest
from medmesh.store.unit import AuditEntry, Entity, UnitOfWork
from medmesh.telemetry import log, span
from medmesh_federation.domain import (
    OPEN_STATES,
    Close,
    Drop,
    Move,
    Open,
    Round,
    Situation,
    State,
    Step,
    Void,
    Wait,
    link,
    next_step,
    round_seed,
)
from medmesh_federation.handlers import entity, invited, local
from medmesh_federation.ports import Ports
from medmesh_federation.tables import answers, federations, participants, rounds


@dataclass
class Coordinator:
    """`run` forever: on every wake-up, and every tick for deadlines and leases."""

    runtime: Runtime
    ports: Ports

    async def run(self) -> None:
        """See the class."""
        while True:
            self.ports.wake.clear()
            for federation in await self._open():
                while await self._step(federation):
                    pass
            await self._store_behind()
            with suppress(TimeoutError):
                async with asyncio.timeout(self.ports.settings.tick_seconds):
                    await self.ports.wake.wait()

    async def _open(self) -> list[str]:
        async with self.runtime.unit() as uow:
            wanted = select(federations.c.federation).where(federations.c.state.in_([s.value for s in OPEN_STATES]))
            return [row.federation for row in await uow.all(wanted.order_by(federations.c.created_at))]

    async def _step(self, federation: str) -> bool:
        """Do what is due for one federation; True when something was done, and there may be more."""
        async with self.runtime.unit() as uow:
            row = await self._lock(uow, federation)
            if row is None:
                return False
            situation = await self._situation(uow, row)
            step = self._decide(situation)
            if step is None:
                return False
            if not isinstance(step, Close):
                await self._apply(uow, row, situation, step)
                return not isinstance(step, Wait)
            assert situation.round is not None
            kind, number, attempt = situation.round.kind, situation.round.number, situation.round.attempt
            given = await self._answers(uow, federation, number, attempt)
            base = ObjectRef.model_validate(row.model)
        with span(f"federation round {kind}"):
            model = await self._result(situation.plan, kind, base, given)
        async with self.runtime.unit() as uow:
            row = await self._lock(uow, federation)
            if row is None:
                return False
            situation = await self._situation(uow, row)
            # Somebody else (a second instance, a cancellation) may have been here: only the very same decision is carried out.
            same = isinstance(self._decide(situation), Close) and situation.round is not None and situation.round.number == number
            if not same or [a.hospital for a in await self._answers(uow, federation, number, attempt)] != [a.hospital for a in given]:
                return True
            await self._commit(uow, row, situation, model)
        return True

    async def _lock(self, uow: UnitOfWork[Any], federation: str) -> Any:
        wanted = select(federations).where(federations.c.federation == federation, federations.c.state.in_([s.value for s in OPEN_STATES]))
        return await uow.first(wanted.with_for_update(skip_locked=True))

    async def _situation(self, uow: UnitOfWork[Any], row: Any) -> Situation:
        plan = Plan.model_validate(row.plan)
        people = {p.hospital: p.state for p in await uow.all(select(participants).where(participants.c.federation == row.federation))}
        wanted = select(rounds).where(rounds.c.federation == row.federation)
        newest = await uow.first(wanted.order_by(rounds.c.round.desc(), rounds.c.attempt.desc()).limit(1))
        current = None
        leases, seconds = self.ports.leases, plan.lease_seconds
        online = frozenset(h for h in people if leases.online(h, seconds))
        if newest is not None:
            given = await self._answers(uow, row.federation, newest.round, newest.attempt, all_of_them=True)
            current = Round(
                newest.round,
                newest.attempt,
                RoundKind(newest.kind),
                newest.state,
                frozenset(newest.assigned),
                frozenset(a.hospital for a in given if a.failed is None),
                frozenset(a.hospital for a in given if a.failed is not None),
                newest.deadline,
            )
            if newest.state == "open":
                # While a round runs a hospital is given its whole lease, also right after our own restart.
                online |= frozenset(h for h in newest.assigned if not leases.lapsed(h, seconds))
        unstored = await uow.first(
            select(rounds.c.round).where(rounds.c.federation == row.federation, rounds.c.state == "committed", ~rounds.c.stored).limit(1)
        )
        approved, stored = row.approval is not None, unstored is None
        return Situation(State(row.state), plan, approved, people, online, current, row.voids, row.waiting_since, stored, uow.now)

    def _decide(self, situation: Situation) -> Step | None:
        settings = self.ports.settings
        return next_step(situation, quorum_grace=settings.quorum_grace_seconds, max_voids=settings.max_void_rounds)

    async def _answers(
        self, uow: UnitOfWork[Any], federation: str, number: int, attempt: int, *, all_of_them: bool = False
    ) -> Sequence[Any]:
        wanted = select(answers).where(
            answers.c.federation == federation, answers.c.round == number, answers.c.attempt == attempt, ~answers.c.late
        )
        if not all_of_them:
            wanted = wanted.where(answers.c.failed.is_(None))
        return await uow.all(wanted.order_by(answers.c.hospital))

    # --- steps ------------------------------------------------------------------------------------------------------

    async def _apply(self, uow: UnitOfWork[Any], row: Any, situation: Situation, step: Step) -> None:
        match step:
            case Move():
                await self._move(uow, row, situation, step)
            case Open():
                await self._open_round(uow, row, situation, step)
            case Drop():
                await self._drop(uow, row, situation, step)
            case Void():
                await self._void(uow, row, situation)
            case Wait():
                await self._set(uow, row, waiting_since=uow.now)
                log("federation.waiting", federation=row.federation)
            case Close():
                raise AssertionError("a round is closed in two transactions")

    async def _set(self, uow: UnitOfWork[Any], row: Any, **values: Any) -> None:
        await uow.execute(update(federations).where(federations.c.federation == row.federation).values(values))

    async def _move(self, uow: UnitOfWork[Any], row: Any, situation: Situation, step: Move) -> None:
        await self._set(uow, row, state=step.to.value, failure=step.failure)
        members = tuple(sorted(situation.those("accepted") | situation.those("dropped")))
        match step.to:
            case State.READY:
                uow.emit(FederationReady(federation=row.federation, plan_hash=row.plan_hash))
            case State.RUNNING:
                uow.emit(await self._started(uow, row, members))
            case State.FAILED:
                failure = step.failure or "federation.failed"
                uow.emit(FederationFailed(federation=row.federation, code=failure, hospitals=tuple(situation.plan.participants)))
            case State.COMPLETED:
                await self._complete(uow, row, situation, members)
            case _:
                pass
        failed = step.to is State.FAILED
        detail = {"to": step.to.value}
        uow.audit(
            AuditEntry(
                "federation.move",
                "U",
                outcome=8 if failed else 0,
                why=step.failure or "",
                entities=(entity(row),),
                hospitals=invited(row),
                detail=detail,
            )
        )
        log("federation.moved", federation=row.federation, to=step.to.value)

    async def _started(self, uow: UnitOfWork[Any], row: Any, members: tuple[str, ...]) -> FederationStarted:
        """With all that a hospital demands to see before it trains."""
        theirs = (participants.c.federation == row.federation) & participants.c.hospital.in_(members)
        signed = {p.hospital: p.signature for p in await uow.all(select(participants).where(theirs))}
        return FederationStarted(
            federation=row.federation,
            plan_hash=row.plan_hash,
            hospitals=members,
            approval=row.token,
            acceptances=tuple(signed[hospital] for hospital in members),
        )

    async def _complete(self, uow: UnitOfWork[Any], row: Any, situation: Situation, members: tuple[str, ...]) -> None:
        label = await labels.label_of(uow, "federation", row.federation)
        uow.emit(
            FederationCompleted(
                federation=row.federation,
                name=row.name,
                plan_hash=row.plan_hash,
                chain=row.chain,
                package=ObjectRef.model_validate(row.package),
                model=ObjectRef.model_validate(row.model),
                rounds=situation.plan.rounds,
                participants=members,
                organisation=row.initiator.rpartition("@")[2],
                label=label.record,
                hospitals=members,
            )
        )

    async def _open_round(self, uow: UnitOfWork[Any], row: Any, situation: Situation, step: Open) -> None:
        plan = situation.plan
        base = ObjectRef.model_validate(row.initial if step.kind is RoundKind.BASELINE else row.model)
        models = await self._candidates(uow, row, situation) if step.kind is RoundKind.EVALUATE else []
        deadline = uow.now + timedelta(seconds=plan.round_deadline_seconds)
        assigned = tuple(sorted(step.assigned))
        for hospital in sorted(step.rejoined):
            where = (participants.c.federation == row.federation) & (participants.c.hospital == hospital)
            await uow.execute(update(participants).where(where).values(state="accepted", reason=""))
            uow.emit(ParticipantRejoined(federation=row.federation, hospital=hospital, round=step.number))
            about = (entity(row), Entity("hospital", hospital))
            uow.audit(AuditEntry("federation.rejoin", "U", entities=about, detail={"round": step.number}))
        values = {
            "federation": row.federation,
            "round": step.number,
            "attempt": step.attempt,
            "kind": step.kind.value,
            "state": "open",
            "base": base.model_dump(),
            "models": [model.model_dump() for model in models],
            "assigned": list(assigned),
            "opened_at": uow.now,
            "deadline": deadline,
            "stored": False,
        }
        await uow.execute(insert(rounds).values(values))
        await self._set(uow, row, waiting_since=None)
        # Alone means as many steps as all rounds of the federation together: the comparison is at equal local work.
        steps = plan.local_steps * (plan.rounds if step.kind is RoundKind.BASELINE else 1)
        uow.emit(
            RoundOpened(
                federation=row.federation,
                round=step.number,
                attempt=step.attempt,
                kind=step.kind,
                plan_hash=row.plan_hash,
                base=base,
                models=tuple(models),
                steps=steps,
                seed=round_seed(plan, step.number),
                deadline=deadline,
                hospitals=assigned,
            )
        )
        log("federation.round.opened", federation=row.federation, round=step.number, attempt=step.attempt, parties=len(assigned))

    async def _candidates(self, uow: UnitOfWork[Any], row: Any, situation: Situation) -> list[CandidateModel]:
        """The global model and every hospital's own from the baseline round."""
        assert situation.round is not None
        wanted = select(rounds.c.attempt).where(
            rounds.c.federation == row.federation, rounds.c.round == situation.plan.rounds + 1, rounds.c.state == "committed"
        )
        attempt = (await uow.execute(wanted)).scalar_one()
        own = await self._answers(uow, row.federation, situation.plan.rounds + 1, attempt)
        made = [CandidateModel(name="federated", weights=ObjectRef.model_validate(row.model))]
        return made + [CandidateModel(name=a.hospital, weights=ObjectRef.model_validate(a.update)) for a in own]

    async def _drop(self, uow: UnitOfWork[Any], row: Any, situation: Situation, step: Drop) -> None:
        assert situation.round is not None
        for hospital, reason in sorted(step.hospitals.items()):
            where = (participants.c.federation == row.federation) & (participants.c.hospital == hospital)
            values = {"state": "dropped", "reason": reason, "drops": participants.c.drops + 1}
            await uow.execute(update(participants).where(where).values(values))
            told = tuple(situation.plan.participants)
            uow.emit(
                ParticipantDropped(
                    federation=row.federation, hospital=hospital, round=situation.round.number, reason=reason, hospitals=told
                )
            )
            about = (entity(row), Entity("hospital", hospital))
            detail = {"round": situation.round.number}
            uow.audit(AuditEntry("federation.drop", "U", outcome=4, why=reason, entities=about, detail=detail))
            log("federation.participant.dropped", level=30, federation=row.federation, hospital=hospital, reason=reason)

    async def _void(self, uow: UnitOfWork[Any], row: Any, situation: Situation) -> None:
        current = situation.round
        assert current is not None
        await self._close_round(uow, row, current, state="void")
        await self._set(uow, row, voids=row.voids + 1)
        event = RoundVoided(
            federation=row.federation, round=current.number, attempt=current.attempt, hospitals=tuple(sorted(current.assigned))
        )
        uow.emit(event)
        detail = {"round": current.number}
        uow.audit(AuditEntry("federation.void", "U", outcome=4, entities=(entity(row),), hospitals=invited(row), detail=detail))

    async def _close_round(self, uow: UnitOfWork[Any], row: Any, current: Round, **values: Any) -> None:
        where = (rounds.c.federation == row.federation) & (rounds.c.round == current.number) & (rounds.c.attempt == current.attempt)
        await uow.execute(update(rounds).where(where).values(closed_at=uow.now, **values))

    # --- results ----------------------------------------------------------------------------------------------------

    async def _result(self, plan: Plan, kind: RoundKind, base: ObjectRef, given: Sequence[Any]) -> ObjectRef:
        """The model a round leaves: aggregated where it trained, unchanged otherwise."""
        from medmesh.federated.aggregation import aggregate  # numpy: not before the first round

        if kind is not RoundKind.TRAIN:
            return base
        updates = [(a.hospital, await local(self.ports, ObjectRef.model_validate(a.update)), a.samples) for a in given]
        origin = await local(self.ports, base)
        with tempfile.TemporaryDirectory(dir=self.ports.settings.state) as folder:
            target = Path(folder) / "model.safetensors"
            await asyncio.to_thread(aggregate, plan.algorithm, origin, updates, target)
            sha256, _ = await asyncio.to_thread(file_digest, target)
            return await self.ports.models.put_file(target, sha256)

    async def _commit(self, uow: UnitOfWork[Any], row: Any, situation: Situation, model: ObjectRef) -> None:
        current = situation.round
        assert current is not None
        chain = link(row.chain, current.number, current.kind, model.sha256)
        await self._close_round(uow, row, current, state="committed", model=model.model_dump(), chain=chain)
        await self._set(uow, row, model=model.model_dump(), chain=chain, voids=0)
        parties = tuple(sorted(current.answered))
        uow.emit(
            RoundCommitted(
                federation=row.federation,
                round=current.number,
                attempt=current.attempt,
                kind=current.kind,
                model=model,
                participants=parties,
                chain=chain,
            )
        )
        detail: dict[str, str | int | bool] = {"round": current.number, "parties": len(parties), "model": model.sha256, "chain": chain}
        uow.audit(AuditEntry("federation.round", "E", entities=(entity(row),), hospitals=invited(row), detail=detail))
        log("federation.round.committed", federation=row.federation, round=current.number, parties=len(parties))

    async def _store_behind(self) -> None:
        """Copy committed models to the kept store; only then do hospitals release their updates, and we ours."""
        async with self.runtime.unit() as uow:
            waiting = await uow.all(select(rounds).where(rounds.c.state == "committed", ~rounds.c.stored).limit(20))
        for row in waiting:
            try:
                await self._store(row)
                self.ports.wake.set()
            except Problem as problem:
                log("federation.store_failed", level=40, error=problem, federation=row.federation, round=row.round)

    async def _store(self, row: Any) -> None:
        model = ObjectRef.model_validate(row.model)
        keep = [model]
        async with self.runtime.unit() as uow:
            given = await self._answers(uow, row.federation, row.round, row.attempt)
        updates = [ObjectRef.model_validate(a.update) for a in given if a.update]
        if row.kind == RoundKind.BASELINE:
            keep += updates
        for ref in keep:
            if await self.ports.stores.kept.size(ref.sha256) is None:
                await self.ports.stores.kept.put_file(await local(self.ports, ref), ref.sha256)
        async with self.runtime.unit() as uow:
            where = (rounds.c.federation == row.federation) & (rounds.c.round == row.round) & (rounds.c.attempt == row.attempt)
            done = await uow.execute(update(rounds).where(where, ~rounds.c.stored).values(stored=True))
            if done.rowcount:
                uow.emit(
                    RoundStored(federation=row.federation, round=row.round, attempt=row.attempt, model=model, hospitals=tuple(row.assigned))
                )
        # A single hospital's update is worth nothing now, and is not kept.
        for ref in updates:
            if ref not in keep:
                await self.ports.stores.scratch.delete(ref.sha256)
