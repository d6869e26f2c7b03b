"""The second tree (`medmesh[sm]`): SM3 over the same leaves, its checkpoints signed with SM2, for assessments that count Chinese
algorithms only.

It follows the first a second behind, so that nobody's receipt waits for it, and signs only what makes the first tree's signed root. What
it knows follows from the entries: it can be switched on for a log that is there, and catches up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import insert, select

from medmesh.errors import Problem
from medmesh.ledger import note
from medmesh.ledger import tiles as tile
from medmesh.ledger.edge import Edge, FullTile
from medmesh.ledger.second import PREFIX
from medmesh.ledger.tree import leaf_hash
from medmesh.security.keys import read_secret
from medmesh.service.runtime import Runtime
from medmesh.store.session import Session, session
from medmesh.store.unit import UnitOfWork
from medmesh.telemetry import log
from medmesh_audit import head, queries
from medmesh_audit.alarms import alarm
from medmesh_audit.tables import entries, sm_checkpoints, sm_tiles

if TYPE_CHECKING:
    from medmesh.ledger.sm import Sm2Key

_STEP = 65_536


def load_keys(files: Sequence[Path], origin: str) -> list[tuple[Sm2Key, bytes]]:
    """The keys that sign, the current one first; all of them sign while one takes over from another. Raises `Problem`."""
    try:
        from medmesh.ledger import sm
    except ImportError:
        raise Problem("ledger.sm_missing") from None
    keys = [sm.read_key(read_secret(file)) for file in files]
    if odd := next((key for key, _ in keys if key.name != origin + sm.SUFFIX), None):
        raise Problem("ledger.origin", wanted=origin + sm.SUFFIX, got=odd.name)
    return keys


@dataclass
class Second:
    """Runs in whichever instance leads; `vkey` is the first tree's."""

    runtime: Runtime
    vkey: str
    keys: Sequence[tuple[Sm2Key, bytes]]
    halted: Problem | None = None
    _edges: tuple[Edge, Edge] = field(default_factory=lambda: (Edge(), Edge()))

    @property
    def vkeys(self) -> list[str]:
        """What auditors verify with."""
        return [str(key) for key, _ in self.keys]

    async def run(self, every: float, leading: Any) -> None:
        """Follow while `leading()`; called again after a failure. It stops for good when what it signed does not fit the entries."""
        if self.halted is not None:
            return
        try:
            async with session(self.runtime.database) as opened:
                await self.take_over(opened)
                while leading():
                    if not await self.follow(opened):
                        await asyncio.sleep(every)  # one signature for all checkpoints of that time
        except Problem as problem:
            if problem.code != "audit.inconsistent":
                raise
            self.halted = problem
            await alarm(self.runtime, "second", reason=problem)

    async def take_over(self, opened: Session) -> None:
        """Everything computed anew from leaves and stored tiles, and compared with what was signed last. Raises `Problem`."""
        from medmesh.ledger import sm

        rows = await opened.fetch("SELECT size, note FROM sm_checkpoints ORDER BY size DESC LIMIT 1")
        size = rows[0]["size"] if rows else 0
        tree = head.Hashing("sm_tiles", sm.leaf_hash, sm.node_hash, sm.EMPTY)
        self._edges = await head.derive(opened, size), await head.derive(opened, size, tree)
        if rows:
            signed = sm.verify(rows[0]["note"], self.vkeys)
            if (signed.size, signed.root) != (size, self._edges[1].root()):
                raise Problem("audit.inconsistent", what=f"the entries make another SM3 root than the checkpoint of size {size}")
        log("audit.second", size=size)

    async def follow(self, opened: Session) -> bool:
        """Go on to a newer checkpoint of the first tree; True while it catches up. Raises `Problem`."""
        from medmesh.ledger import sm

        size = self._edges[0].size
        within = "SELECT size, root, note FROM checkpoints WHERE size > $1 AND size <= $2 ORDER BY size DESC LIMIT 1"
        rows = await opened.fetch(within, size, size + _STEP)
        rows = rows or await opened.fetch("SELECT size, root, note FROM checkpoints WHERE size > $1 ORDER BY size LIMIT 1", size)
        if not rows:
            return False
        signed = note.parse_checkpoint(note.verify(rows[0]["note"], self.vkey))
        first, second, done = self._edges[0].copy(), self._edges[1].copy(), list[FullTile]()
        while first.size < signed.size:
            begin, end = first.size, min(first.size + 2_048, signed.size)
            found = await opened.fetch("SELECT seq, leaf FROM entries WHERE seq >= $1 AND seq < $2 ORDER BY seq", begin, end)
            if [row["seq"] for row in found] != list(range(begin, end)):
                raise Problem("audit.inconsistent", what=f"entries {begin} to {end - 1}")
            first.add([leaf_hash(row["leaf"]) for row in found])
            done += second.add([sm.leaf_hash(row["leaf"]) for row in found])
            await asyncio.sleep(0)
        if first.root() != signed.root:
            raise Problem("audit.inconsistent", what=f"the entries make another root than the checkpoint of size {signed.size}")
        root = second.root()
        text = sm.sign(signed.size, root, *self.keys)
        async with self.runtime.unit() as uow:
            if done:
                await uow.execute(insert(sm_tiles), [full._asdict() for full in done])
            await uow.execute(insert(sm_checkpoints).values(size=signed.size, root=root, note=text, at=uow.now))
        self._edges = first, second
        return signed.size - size > _STEP // 2


# --- what is shown --------------------------------------------------------------------------------------------------


async def newest(uow: UnitOfWork[Any]) -> Any:
    """The newest checkpoint. Raises `Problem` where there is no second tree."""
    row = await uow.first(select(sm_checkpoints).order_by(sm_checkpoints.c.size.desc()).limit(1))
    if row is None:
        raise Problem("request.not_found", kind="checkpoint", id=PREFIX)
    return row


async def log_file(uow: UnitOfWork[Any], path: str) -> bytes:
    """`checkpoint`, `tile/<level>/<number>`, or the entries, which are the first tree's. Raises `Problem`."""
    if path == "checkpoint":
        return str((await newest(uow)).note).encode()
    level, number, width = queries.parse(path)
    if level < 0:
        return await queries.entry_bundle(uow, number, width)
    row = await uow.first(select(sm_tiles.c.hashes).where(sm_tiles.c.level == level, sm_tiles.c.number == number))
    if row is not None:
        return bytes(row.hashes[: width * tile.HASH])
    first, end = number * tile.WIDTH, number * tile.WIDTH + width
    if level:
        below = select(sm_tiles.c.root).where(sm_tiles.c.level == level - 1, sm_tiles.c.number >= first, sm_tiles.c.number < end)
        hashes = [row.root for row in await uow.all(below.order_by(sm_tiles.c.number))]
    else:
        from medmesh.ledger import sm

        leaves = await uow.all(select(entries.c.leaf).where(entries.c.seq >= first, entries.c.seq < end).order_by(entries.c.seq))
        hashes = [sm.leaf_hash(row.leaf) for row in leaves]
    if width == tile.WIDTH or len(hashes) != width:
        raise Problem("request.not_found", kind="tile", id=f"{PREFIX}/{path}")
    return b"".join(hashes)
