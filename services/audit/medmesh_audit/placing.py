"""Where the records of a group go: the next numbers for new ones, the old receipt for those the log has."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from medmesh.errors import Problem
from medmesh.store.session import Session
from medmesh_audit.domain import Entry
from medmesh_audit.head import Head


class Placed(NamedTuple):
    """What a receipt says: the record stands at `seq` with the leaf hash `leaf` (32 bytes)."""

    id: str
    seq: int
    leaf: bytes


class Conflict(Exception):
    """Another record came under a number or an id that the log has; `seq` is where the first one stands."""

    def __init__(self, entry: Entry, seq: int) -> None:
        super().__init__(entry.id, seq)
        self.entry = entry
        self.seq = seq

    @classmethod
    async def of_ids(cls, session: Session, batch: Sequence[Entry]) -> Conflict:
        """Which record of a batch has an id that stands in the log."""
        ids = {entry.id: entry for entry in batch}
        rows = await session.fetch("SELECT id, seq FROM entries WHERE id = ANY($1) ORDER BY seq LIMIT 1", list(ids))
        return cls(ids[rows[0]["id"]], rows[0]["seq"]) if rows else cls(batch[0], -1)  # twice in the batch itself

    async def keep(self, session: Session) -> bool:
        """Keep the record that was not logged; False when it is kept already."""
        entry = self.entry
        return bool(
            await session.execute(
                "INSERT INTO conflicts (id, sha256, body, emitter, n, seq, at) VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING",
                entry.id,
                hashlib.sha256(entry.body).hexdigest(),
                entry.body,
                entry.emitter,
                entry.n,
                self.seq,
                datetime.now(UTC),
            )
        )


class Placing:
    """Gives out places after `head`, batch by batch; a batch that is refused leaves nothing."""

    def __init__(self, session: Session, head: Head) -> None:
        self.fresh: list[Entry] = []
        self._session = session
        self._head = head
        self._last: dict[str, int] = {}
        self._places: dict[tuple[str, int], int] = {}
        """Where in `fresh` a record of this group is, by emitter and number."""

    async def place(self, batch: Sequence[Entry]) -> list[Placed]:
        """One place a record. Raises `Problem` (`audit.gap`), or `Conflict` for another record under a known number."""
        emitter = batch[0].emitter
        last = self._last.get(emitter, self._head.counters.get(emitter, 0))
        known = [entry.n for entry in batch if entry.n <= last]
        old = await self._logged(emitter, known) if known else {}
        placed: list[Placed] = []
        fresh: list[Entry] = []
        for entry in batch:
            if entry.n <= last:
                placed.append(self._again(entry, old))
                continue
            if entry.n != last + 1:
                raise Problem("audit.gap", emitter=emitter, expected=last + 1, found=entry.n)
            last = entry.n
            placed.append(self._place(len(self.fresh) + len(fresh), entry))
            fresh.append(entry)
        self._last[emitter] = last
        self._places.update({(emitter, entry.n): place for place, entry in enumerate(fresh, start=len(self.fresh))})
        self.fresh += fresh
        return placed

    def _place(self, place: int, entry: Entry) -> Placed:
        return Placed(entry.id, self._head.edge.size + place, entry.hash)

    async def _logged(self, emitter: str, numbers: list[int]) -> dict[int, tuple[bytes, Placed]]:
        """(body, place) by number, of those in this group and those in the log."""
        places = {n: self._places[emitter, n] for n in numbers if (emitter, n) in self._places}
        found = {n: (self.fresh[place].body, self._place(place, self.fresh[place])) for n, place in places.items()}
        if missing := [n for n in numbers if n not in found]:
            wanted = "SELECT n, id, seq, hash, body FROM entries WHERE emitter = $1 AND n = ANY($2)"
            for row in await self._session.fetch(wanted, emitter, missing):
                found[row["n"]] = (row["body"], Placed(row["id"], row["seq"], row["hash"]))
        return found

    @staticmethod
    def _again(entry: Entry, old: dict[int, tuple[bytes, Placed]]) -> Placed:
        """Same id and same bytes: same place."""
        if entry.n not in old:
            raise Problem("audit.rewritten", emitter=entry.emitter, n=entry.n)
        body, placed = old[entry.n]
        if placed.id != entry.id or body not in (entry.body, b""):  # empty: it was pruned
            raise Conflict(entry, placed.seq)
        return placed
