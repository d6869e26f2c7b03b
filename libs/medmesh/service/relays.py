"""The two relays of a service: messages from the outbox to the bus, audit records to the log.

Both are woken in-process by a commit and poll for safety, once a second where there is work, every few seconds where there is none; both
may be killed at any line and run twice at once.
"""

from __future__ import annotations

import asyncio
import base64
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from time import monotonic, perf_counter

from medmesh.bus.port import Bus, BusMessage
from medmesh.contracts.audit import AuditBatch, AuditRecord, Receipts, record_subject
from medmesh.errors import Problem
from medmesh.service.emission import Emission
from medmesh.store.database import Database
from medmesh.store.journal import Outgoing
from medmesh.tasks import end
from medmesh.telemetry import log, metrics

POLL_SECONDS = 1.0
IDLE_SECONDS = 4.0
"""How long one waits that found nothing again and again: each time twice as long as before."""
OVERDUE = timedelta(seconds=1)
"""How old a message is that whoever committed it should have published."""
MARK_SECONDS = 0.4
"""After which what was published is marked so, all of it at once: before it is overdue."""
MOST_HANDED_BYTES = 8 * 2**20
"""Of messages in memory, while the bus is slow: more than that is read from the table when its turn comes."""
GATHER_SECONDS = 0.1
"""How long audit records gather before they are handed in: the log takes a hundred of a batch for little more than one."""
MEASURE_SECONDS = 5.0


@dataclass
class _Loop:
    """Runs `step` when woken or polled, and at once again while it says there is more; backs off while it fails."""

    name: str
    gather: float = 0.0
    """Seconds to let more come after being woken."""
    due: float = IDLE_SECONDS
    """In how many seconds there is something to do at the latest, also when nobody wakes it."""
    awake: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None

    def wake(self) -> None:
        """There is something to do."""
        self.awake.set()

    async def step(self) -> bool:
        raise NotImplementedError

    def start(self) -> None:
        """Run in the background until `stop`."""
        self.task = asyncio.create_task(self._run(), name=self.name)

    async def _run(self) -> None:
        failures, wait = 0, POLL_SECONDS
        while True:
            try:
                self.awake.clear()
                more = await self.step()
                failures = 0
            except asyncio.CancelledError:
                raise
            except Exception as error:
                more, wait = False, POLL_SECONDS
                failures += 1
                if failures in (1, 10, 100):
                    log(f"{self.name}.failed", level=logging.WARNING, error=error, failures=failures)
                await asyncio.sleep(min(0.1 * 2**failures, 5.0))
            if not more:
                # Not `wait_for`, which in Python 3.11 loses a cancellation that comes in the moment of waking: `stop` would hang.
                now = min(wait, self.due)
                wait = wait if now < wait else min(2 * wait, IDLE_SECONDS)
                with suppress(TimeoutError):
                    async with asyncio.timeout(now):
                        await self.awake.wait()
                        wait = POLL_SECONDS
                        await asyncio.sleep(self.gather)

    async def stop(self) -> None:
        """Do one last round, then end."""
        if self.task is None:
            return
        await end(self.task)
        try:
            async with asyncio.timeout(3):
                while await self.step():
                    pass
        except Exception as error:
            log(f"{self.name}.unfinished", level=logging.WARNING, error=error)


@dataclass
class OutboxRelay(_Loop):
    """Publishes what committed transactions left in the outbox, pipelined, with the event's id as `Nats-Msg-Id`.

    What this process committed is handed over and published from memory, and marked as sent a moment later: whoever dies in between
    publishes it again, under the same id. The table is asked at the start, after a failure, and once a
    second for what is older than `OVERDUE`: what another process left that is gone, and what memory had no room for.
    """

    name: str = "outbox"
    service: str = ""
    database: Database = field(default=None)  # type: ignore[assignment]
    bus: Bus = field(default=None)  # type: ignore[assignment]
    batch: int = 256
    _handed: deque[Outgoing] = field(default_factory=deque)
    _bytes: int = 0
    _behind: bool = True
    """Whether the table holds what memory does not: then it is asked for all of it, in its order."""
    _look_at: float = 0.0
    _sent: list[str] = field(default_factory=list)
    """Published from memory, and not marked yet."""
    _mark_at: float = 0.0

    def hand(self, messages: Sequence[Outgoing]) -> None:
        """Messages of a transaction that was committed just now."""
        if not self._behind:
            self._handed.extend(messages)
            self._bytes += sum(len(message.body) for message in messages)
            if self._bytes > MOST_HANDED_BYTES:
                self._go_by_table()
        self.wake()

    def _go_by_table(self) -> None:
        self._behind = True
        self._handed.clear()
        self._bytes = 0

    async def step(self) -> bool:
        try:
            if self._behind or monotonic() >= self._look_at:
                return await self._from_table()
            more = await self._from_memory()
            if self._sent and monotonic() >= self._mark_at:
                await self._mark()
            return more
        except BaseException:
            self._go_by_table()  # also when cancelled: what was published and not marked is published again, under the same id
            raise

    async def stop(self) -> None:
        """Mark what was published, publish what is left, then end."""
        self._go_by_table()
        await super().stop()

    async def _from_memory(self) -> bool:
        rows = [self._handed.popleft() for _ in range(min(self.batch, len(self._handed)))]
        self._bytes -= sum(len(row.body) for row in rows)
        outcomes = await self._publish(rows, self._note)
        if any(outcomes):
            await self._mark()  # or the table is read with them
        _none_failed(outcomes)
        return bool(self._handed)

    async def _note(self, ids: Sequence[str]) -> None:
        if not self._sent:
            self.due, self._mark_at = MARK_SECONDS, monotonic() + MARK_SECONDS
        self._sent += ids

    async def _mark(self) -> None:
        ids, self._sent, self.due = self._sent, [], IDLE_SECONDS
        if ids:
            await self.database.sent(ids)

    async def _from_table(self) -> bool:
        await self._mark()
        before = None if self._behind else datetime.now(UTC) - OVERDUE
        # From here on what is committed is handed over again: it is either in what is read now, or in memory, or in both.
        self._behind, self._look_at = False, monotonic() + POLL_SECONDS
        if before is not None and not await self.database.overdue(before):
            return bool(self._handed)
        async with self.database.claim_unsent(self.batch, before) as (rows, mark):
            outcomes = await self._publish(rows, mark)
        _none_failed(outcomes)
        if len(rows) == self.batch:
            self._go_by_table()
            return True
        known = {row.id for row in rows}
        handed = [message for message in self._handed if message.id not in known]
        self._handed, self._bytes = deque(handed), sum(len(message.body) for message in handed)
        return bool(handed)

    async def _publish(self, rows: Sequence[Outgoing], mark: Callable[[Sequence[str]], Awaitable[None]]) -> Sequence[BaseException | None]:
        """Publish these and mark those that the stream took; what became of each."""
        if not rows:
            return ()
        started = perf_counter()
        outcomes = await self.bus.publish([BusMessage(row.id, row.subject, row.body) for row in rows])
        if sent := [row.id for row, outcome in zip(rows, outcomes, strict=True) if outcome is None]:
            await mark(sent)
        metrics.PUBLISH_SECONDS.labels(self.service).observe(perf_counter() - started)
        for row, outcome in zip(rows, outcomes, strict=True):
            kind = ".".join(row.subject.split(".")[1:5])
            metrics.PUBLISHED.labels(self.service, kind, "ok" if outcome is None else "failed").inc()
        return outcomes


def _none_failed(outcomes: Sequence[BaseException | None]) -> None:
    if (failed := next((outcome for outcome in outcomes if outcome is not None), None)) is not None:
        raise failed


@dataclass
class AuditRelay(_Loop):
    """Hands audit rows in order to the log by request; a row goes only on the log's receipt."""

    name: str = "audit"
    gather: float = GATHER_SECONDS
    service: str = ""
    database: Database = field(default=None)  # type: ignore[assignment]
    bus: Bus = field(default=None)  # type: ignore[assignment]
    batch: int = 64
    emission: Emission = field(default_factory=Emission)
    _measured: float = -MEASURE_SECONDS

    async def step(self) -> bool:
        rows = await self.database.unreceipted(self.batch)
        metrics.AUDIT_PENDING.labels(self.service).set(len(rows))
        if not rows:
            self.emission.measured(None, 0)
            return False
        if monotonic() - self._measured >= MEASURE_SECONDS:
            self._measured = monotonic()
            self.emission.measured(*await self.database.audit_backlog())
        # A request must stay well under the server's largest message; records are small, so this rarely cuts a batch.
        taken: list[tuple[int, str, bytes]] = []
        size = 0
        for row in rows:
            size += len(row[2])
            if taken and size > 400_000:
                break
            taken.append(row)
        batch = AuditBatch(
            emitter=self.service,
            records=tuple(AuditRecord(id=id_, n=n, body=base64.b64encode(body).decode()) for n, id_, body in taken),
        )
        answer = await self.bus.request(record_subject(self.service), batch.model_dump_json().encode(), timeout=10)
        receipts = Receipts.model_validate_json(answer, extra="ignore")
        if receipts.problem:
            raise Problem.from_document(dict(receipts.problem))
        kept = {receipt.id for receipt in receipts.receipts}
        await self.database.receipted([n for n, id_, _ in taken if id_ in kept])
        return len(taken) == len(kept) and (len(taken) < len(rows) or len(rows) == self.batch)
