"""Whether stored entries are what was logged, asked of the database itself: the newest each time, and all others in turn.

An entry is sound when its leaf has the hash that stands beside it and in the tile above it, and commits to the body (RFC 6962 §2.1;
`medmesh.ledger.leaf`). Whoever can alter rows can alter what the database answers too: proof is the verifier's, this is the early warning.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Integer, LargeBinary, and_, cast, exists, func, literal, not_, or_, select

from medmesh.ledger.tiles import HASH, WIDTH
from medmesh.store.unit import UnitOfWork
from medmesh_audit.retention import minimum_index
from medmesh_audit.tables import entries, tiles

NEWEST = 5_000
IN_TURN = 5_000


def sound() -> ColumnElement[bool]:
    """Of a row of `entries` with its body."""
    leaf, hash_ = entries.c.leaf, entries.c.hash
    commitment = func.encode(func.sha256(entries.c.salt.op("||")(entries.c.body)), "hex")
    said = func.convert_to(func.concat('"commit":"', commitment, '"'), "UTF8")
    place = cast((entries.c.seq % WIDTH) * HASH + 1, Integer)
    above = and_(tiles.c.level == 0, tiles.c.number == entries.c.seq // WIDTH)
    other = exists(select(tiles.c.number).where(above, func.substr(tiles.c.hashes, place, HASH) != hash_))
    fits = func.sha256(cast(literal(b"\x00"), LargeBinary).op("||")(leaf)) == hash_
    return and_(fits, func.position(said.op("IN")(leaf)) > 0, not_(other))


@dataclass
class Scrub:
    """Goes through the whole log again and again, some entries at a time."""

    _next: int = 0

    async def look(self, uow: UnitOfWork[Any]) -> list[int]:
        """The numbers of entries that are not sound, among the newest and the next in turn; what was pruned is passed over."""
        newest = await uow.first(select(entries.c.seq).order_by(entries.c.seq.desc()).limit(1))
        if newest is None:
            return []
        first = await minimum_index(uow)
        begin = self._next if first <= self._next <= newest.seq else first
        self._next = begin + IN_TURN
        turn = and_(entries.c.seq >= begin, entries.c.seq < self._next)
        chosen = and_(entries.c.seq >= first, or_(turn, entries.c.seq > newest.seq - NEWEST))
        rows = await uow.all(select(entries.c.seq).where(chosen, not_(sound())).order_by(entries.c.seq).limit(100))
        return [row.seq for row in rows]
