"""Dead letters: what was given up on, kept with its reason until an operator replays it."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import delete, desc, select, update
from sqlalchemy import insert as insert_into

from medmesh.bus.declarations import Consumer
from medmesh.bus.port import Delivery
from medmesh.contracts.message import Envelope
from medmesh.contracts.system import DeadLetter, DeadLetters, ListDeadLetters
from medmesh.errors import Problem
from medmesh.store.database import Database
from medmesh.store.tables import service_metadata
from medmesh.store.unit import Context, UnitOfWork
from medmesh.telemetry import log, metrics

_DEAD = service_metadata().tables["dead_letters"]


def _id(delivery: Delivery, message: Envelope[Any] | None) -> str:
    if message is not None:
        return message.id
    try:
        return str(json.loads(delivery.body)["id"])[:64]
    except (ValueError, KeyError, TypeError):
        return str(delivery.headers.get("Nats-Msg-Id", "unreadable"))[:64]


async def bury(database: Database, consumer: Consumer, delivery: Delivery, message: Envelope[Any] | None, problem: Problem) -> None:
    """Keep a message as a dead letter; the same one again only counts up."""
    event, now = _id(delivery, message), datetime.now(UTC)
    async with database.unit(Context(consumer.service)) as uow:
        key = (_DEAD.c.consumer == consumer.durable) & (_DEAD.c.event_id == event)
        known = await uow.execute(
            update(_DEAD).where(key).values(attempts=delivery.attempt, last_error=now, code=problem.code, reason=str(problem))
        )
        if known.rowcount == 0:
            values = {
                "consumer": consumer.durable,
                "event_id": event,
                "subject": delivery.subject,
                "code": problem.code,
                "reason": str(problem),
                "attempts": delivery.attempt,
                "first_error": now,
                "last_error": now,
                "body": delivery.body,
            }
            await uow.execute(insert_into(_DEAD).values(values))
    metrics.DEAD_LETTERS.labels(consumer.service, consumer.durable).inc()
    log("dead.letter", level=40, consumer=consumer.durable, message=event, code=problem.code)


def _view(service: str, row: Mapping[str, Any], *, body: bool) -> DeadLetter:
    return DeadLetter(
        service=service,
        consumer=row["consumer"],
        event=row["event_id"],
        subject=row["subject"],
        code=row["code"],
        reason=row["reason"],
        attempts=row["attempts"],
        first_error=row["first_error"],
        last_error=row["last_error"],
        body=base64.b64encode(row["body"]).decode() if body else None,
    )


async def listed(query: ListDeadLetters, uow: UnitOfWork[Any]) -> DeadLetters:
    """The answer to `ListDeadLetters`."""
    wanted = select(_DEAD).order_by(desc(_DEAD.c.last_error)).limit(max(1, min(query.limit, 200)))
    if query.event:
        wanted = wanted.where(_DEAD.c.event_id == query.event)
    rows = (await uow.execute(wanted)).mappings().all()
    return DeadLetters(letters=tuple(_view(query.service, dict(row), body=query.event is not None) for row in rows))


class Replay:
    """A dead letter as a delivery: handled like any other, and gone when it succeeds."""

    def __init__(self, subject: str, body: bytes) -> None:
        self.subject, self.body = subject, body
        self.headers: Mapping[str, str] = {}
        self.attempt = 10_000
        self.handled = False

    async def ack(self) -> None:
        self.handled = True

    async def retry(self, delay: float) -> None:
        return None

    async def terminate(self, reason: str) -> None:
        return None


async def exhume(database: Database, service: str, consumer: str, event: str) -> Replay | None:
    """The dead letter to replay; None when there is none."""
    async with database.unit(Context(service)) as uow:
        row = await uow.first(select(_DEAD.c.subject, _DEAD.c.body).where(_DEAD.c.consumer == consumer, _DEAD.c.event_id == event))
    return Replay(row.subject, row.body) if row else None


async def forget(database: Database, service: str, consumer: str, event: str) -> None:
    """The replay succeeded."""
    async with database.unit(Context(service)) as uow:
        await uow.execute(delete(_DEAD).where(_DEAD.c.consumer == consumer, _DEAD.c.event_id == event))
