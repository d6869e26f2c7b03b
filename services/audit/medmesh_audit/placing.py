"""Where the records of a group go: the next numbers for new ones, the old receipt for those the log has."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime

from medmesh.contracts.audit import Receipt
from medmesh.errors import Problem
from medmesh.ledger.tree import leaf_hash
from medmesh.store.session import Session
from medmesh_audit.domain import Entry
from medmesh_audit.head import Head


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
        self._new: dict[tuple[str, int], tuple[Entry, Receipt]] = {}

    async def place(self, batch: Sequence[Entry]) -> list[Receipt]:
        """One receipt a record. Raises `Problem` (`audit.gap`), or `Conflict` for another record under a known number."""
        emitter = batch[0].emitter
        last = self._last.get(emitter, self._head.counters.get(emitter, 0))
        old = await self._logged(emitter, [entry.n for entry in batch if entry.n <= last])
        receipts: list[Receipt] = []
        fresh: list[Entry] = []
        for entry in batch:
            if entry.n <= last:
                receipts.append(self._again(entry, old))
                continue
            if entry.n != last + 1:
                raise Problem("audit.gap", emitter=emitter, expected=last + 1, found=entry.n)
            last = entry.n
            seq = self._head.edge.size + len(self.fresh) + len(fresh)
            receipts.append(Receipt(id=entry.id, seq=seq, leaf=leaf_hash(entry.leaf).hex()))
            fresh.append(entry)
        self._last[emitter] = last
        self._new |= {(emitter, r.n): (r, receipt) for r, receipt in zip(fresh, receipts[len(batch) - len(fresh) :], strict=True)}
        self.fresh += fresh
        return receipts

    async def _logged(self, emitter: str, numbers: list[int]) -> dict[int, tuple[str, bytes, Receipt]]:
        found = {}
        for n in numbers:
            if known := self._new.get((emitter, n)):
                found[n] = (known[0].id, known[0].body, known[1])
        if missing := [n for n in numbers if n not in found]:
            wanted = "SELECT n, id, seq, hash, body FROM entries WHERE emitter = $1 AND n = ANY($2)"
            for row in await self._session.fetch(wanted, emitter, missing):
                found[row["n"]] = (row["id"], row["body"], Receipt(id=row["id"], seq=row["seq"], leaf=row["hash"].hex()))
        return found

    @staticmethod
    def _again(entry: Entry, old: dict[int, tuple[str, bytes, Receipt]]) -> Receipt:
        """Same id and same bytes: same receipt."""
        found = old.get(entry.n)
        if found is None:
            raise Problem("audit.rewritten", emitter=entry.emitter, n=entry.n)
        id_, body, receipt = found
        if id_ != entry.id or body not in (entry.body, b""):  # empty: it was pruned
            raise Conflict(entry, receipt.seq)
        return receipt
