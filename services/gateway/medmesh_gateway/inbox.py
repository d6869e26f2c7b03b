"""A hospital's inbox: a table with a row-locked counter; the cursor is that counter, never a stream's sequence."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ARRAY, String, bindparam, func, insert, literal_column, select
from sqlalchemy.dialects.postgresql import insert as upsert

from medmesh.contracts.message import Envelope, HospitalEvent
from medmesh.store.database import Database
from medmesh.store.prepared import Prepared
from medmesh.store.unit import UnitOfWork
from medmesh_gateway.tables import cursors, inboxes

PAGE = 100
_SAME = ("event_id", "type", "body", "created_at")
_COUNTED = upsert(cursors).from_select(
    ["hospital", "last"], select(func.unnest(bindparam("hospitals", type_=ARRAY(String))), literal_column("1"))
)
_PLACES = (
    _COUNTED.on_conflict_do_update(index_elements=[cursors.c.hospital], set_={"last": cursors.c.last + 1})
    .returning(cursors.c.hospital, cursors.c.last)
    .cte("places")
)
_DELIVER = Prepared(
    insert(inboxes).from_select(
        ["hospital", "cursor", *_SAME],
        select(_PLACES.c.hospital, _PLACES.c.last, *(bindparam(name, type_=inboxes.c[name].type) for name in _SAME)),
    )
)
_AFTER = Prepared(
    select(inboxes.c.cursor, inboxes.c.type, inboxes.c.body)
    .where(inboxes.c.hospital == bindparam("hospital"), inboxes.c.cursor > bindparam("after"))
    .order_by(inboxes.c.cursor)
    .limit(PAGE)
)


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
    await uow.rows(_DELIVER, hospitals=hospitals, event_id=event.id, type=event.type, body=body, created_at=uow.now)

    def ring() -> None:
        for hospital in hospitals:
            uow.ports.doorbells.ring(hospital)

    uow.on_commit(ring)


async def read(database: Database, hospital: str, after: int) -> Sequence[Any]:
    """(cursor, type, body) of what came after a cursor, oldest first, a page of it."""
    return await database.look(_AFTER, hospital=hospital, after=after)
