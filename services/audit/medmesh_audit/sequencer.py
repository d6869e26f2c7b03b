"""The one writer of the log: it drains a queue, gives out numbers without gaps, and commits groups."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import insert, select, update
from sqlalchemy.dialects.postgresql import insert as upsert

from medmesh.contracts.audit import CheckpointPublished, Receipt
from medmesh.errors import Problem
from medmesh.ledger import note
from medmesh.ledger.tiles import WIDTH, nodes, width_at
from medmesh.ledger.tree import fold, leaf_hash, root
from medmesh.service.runtime import Runtime
from medmesh.store.unit import UnitOfWork
from medmesh_audit.domain import Entry, facts
from medmesh_audit.tables import checkpoints, emitters, entries, state, tiles
from medmesh_audit.tables import facts as facts_table

_MOST = 2_000


@dataclass
class Sequencer:
    """`append` returns when the records are durable and under a signed checkpoint."""

    runtime: Runtime
    origin: str
    key: Ed25519PrivateKey
    group_seconds: float
    published: float = field(default_factory=time.monotonic)
    """Of the monotonic clock: when a checkpoint was published last."""
    _queue: asyncio.Queue[tuple[list[Entry], asyncio.Future[list[Receipt]]]] = field(default_factory=asyncio.Queue)

    @property
    def vkey(self) -> str:
        """The key auditors verify with."""
        return note.verifier_key(self.origin, self.key.public_key())

    async def append(self, batch: list[Entry]) -> list[Receipt]:
        """Sequence one emitter's records, all or none. Records the log has already are answered with their receipts."""
        done: asyncio.Future[list[Receipt]] = asyncio.get_running_loop().create_future()
        await self._queue.put((batch, done))
        return await done

    async def run(self) -> None:
        """Forever: take what waits, commit it together, answer everybody."""
        while True:
            group = [await self._queue.get()]
            await asyncio.sleep(self.group_seconds)
            while not self._queue.empty() and sum(len(batch) for batch, _ in group) < _MOST:
                group.append(self._queue.get_nowait())
            try:
                await self._commit(group)
            except asyncio.CancelledError:
                raise
            except Exception as error:
                for _, done in group:
                    if not done.done():
                        done.set_exception(error if len(group) == 1 else Problem("audit.retry"))
                if not isinstance(error, Problem):
                    raise

    async def _commit(self, group: list[tuple[list[Entry], asyncio.Future[list[Receipt]]]]) -> None:
        answers: list[tuple[asyncio.Future[list[Receipt]], list[Receipt] | Problem]] = []
        async with self.runtime.unit() as uow:
            size = (await uow.execute(select(state.c.size).with_for_update())).scalar_one()
            known = {row.emitter: row.n for row in await uow.all(select(emitters))}
            fresh: list[tuple[int, Entry]] = []
            for batch, done in group:
                try:
                    new, receipts = await self._place(uow, batch, size + len(fresh), known)
                except Problem as problem:
                    answers.append((done, problem))
                    continue
                fresh += new
                answers.append((done, receipts))
            if fresh:
                await self._write(uow, size, fresh, known)
        for done, answer in answers:
            if done.done():
                continue
            if isinstance(answer, Problem):
                done.set_exception(answer)
            else:
                done.set_result(answer)

    @staticmethod
    async def _place(
        uow: UnitOfWork[Any], batch: Sequence[Entry], seq: int, known: dict[str, int]
    ) -> tuple[list[tuple[int, Entry]], list[Receipt]]:
        """Number what is new; what was logged before is looked up. A gap in the emitter's numbers refuses the batch."""
        emitter = batch[0].emitter
        last = known.get(emitter, 0)
        old = [entry.n for entry in batch if entry.n <= last]
        receipts: list[Receipt] = []
        if old:
            found = await uow.all(
                select(entries.c.id, entries.c.seq, entries.c.hash, entries.c.n).where(entries.c.emitter == emitter, entries.c.n.in_(old))
            )
            logged = {row.n: row for row in found}
            for entry in batch:
                if entry.n <= last:
                    row = logged.get(entry.n)
                    if row is None or row.id != entry.id:
                        raise Problem("audit.rewritten", emitter=emitter, n=entry.n)
                    receipts.append(Receipt(id=entry.id, seq=row.seq, leaf=row.hash.hex()))
        fresh: list[tuple[int, Entry]] = []
        for entry in batch:
            if entry.n <= last:
                continue
            if entry.n != last + 1:
                raise Problem("audit.gap", emitter=emitter, expected=last + 1, found=entry.n)
            last = entry.n
            fresh.append((seq + len(fresh), entry))
            receipts.append(Receipt(id=entry.id, seq=fresh[-1][0], leaf=leaf_hash(entry.leaf).hex()))
        known[emitter] = last
        return fresh, receipts

    async def _write(self, uow: UnitOfWork[Any], size: int, fresh: list[tuple[int, Entry]], known: dict[str, int]) -> None:
        rows = [
            {
                "seq": seq,
                "id": entry.id,
                "emitter": entry.emitter,
                "n": entry.n,
                "leaf": entry.leaf,
                "hash": leaf_hash(entry.leaf),
                "salt": entry.salt,
                "body": entry.body,
                "at": uow.now,
            }
            for seq, entry in fresh
        ]
        await uow.execute(insert(entries), rows)
        await uow.execute(insert(facts_table), [facts(seq, entry.document) for seq, entry in fresh])
        for name in {entry.emitter for _, entry in fresh}:
            statement = upsert(emitters).values(emitter=name, n=known[name], last_at=uow.now)
            await uow.execute(statement.on_conflict_do_update(index_elements=["emitter"], set_={"n": known[name], "last_at": uow.now}))
        await extend_tiles(uow, size, [leaf_hash(entry.leaf) for _, entry in fresh])
        await uow.execute(update(state).values(size=size + len(rows)))
        await self.checkpoint(uow, size + len(rows))

    async def checkpoint(self, uow: UnitOfWork[Any], size: int) -> str:
        """Sign the tree of `size` leaves and keep the note."""
        top = root(nodes(await preload(uow, size), size), size)
        signed = note.sign(note.Checkpoint(self.origin, size, top).text(), self.origin, self.key)
        await uow.execute(insert(checkpoints).values(size=size, root=top, note=signed, at=uow.now))
        return signed

    async def publish(self) -> None:
        """Tell everybody the newest checkpoint: also the fact that the log lives."""
        async with self.runtime.unit() as uow:
            row = await uow.first(select(checkpoints).order_by(checkpoints.c.size.desc()).limit(1))
            if row is not None:
                uow.emit(CheckpointPublished(size=row.size, root=row.root.hex(), note=row.note))
        self.published = time.monotonic()


async def extend_tiles(uow: UnitOfWork[Any], size: int, hashes: list[bytes]) -> None:
    """Append leaf hashes to the tiles, from the bottom up."""
    level, begin = 0, size
    while hashes:
        above: list[bytes] = []
        number, inside = divmod(begin, WIDTH)
        while hashes:
            part, hashes = hashes[: WIDTH - inside], hashes[WIDTH - inside :]
            before = b""
            if inside:
                where = (tiles.c.level == level) & (tiles.c.number == number)
                before = (await uow.execute(select(tiles.c.hashes).where(where))).scalar_one()[: inside * 32]
            whole = before + b"".join(part)
            statement = upsert(tiles).values(level=level, number=number, hashes=whole)
            await uow.execute(statement.on_conflict_do_update(index_elements=["level", "number"], set_={"hashes": whole}))
            if len(whole) == WIDTH * 32:
                above.append(fold([whole[i : i + 32] for i in range(0, len(whole), 32)]))
            number, inside = number + 1, 0
        level, begin, hashes = level + 1, begin // WIDTH, above


async def preload(uow: UnitOfWork[Any], size: int) -> Any:
    """The tiles at the right edge, which are all a root needs."""
    loaded: dict[tuple[int, int], bytes] = {}
    level = 0
    while size >> (8 * level):
        number = (size >> (8 * level)) // WIDTH
        for n in {number, max(0, number - 1)}:
            if width_at(size, level, n):
                where = (tiles.c.level == level) & (tiles.c.number == n)
                loaded[level, n] = (await uow.execute(select(tiles.c.hashes).where(where))).scalar_one()
        level += 1
    return lambda at, n, width: loaded[at, n][: width * 32]


async def read_tiles(uow: UnitOfWork[Any], size: int, wanted: Sequence[tuple[int, int]]) -> Any:
    """A reader over these tiles."""
    loaded: dict[tuple[int, int], bytes] = {}
    for level, number in wanted:
        where = (tiles.c.level == level) & (tiles.c.number == number)
        found = (await uow.execute(select(tiles.c.hashes).where(where))).scalar_one_or_none()
        loaded[level, number] = found or b""
    return lambda level, number, width: loaded[level, number][: width * 32]
