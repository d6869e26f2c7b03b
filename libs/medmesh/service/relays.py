"""The two relays of a service: messages from the outbox to the bus, audit records to the log.

Both are woken in-process by a commit and poll once a second for safety; both may be killed at any line and by two at once.
"""

from __future__ import annotations

import asyncio
import base64
import logging
from contextlib import suppress
from dataclasses import dataclass, field
from time import monotonic, perf_counter

from medmesh.bus.port import Bus, BusMessage
from medmesh.contracts.audit import AuditBatch, AuditRecord, Receipts, record_subject
from medmesh.errors import Problem
from medmesh.service.emission import Emission
from medmesh.store.database import Database
from medmesh.tasks import end
from medmesh.telemetry import log, metrics

POLL_SECONDS = 1.0
GATHER_SECONDS = 0.1
"""How long audit records gather before they are handed in: the log takes a hundred of a batch for little more than one."""
MEASURE_SECONDS = 5.0


@dataclass
class _Loop:
    """Runs `step` when woken or polled, and at once again while it says there is more; backs off while it fails."""

    name: str
    gather: float = 0.0
    """Seconds to let more come after being woken."""
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
        failures = 0
        while True:
            try:
                self.awake.clear()
                more = await self.step()
                failures = 0
            except asyncio.CancelledError:
                raise
            except Exception as error:
                more = False
                failures += 1
                if failures in (1, 10, 100):
                    log(f"{self.name}.failed", level=logging.WARNING, error=error, failures=failures)
                await asyncio.sleep(min(0.1 * 2**failures, 5.0))
            if not more:
                # Not `wait_for`, which in Python 3.11 loses a cancellation that comes in the moment of waking: `stop` would hang.
                with suppress(TimeoutError):
                    async with asyncio.timeout(POLL_SECONDS):
                        await self.awake.wait()
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
    """Publishes what committed transactions left in the outbox, pipelined, with the event's id as `Nats-Msg-Id`."""

    name: str = "outbox"
    service: str = ""
    database: Database = field(default=None)  # type: ignore[assignment]
    bus: Bus = field(default=None)  # type: ignore[assignment]
    batch: int = 256

    async def step(self) -> bool:
        started = perf_counter()
        async with self.database.claim_unsent(self.batch) as (rows, mark):
            if not rows:
                return False
            outcomes = await self.bus.publish([BusMessage(row.id, row.subject, row.body) for row in rows])
            sent = [row.id for row, outcome in zip(rows, outcomes, strict=True) if outcome is None]
            if sent:
                await mark(sent)
        metrics.PUBLISH_SECONDS.labels(self.service).observe(perf_counter() - started)
        for row, outcome in zip(rows, outcomes, strict=True):
            kind = ".".join(row.subject.split(".")[1:5])
            metrics.PUBLISHED.labels(self.service, kind, "ok" if outcome is None else "failed").inc()
        failed = next((outcome for outcome in outcomes if outcome is not None), None)
        if failed is not None:
            raise failed
        return len(rows) == self.batch


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
