"""The one writer of the log: it drains a queue, gives out numbers without gaps, and commits what waits as one group.

While one group is written the next gathers; nobody waits for companions. Two instances may run: one leads, the other stands by.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import select

from medmesh.contracts.audit import CheckpointPublished
from medmesh.errors import Problem
from medmesh.ledger import note
from medmesh.service.runtime import Runtime
from medmesh.store.session import Collision, Session, session
from medmesh.telemetry import log
from medmesh_audit import head
from medmesh_audit.alarms import alarm
from medmesh_audit.domain import Entry
from medmesh_audit.placing import Conflict, Placed, Placing
from medmesh_audit.tables import checkpoints

_MOST = 2_000
_BEAT_SECONDS = 1.0
_STAND_BY_SECONDS = 0.5

Waiting = tuple[list[Entry], asyncio.Future[list[Placed]]]


@dataclass
class Sequencer:
    """`append` returns when the records are durable and under a signed checkpoint. `lead` is entered while this instance writes."""

    runtime: Runtime
    origin: str
    key: Ed25519PrivateKey
    lead: Callable[[], AbstractAsyncContextManager[None]]
    promised: Callable[[], Awaitable[note.Checkpoint | None]]
    """The newest checkpoint that left the database: a log that is shorter was rolled back."""
    leading: bool = False
    halted: Problem | None = None
    _queue: asyncio.Queue[Waiting] = field(default_factory=asyncio.Queue)
    _head: head.Head | None = None
    _settled: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def vkey(self) -> str:
        """The key auditors verify with."""
        return note.verifier_key(self.origin, self.key.public_key())

    async def ready(self) -> None:
        """Raise when the log contradicts what was signed: nothing is written to it any more."""
        if self.halted is not None:
            raise self.halted

    async def settle(self, seconds: float = 3.0) -> None:
        """Return when it is known whether this instance leads, stands by or may not write, or after that time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._settled.wait()

    async def append(self, batch: list[Entry]) -> list[Placed]:
        """Sequence one emitter's records, all or none. Records the log has already are answered with their places."""
        done: asyncio.Future[list[Placed]] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait((batch, done))
        return await done

    async def run(self) -> None:
        """Stand by, take over, write until the database or another writer ends it; called again after a failure."""
        if self.halted is not None:
            return
        try:
            async with session(self.runtime.database) as opened:
                await self._stand_by(opened)
                self._head = await head.take_over(opened, self.vkey)
                await self._keeps_promise(self._head)
                self.leading = True
                log("audit.leads", term=self._head.term, size=self._head.edge.size)
                async with self.lead():
                    self._settled.set()
                    while True:
                        await self._round(opened)
        except Problem as problem:
            if problem.code != "audit.inconsistent":
                raise
            self.halted = problem
            self._settled.set()
            await alarm(self.runtime, "inconsistent", reason=problem)
        finally:
            self.leading = False
            self._refuse_waiting()

    def _refuse_waiting(self) -> None:
        while not self._queue.empty():
            _, done = self._queue.get_nowait()
            _answer(done, Problem("audit.retry"))

    async def _keeps_promise(self, found: head.Head) -> None:
        try:
            promised = await self.promised()
        except Exception as error:
            log("audit.unpromised", level=30, error=error)  # the store is away: the next start compares
            return
        if promised is None or promised.size < found.edge.size or (promised.size, promised.root) == (found.edge.size, found.edge.root()):
            return
        raise Problem("audit.inconsistent", what=f"a checkpoint of size {promised.size} was sealed, the database has {found.edge.size}")

    async def _stand_by(self, opened: Session) -> None:
        """Return when this instance has the lock."""
        while not await opened.lock(head.LOCK):
            self._settled.set()
            if await head.silent(opened):
                log("audit.unseats", level=30)
                await opened.unseat(head.LOCK)
            await asyncio.sleep(_STAND_BY_SECONDS)

    async def _round(self, opened: Session) -> None:
        """The next group, or a sign of life when there is none."""
        assert self._head is not None
        group: list[Waiting] = []
        with suppress(TimeoutError):
            async with asyncio.timeout(_BEAT_SECONDS):
                group.append(await self._queue.get())
        if not group:
            await head.beat(opened, self._head.term)
            return
        count = len(group[0][0])
        while count < _MOST and not self._queue.empty():
            group.append(self._queue.get_nowait())
            count += len(group[-1][0])
        try:
            try:
                await self._commit(opened, group)
            except Collision:
                # Some record took the id of another one: whose it is shows when each is written alone.
                for one in group:
                    await self._alone(opened, one)
        except BaseException:
            for _, done in group:
                _answer(done, Problem("audit.retry"))
            raise

    async def _alone(self, opened: Session, one: Waiting) -> None:
        try:
            await self._commit(opened, [one])
        except Collision:
            conflict = await Conflict.of_ids(opened, one[0])
            await self._report(opened, conflict)
            _answer(one[1], Problem("audit.rewritten", emitter=conflict.entry.emitter, n=conflict.entry.n))

    async def _commit(self, opened: Session, group: list[Waiting]) -> None:
        assert self._head is not None
        before, now = self._head, datetime.now(UTC)
        placing, answers = Placing(opened, before), list[tuple[asyncio.Future[list[Placed]], list[Placed] | Problem]]()
        for batch, done in group:
            try:
                answers.append((done, await placing.place(batch)))
            except Conflict as conflict:
                await self._report(opened, conflict)
                answers.append((done, Problem("audit.rewritten", emitter=conflict.entry.emitter, n=conflict.entry.n)))
            except Problem as problem:
                answers.append((done, problem))
        if placing.fresh:
            after, full = head.extended(before, placing.fresh)
            point = note.Checkpoint(self.origin, after.edge.size, after.edge.root())
            signed = note.sign(point.text(), self.origin, self.key)
            await head.write(opened, before, after, placing.fresh, full, signed, now)
            self._head = after
        for done, answer in answers:
            _answer(done, answer)

    async def _report(self, opened: Session, conflict: Conflict) -> None:
        """Keep the other record beside the one that was logged; said once, however often it comes again."""
        if await conflict.keep(opened):
            await alarm(self.runtime, "rewritten", emitter=conflict.entry.emitter, n=conflict.entry.n, seq=conflict.seq)

    async def publish(self) -> None:
        """Tell everybody the newest checkpoint: also the fact that the log lives."""
        if not self.leading:
            return
        async with self.runtime.unit() as uow:
            row = await uow.first(select(checkpoints).order_by(checkpoints.c.size.desc()).limit(1))
            if row is not None:
                uow.emit(CheckpointPublished(size=row.size, root=row.root.hex(), note=row.note))


def _answer(done: asyncio.Future[list[Placed]], answer: list[Placed] | Problem) -> None:
    if done.done():
        return
    if isinstance(answer, Problem):
        done.set_exception(answer)
    else:
        done.set_result(answer)
