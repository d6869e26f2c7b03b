"""A hospital's inbox: a table with a row-locked counter; the cursor is that counter, never a stream's sequence."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import insert, select
from sqlalchemy.dialects.postgresql import insert as upsert

from medmesh.contracts.message import Envelope, HospitalEvent
from medmesh.store.database import Database
from medmesh.store.unit import UnitOfWork
from medmesh_gateway.tables import cursors, inboxes

PAGE = 100


@dataclass
class Doorbells:
    """Wakes the open streams of a hospital; a hint only, the streams also look every few seconds."""

    _events: dict[str, set[asyncio.Event]] = field(default_factory=lambda: defaultdict(set))

    def ring(self, hospital: str) -> None:
        """Something new is in the inbox."""
        for event in self._events[hospital]:
            event.set()

    def ring_all(self) -> None:
        """Something changed that concerns who is connected."""
        for hospital in list(self._events):
            self.ring(hospital)

    def listen(self, hospital: str) -> asyncio.Event:
        """An event that is set at the next ring."""
        event = asyncio.Event()
        self._events[hospital].add(event)
        return event

    def leave(self, hospital: str, event: asyncio.Event) -> None:
        """The stream ended."""
        self._events[hospital].discard(event)


async def deliver(event: Envelope[HospitalEvent], uow: UnitOfWork[Any], raw: bytes) -> None:
    """Put a fact into the inbox of every hospital it names, in the order of the stream."""
    document = json.loads(raw)
    # Whoever caused it stays inside: a hospital does not get another party's token.
    document.pop("actor", None)
    body = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
    hospitals = sorted(set(event.data.hospitals))
    if not hospitals:
        return
    counted = upsert(cursors).values([{"hospital": hospital, "last": 1} for hospital in hospitals])
    counted = counted.on_conflict_do_update(index_elements=[cursors.c.hospital], set_={"last": cursors.c.last + 1})
    places = await uow.all(counted.returning(cursors.c.hospital, cursors.c.last))
    same = {"event_id": event.id, "type": event.type, "body": body, "created_at": uow.now}
    await uow.execute(insert(inboxes), [{"hospital": row.hospital, "cursor": row.last, **same} for row in places])

    def ring() -> None:
        for hospital in hospitals:
            uow.ports.doorbells.ring(hospital)

    uow.on_commit(ring)


async def read(database: Database, hospital: str, after: int) -> Sequence[Any]:
    """(cursor, type, body) of what came after a cursor, oldest first, a page of it."""
    wanted = select(inboxes.c.cursor, inboxes.c.type, inboxes.c.body).where(inboxes.c.hospital == hospital, inboxes.c.cursor > after)
    return await database.look(wanted.order_by(inboxes.c.cursor).limit(PAGE))
