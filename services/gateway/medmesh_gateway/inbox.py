"""A hospital's inbox: a table with a row-locked counter; the cursor is that counter, never a stream's sequence."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pybase64
from sqlalchemy import ARRAY, LargeBinary, String, bindparam, column, func, insert, literal_column, select
from sqlalchemy.dialects.postgresql import insert as upsert

from medmesh.contracts.federation import RoundOpened, RoundStored
from medmesh.contracts.message import Envelope, HospitalEvent, ObjectRef
from medmesh.errors import Problem
from medmesh.store.database import Database
from medmesh.store.objects.port import ENCLOSED, PART
from medmesh.store.prepared import Prepared
from medmesh.store.unit import UnitOfWork
from medmesh_gateway.tables import cursors, inboxes

PAGE = 100
LAST = 2**63 - 1
MOST = 8
"""Ears of a hospital at one gateway: it has a few nodes, and each may have left some behind in a network that was cut."""
PATIENCE = 10.0
"""Seconds in which a stream that has to end can say so to somebody who reads; after that it is cut off."""
CAN_WAIT = frozenset((RoundStored.subject(),))
"""What only gives a hospital room back: it goes with the next fact, or with the next sign of life."""
Recording = Callable[[UnitOfWork[Any]], None]
"""Leaves a record with a transaction."""
_COUNTED = upsert(cursors).from_select(
    ["hospital", "last"], select(func.unnest(bindparam("hospitals", type_=ARRAY(String))), literal_column("1"))
)
_PLACES = (
    _COUNTED.on_conflict_do_update(index_elements=[cursors.c.hospital], set_={"last": cursors.c.last + 1})
    .returning(cursors.c.hospital, cursors.c.last)
    .cte("places")
)
_FOR_ALL = {name: bindparam(name, type_=inboxes.c[name].type) for name in ("event_id", "type", "body", "created_at")}
_THEIRS = (
    func.unnest(bindparam("hospitals", type_=ARRAY(String)), bindparam("bodies", type_=ARRAY(LargeBinary)))
    .table_valued(column("hospital", String), column("body", LargeBinary), name="theirs")
    .render_derived()
)


def _delivering(given: Mapping[str, Any], places: Any = _PLACES) -> Prepared:
    chosen = select(_PLACES.c.hospital, _PLACES.c.last, *given.values()).select_from(places)
    made = insert(inboxes).from_select(["hospital", "cursor", *given], chosen)
    return Prepared(made.returning(inboxes.c.hospital, inboxes.c.cursor))


_DELIVER = _delivering(_FOR_ALL)
_DELIVER_EACH = _delivering(_FOR_ALL | {"body": _THEIRS.c.body}, _PLACES.join(_THEIRS, _THEIRS.c.hospital == _PLACES.c.hospital))
_AFTER = Prepared(
    select(inboxes.c.cursor, inboxes.c.type, inboxes.c.body)
    .where(inboxes.c.hospital == bindparam("hospital"), inboxes.c.cursor > bindparam("after"))
    .order_by(inboxes.c.cursor)
    .limit(PAGE)
)


class Fact(NamedTuple):
    """One fact in a hospital's inbox, as its stream sends it."""

    cursor: int
    type: str
    body: bytes
    enclosed: bytes = b""
    """What it names, base64, where it comes along."""


@dataclass(eq=False)
class Ear:
    """An open stream: woken by `bell`, and handed what was committed while it was open. What was handed is a short cut: the table is the
    record, and whoever misses something in between looks there."""

    encloses: int = 0
    """Of at most how many bytes an object comes with the fact that names it."""
    sent: Callable[[ObjectRef], Recording] | None = None
    """What is recorded of an object that comes along."""
    bell: asyncio.Event = field(default_factory=asyncio.Event)
    displaced: bool = False
    """A newer one took its place: it is to end."""
    _task: asyncio.Task[Any] | None = field(default_factory=asyncio.current_task)
    _cut: asyncio.TimerHandle | None = None
    _handed: deque[Fact] = field(default_factory=lambda: deque(maxlen=PAGE))

    def displace(self) -> None:
        """End it: nobody may be at the other end any more, and what waits for them to read would wait for as long as TCP does."""
        self.displaced = True
        self.bell.set()
        if self._task is not None:
            self._cut = asyncio.get_running_loop().call_later(PATIENCE, self._task.cancel)

    def close(self) -> None:
        """It ended."""
        if self._cut is not None:
            self._cut.cancel()

    def hand(self, fact: Fact) -> None:
        """It is committed."""
        self._handed.append(fact)
        if fact.type not in CAN_WAIT:
            self.bell.set()

    def takes(self, size: int) -> bool:
        """Whether an object of `size` bytes may come along: who does not read what was sent fetches the rest when it does."""
        waiting = sum(len(fact.enclosed) for fact in self._handed)
        return size <= self.encloses and (not waiting or waiting + size <= ENCLOSED)

    def after(self, cursor: int) -> list[Fact]:
        """What follows a cursor; nothing where something is missing in between, which another process may have committed."""
        found: list[Fact] = []
        while self._handed:
            fact = self._handed.popleft()
            if fact.cursor == cursor + 1:
                found.append(fact)
                cursor = fact.cursor
            elif fact.cursor > cursor:
                self._handed.clear()
                return []
        return found


@dataclass
class Doorbells:
    """Wakes the open streams of a hospital; a hint only, the streams also look every few seconds."""

    _ears: dict[str, dict[Ear, None]] = field(default_factory=lambda: defaultdict(dict))
    """In the order in which they began to listen."""

    def hand(self, hospital: str, fact: Fact, enclosed: bytes = b"", whom: Collection[Ear] = ()) -> None:
        """Something new is in the inbox; `enclosed` goes along to `whom`."""
        for ear in self._ears[hospital]:
            ear.hand(fact._replace(enclosed=enclosed) if ear in whom else fact)

    def enclosing(self, hospitals: Collection[str], size: int) -> list[Ear]:
        """Those of hospitals that take an object of `size` bytes with the fact that names it."""
        return [ear for hospital in hospitals for ear in self._ears[hospital] if ear.takes(size)]

    def ring_all(self) -> None:
        """Something changed that concerns who is connected."""
        for ears in self._ears.values():
            for ear in ears:
                ear.bell.set()

    def listen(self, hospital: str, encloses: int = 0, sent: Callable[[ObjectRef], Recording] | None = None) -> Ear:
        """One that hears what comes from now on. There are at most `MOST` of a hospital: the oldest goes, not the newest, which is that of
        a node whose network was cut and whose last ones still look open."""
        listening = [ear for ear in self._ears[hospital] if not ear.displaced]
        for oldest in listening[: 1 - MOST]:
            oldest.displace()
        ear = Ear(encloses, sent)
        self._ears[hospital][ear] = None
        return ear

    def leave(self, hospital: str, ear: Ear) -> None:
        """The stream ended."""
        ear.close()
        self._ears[hospital].pop(ear, None)


async def deliver(event: Envelope[HospitalEvent], uow: UnitOfWork[Any], raw: bytes) -> None:
    """Put a fact into the inbox of every hospital it names, in the order of the stream."""
    document = json.loads(raw)
    # Whoever caused it stays inside: a hospital does not get another party's token.
    document.pop("actor", None)
    hospitals = sorted(set(event.data.hospitals))
    if not hospitals:
        return
    bodies = [_json(parted) for parted in event.data.parted(document, hospitals)]
    enclosed, whom = await _enclosed(event.data, uow, hospitals)
    about = {"hospitals": hospitals, "event_id": event.id, "type": event.type, "created_at": uow.now}
    if len(bodies) == 1:
        placed = await uow.rows(_DELIVER, **about, body=bodies[0])
    else:
        placed = await uow.rows(_DELIVER_EACH, **about, bodies=bodies)
    own = dict(zip(hospitals, bodies * len(hospitals), strict=False))

    def hand() -> None:
        for row in placed:
            uow.ports.doorbells.hand(row.hospital, Fact(row.cursor, event.type, own[row.hospital]), enclosed, whom)

    uow.on_commit(hand)


def _json(document: dict[str, Any]) -> bytes:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


async def _enclosed(fact: HospitalEvent, uow: UnitOfWork[Any], hospitals: Sequence[str]) -> tuple[bytes, list[Ear]]:
    """A round's model, base64, and whose streams it goes along with, which is recorded; the others ask for it when they need it."""
    if not isinstance(fact, RoundOpened) or not (ears := uow.ports.doorbells.enclosing(hospitals, fact.base.bytes)):
        return b"", []
    try:
        store = await uow.ports.stores.holding(fact.base.sha256)
        found = b"".join([part async for part in store.read(fact.base.sha256)])
        for ear in ears:
            assert ear.sent is not None
            ear.sent(fact.base)(uow)
    except Problem:
        return b"", []
    return pybase64.b64encode(found), ears


def written(fact: Any) -> list[bytes | memoryview]:
    """A fact, or its row, as a server-sent event; what it encloses is a field that those who do not know it pass over. In parts, because
    TLS takes what is written at once as a whole; those of an object that goes to many are one copy."""
    head, tail = b"id: %d\nevent: %s\n" % (fact.cursor, fact.type.encode()), b"".join((b"data: ", fact.body, b"\n\n"))
    if not (enclosed := memoryview(getattr(fact, "enclosed", b""))):
        return [head + tail]
    parts: list[bytes | memoryview] = [enclosed[start : start + PART] for start in range(0, len(enclosed), PART)]
    parts[0] = b"".join((head, b"object: ", parts[0]))
    parts[-1] = b"".join((parts[-1], b"\n", tail))
    return parts


def ended(problem: Problem) -> bytes:
    """Why a stream ends, in a field that those who do not know it pass over."""
    return b"problem: %s\n\n" % _json(problem.document())


async def read(database: Database, hospital: str, after: int) -> Sequence[Any]:
    """(cursor, type, body) of what came after a cursor, oldest first, a page of it."""
    return await database.look(_AFTER, hospital=hospital, after=after)
