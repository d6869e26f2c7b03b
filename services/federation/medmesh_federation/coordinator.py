"""The coordinator: looks at every open federation, does the one thing that is due, and may be killed at any line.

Each step is one transaction under the federation's row lock; what is expensive (aggregation) happens outside and is done again
after a crash, from the same updates in the same order, with the same result.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from sqlalchemy import bindparam, or_, select

from medmesh.contracts.federation import CandidateModel, RoundKind, SecurePhase
from medmesh.errors import Problem
from medmesh.federated.plan import plan_of
from medmesh.service.runtime import Runtime
from medmesh.store.prepared import Prepared
from medmesh.store.unit import UnitOfWork
from medmesh.telemetry import log, span
from medmesh_federation import (
    clearing,
    evaluation,
    lost,
    pace,
    privacy,
    queue,
    remaking,
    results,
    screening,
    secure,
    starting,
    steps,
    transcript,
    unfit,
)
from medmesh_federation.answering import FLAGGED, LOST
from medmesh_federation.domain import (
    OPEN_STATES,
    OVER,
    Advance,
    Close,
    Drop,
    Lapse,
    Move,
    Open,
    Round,
    Situation,
    Skip,
    State,
    Step,
    Void,
    Wait,
    next_step,
)
from medmesh_federation.handlers import WHOLE, there
from medmesh_federation.ports import Ports
from medmesh_federation.tables import federations, participants, rounds

STORE_SECONDS = 5.0
"""After which what could not be stored is tried again."""
_IS_OPEN = or_(*(federations.c.state == state.value for state in OPEN_STATES))
_OPEN = Prepared(select(federations.c.federation).where(_IS_OPEN).order_by(federations.c.created_at))
_LOCK = Prepared(WHOLE.where(federations.c.federation == bindparam("federation"), _IS_OPEN).with_for_update(skip_locked=True))
_WAIT = Prepared(WHOLE.where(federations.c.federation == bindparam("federation"), _IS_OPEN).with_for_update())
_PEOPLE = Prepared(select(participants.c.hospital, participants.c.state).where(participants.c.federation == bindparam("federation")))
_THEIRS = rounds.c.federation == bindparam("federation")
_NEWEST = Prepared(select(rounds).where(_THEIRS).order_by(rounds.c.round.desc(), rounds.c.attempt.desc()).limit(1))
_LEFT = (rounds.c.state == "committed") & ~rounds.c.stored
_UNSTORED = Prepared(select(rounds.c.round).where(_THEIRS, _LEFT, ~rounds.c.undone).limit(1))
_GONE = rounds.c.gone_since.is_not(None)
# Each is made from those before it; what is gone for good keeps nothing else waiting.
_TO_STORE = Prepared(select(rounds).where(_LEFT).order_by(_GONE, rounds.c.round))


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
                try:
                    while await self._step(federation):
                        pass
                except Exception as error:  # its own: the others go on
                    log("federation.step_failed", level=40, error=error, federation=federation)
            with suppress(TimeoutError):
                async with asyncio.timeout(self.ports.settings.tick_seconds):
                    await self.ports.wake.wait()

    async def _open(self) -> list[str]:
        return [row.federation for row in await self.runtime.database.look(_OPEN)]

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
            if isinstance(step, Open) and not await there(self.ports, row.model["sha256"]):
                return False  # it is made again first: `_make_again`
            if not isinstance(step, Close):
                await self._apply(uow, row, situation, step)
                return not isinstance(step, Open | Advance | Wait)  # what follows, somebody says, or a deadline
            assert situation.round is not None
            kind, number, attempt = situation.round.kind, situation.round.number, situation.round.attempt
            given = await pace.counting(uow, federation, situation.plan, number, attempt, kind)
            seen = await screening.replayed(uow, situation.plan, given)
            opening = None
            if situation.round.phase is not None:
                session = transcript.session_of(row, number, attempt)
                opening = secure.Opening(session, await transcript.said(uow, federation, number, attempt))
        made, failed, those, began = None, None, list[Any](), time.monotonic()
        with span(f"federation round {kind}"):
            try:
                with self.ports.holding() as held:
                    made = await results.result(held, row, situation, given, opening, seen)
            except Problem as problem:
                if await self._ask_again(federation, given):
                    return True
                # A base that is gone is made again, see `_make_again`.
                if unfit.is_transient(problem) or not await there(self.ports, row.model["sha256"]):
                    raise
                log("federation.round.failed", level=40, error=problem, federation=federation, round=number)
                failed = problem.code
                those = await unfit.among(self.ports, row, situation, given, failed) if opening is None else []
        async with self.runtime.unit() as uow:
            # Answers may lock it again and again: what was made is not thrown away for that.
            row = await self._lock(uow, federation, _WAIT)
            if row is None:
                return False
            situation = await self._situation(uow, row)
            # Somebody else (a second instance, a cancellation) may have been here: only the very same decision is carried out.
            open_now = situation.round is not None and (situation.round.number, situation.round.attempt) == (number, attempt)
            same = open_now and isinstance(self._decide(situation), Close)
            again = await pace.counting(uow, federation, situation.plan, number, attempt, kind) if same else []
            if not same or [(a.hospital, a.round) for a in again] != [(a.hospital, a.round) for a in given]:
                return True
            if await screening.replayed(uow, situation.plan, again) != seen:
                return True
            if failed is not None:
                if those:
                    await unfit.leave_out(uow, row, number, those, failed)
                else:  # of a round whose sum was opened there is no second
                    await steps.void(uow, row, situation, failed, skipped=opening is not None)
                return True
            assert made is not None
            await screening.record(uow, row, number, attempt, given, made.found)
            await screening.weigh(uow, given, made.flagged)
            if not made.enough:
                await steps.void(uow, row, situation, FLAGGED)
                return True
            await pace.settle(uow, federation, [a for a in given if a.hospital not in made.excluded], number)
            await results.commit(uow, row, situation, made, round(1000 * (time.monotonic() - began)))
            uow.on_commit(self.ports.committed.set)
        return True

    async def _ask_again(self, federation: str, given: Sequence[Any]) -> bool:
        """Whether any of these updates is gone; it is on its way again, then."""
        if gone := await lost.among(self.ports, given):
            async with self.runtime.unit() as uow:
                if (row := await self._lock(uow, federation, _WAIT)) is not None:
                    await lost.ask_again(uow, row, gone)
        return bool(gone)

    async def _lock(self, uow: UnitOfWork[Any], federation: str, how: Prepared = _LOCK) -> Any:
        return next(iter(await uow.rows(how, federation=federation)), None)

    async def _situation(self, uow: UnitOfWork[Any], row: Any) -> Situation:
        plan = plan_of(row)
        people = {p.hospital: p.state for p in await uow.rows(_PEOPLE, federation=row.federation)}
        newest = next(iter(await uow.rows(_NEWEST, federation=row.federation)), None)
        current = None
        leases, seconds = self.ports.leases, plan.lease_seconds
        online = frozenset(h for h in people if leases.online(h, seconds))
        if newest is not None:
            given = await steps.answered(uow, row.federation, newest.round, newest.attempt)
            phase = SecurePhase(newest.phase) if newest.phase else None
            answered = frozenset(a.hospital for a in given if a.failed is None)
            spoken, whole = answered, frozenset[str]()
            training = newest.kind == RoundKind.TRAIN and newest.state == "open"
            if phase is not None and newest.state == "open":
                heard = await transcript.who(uow, row.federation, newest.round, newest.attempt, phase)
                spoken, whole = (answered, heard) if phase is SecurePhase.VECTORS else (heard, whole)
            current = Round(
                newest.round,
                newest.attempt,
                RoundKind(newest.kind),
                newest.state,
                frozenset(newest.assigned),
                answered,
                frozenset(a.hospital for a in given if a.failed not in (None, LOST)),
                newest.deadline,
                phase,
                frozenset(newest.parties or ()),
                spoken,
                whole,
                tuple(CandidateModel.model_validate(model) for model in newest.models),
                frozenset(a.hospital for a in given if a.failed == LOST),
                frozenset(await pace.waiting(uow, row.federation, plan, newest.round, answered)) if training else frozenset(),
            )
            # Who is in a round is given its whole lease, also right after our own restart; who answered one, for the next.
            there = newest.assigned if newest.state == "open" else answered
            online |= frozenset(h for h in there if not leases.lapsed(h, seconds))
        # Looked up only where a round is about to open, or none will be.
        between = current is None or current.state != "open"
        stored = between and not await uow.rows(_UNSTORED, federation=row.federation)
        closed = plan.stop is not None and current is not None and current.state == "committed"
        scores = await evaluation.scores(uow, row.federation, plan) if closed else {}
        busy = frozenset[str]()
        if current is not None and between:
            busy = await pace.busy(uow, row.federation, plan, current.number + (current.state in OVER))
        return Situation(
            State(row.state),
            plan,
            row.approval is not None,
            people,
            online,
            current,
            row.voids,
            row.waiting_since,
            stored=stored,
            now=uow.now,
            lapsed=row.approved_until is not None and uow.now > row.approved_until,
            blocked=row.state == State.QUEUED and await queue.blocked(uow, row, self.ports),
            scores=scores,
            begun=await privacy.begun(uow, row.federation) if plan.privacy is not None and between else 0,
            trained=await steps.trained(uow, row.federation) if (plan.privacy is not None or plan.secure is not None) and between else 0,
            skipped=await steps.skipped(uow, row.federation) if plan.secure is not None and between else 0,
            busy=busy,
        )

    def _decide(self, situation: Situation) -> Step | None:
        settings = self.ports.settings
        return next_step(situation, quorum_grace=settings.quorum_grace_seconds, max_voids=settings.max_void_rounds)

    async def _apply(self, uow: UnitOfWork[Any], row: Any, situation: Situation, step: Step) -> None:
        match step:
            case Move():
                await steps.move(uow, row, situation, step)
            case Lapse():
                await starting.forget(uow, row, "expired")
            case Open():
                await steps.open_round(uow, row, situation, step)
            case Drop():
                await steps.drop(uow, row, situation, step)
            case Advance():
                await secure.advance(uow, row, situation, step)
            case Void():
                await steps.void(uow, row, situation)
            case Skip():
                await steps.void(uow, row, situation, "secure.unopened", skipped=True)
            case Wait():
                await steps.wait(uow, row, situation, self.ports.settings.quorum_grace_seconds)
            case Close():
                raise AssertionError("a round is closed in two transactions")

    async def store_behind(self) -> None:
        """Forever: copy committed models to the kept store, beside the rounds that go on; only then do hospitals release their updates,
        and we ours, as we do those of rounds that came to nothing."""
        while True:
            self.ports.committed.clear()
            await self._store()
            await clearing.clear(self.runtime, self.ports)
            with suppress(TimeoutError):
                async with asyncio.timeout(STORE_SECONDS):
                    await self.ports.committed.wait()

    async def _store(self) -> None:
        for row in await self.runtime.database.look(_TO_STORE):
            try:
                await self._store_one(row)
            except Exception as error:  # its own: the others go on
                log("federation.store_failed", level=40, error=error, federation=row.federation, round=row.round)

    async def _store_one(self, row: Any) -> None:
        try:
            if await results.store(self.runtime, self.ports, row):
                self.ports.wake.set()
        except Problem as problem:
            if row.gone_since is not None:  # said, and shown to people
                return
            if problem.code != "objects.missing":
                raise
            log("federation.store_failed", level=40, error=problem, federation=row.federation, round=row.round)
            await self._make_again(row)

    async def _make_again(self, row: Any) -> None:
        """What could not be copied, because it is gone; asks for those updates that are gone, too."""
        about: dict[str, Any] = {"federation": row.federation, "round": row.round}
        given: Sequence[Any] | None
        if row.kind == RoundKind.BASELINE:  # tried again with those that are there then
            async with self.runtime.unit() as uow:
                given = await steps.answers_of(uow, row.federation, row.round, row.attempt)
        elif row.kind == RoundKind.TRAIN:
            try:
                if (given := await remaking.remake(self.runtime, self.ports, row)) is None:
                    log("federation.round.remade", level=30, **about)
                    self.ports.committed.set()
                    return
            except Problem as problem:
                log("federation.remake_failed", level=40, error=problem, **about)
                if problem.code == "federation.remade":
                    await remaking.give_up(self.runtime, row, problem.params["why"])
                return
        else:
            return
        await self._ask_again(row.federation, given)
