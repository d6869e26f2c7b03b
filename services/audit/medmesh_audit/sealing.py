"""What the log has committed to, out of reach of whoever owns the database: bundles with bodies, tiles and checkpoints under lock.

Before a checkpoint is sealed everything it covers is. Its object names the versions that were sealed since the one before, so that the
log is read back from the store alone (`restore`). Each step may be done again: a name that is sealed with the same bytes is adopted.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sqlalchemy import Table, func, insert, select

from medmesh.errors import Problem
from medmesh.ledger import note
from medmesh.ledger import tiles as tile
from medmesh.ledger.second import PREFIX
from medmesh.service.runtime import Runtime
from medmesh.telemetry import log
from medmesh_audit.alarms import alarm
from medmesh_audit.tables import checkpoints, entries, prunings, seals, sm_checkpoints, sm_tiles, tiles

if TYPE_CHECKING:
    from medmesh.store.objects.sealed import SealedStore

HEADERS = "headers"
"""Of a bundle whose bodies were pruned."""
SM_TILE, SM_NOTE = "sm-tile", "sm-note"
_DIGITS = 16  # names of checkpoints sort by size


def bundle_key(number: int, width: int) -> str:
    """Where the entries of a bundle lie, with their bodies."""
    return f"bundle/{tile.path('entries', number, width).removeprefix('tile/entries/')}"


def checkpoint_key(size: int) -> str:
    """Where a checkpoint lies."""
    return f"checkpoint/{size:0{_DIGITS}d}"


def bundle_bytes(rows: Sequence[Any]) -> bytes:
    """One line an entry: leaf, salt and body."""
    encoded = ((row.seq, *(base64.b64encode(value).decode() for value in (row.leaf, row.salt, row.body))) for row in rows)
    return b"".join(json.dumps(dict(zip(("seq", "leaf", "salt", "body"), line, strict=True))).encode() + b"\n" for line in encoded)


@dataclass
class Sealer:
    """Runs in whichever instance leads."""

    runtime: Runtime
    store: SealedStore
    _fresh: dict[str, str] = field(default_factory=dict)
    _odd: set[str] = field(default_factory=set)
    _refused: bool = False

    async def run(self) -> None:
        """Seal what the newest checkpoint covers, then the checkpoint."""
        try:
            async with self.runtime.unit() as uow:
                newest = await uow.first(select(checkpoints).order_by(checkpoints.c.size.desc()).limit(1))
            done = await self._last("checkpoint", 0)
            if newest is None or newest.size <= done:
                return
            self._fresh = await self._since(done)
            await self._bundles(newest.size)
            await self._tiles(newest.size)
            await self._second()
            content = {"note": newest.note, "segments": self._fresh}
            await self.seal("checkpoint", 0, newest.size, json.dumps(content, sort_keys=True).encode())
            log("audit.sealed", size=newest.size, segments=len(self._fresh))
        except Problem as problem:
            if problem.code != "objects.sealed":
                raise
            await self._odd_one(str(problem.params["key"]))

    async def _last(self, kind: str, level: int) -> int:
        async with self.runtime.unit() as uow:
            found = select(func.max(seals.c.number)).where(seals.c.kind == kind, seals.c.level == level)
            last = (await uow.execute(found)).scalar()
        return -1 if last is None else int(last)

    async def _since(self, size: int) -> dict[str, str]:
        """What was sealed after the last checkpoint, before a crash perhaps."""
        async with self.runtime.unit() as uow:
            at = select(seals.c.at).where(seals.c.kind == "checkpoint", seals.c.number == size).scalar_subquery()
            wanted = select(seals).where(seals.c.kind != "checkpoint")
            rows = await uow.all(wanted if size < 0 else wanted.where(seals.c.at > at))
        return {self.key(row.kind, row.level, row.number): row.version for row in rows}

    @staticmethod
    def key(kind: str, level: int, number: int) -> str:
        """Where something lies."""
        if kind == HEADERS:
            return f"{HEADERS}/{number:0{_DIGITS}d}"
        if kind == "entries":
            return bundle_key(number, level)
        if kind.startswith("sm-"):
            return f"{PREFIX}/{checkpoint_key(number) if kind == SM_NOTE else tile.path(level, number)}"
        return checkpoint_key(number) if kind == "checkpoint" else tile.path(level, number)

    async def _bundles(self, size: int) -> None:
        full, rest = divmod(size, tile.WIDTH)
        for number in range(await self._last("entries", tile.WIDTH) + 1, full):
            await self._bundle(number, tile.WIDTH)
        if rest and await self._last("entries", rest) < full:
            await self._bundle(full, rest)

    async def _bundle(self, number: int, width: int) -> None:
        first = number * tile.WIDTH
        async with self.runtime.unit() as uow:
            rows = await uow.all(select(entries).where(entries.c.seq.between(first, first + width - 1)).order_by(entries.c.seq))
        await self.seal("entries", width, number, bundle_bytes(rows))

    async def _tiles(self, size: int, kind: str = "tile", table: Table = tiles) -> None:
        level = 0
        while full := size >> (8 * (level + 1)):
            for number in range(await self._last(kind, level) + 1, full):
                async with self.runtime.unit() as uow:
                    hashes = (
                        await uow.execute(select(table.c.hashes).where(table.c.level == level, table.c.number == number))
                    ).scalar_one()
                await self.seal(kind, level, number, hashes)
            level += 1

    async def _second(self) -> None:
        """The second tree as far as it has followed, where there is one."""
        async with self.runtime.unit() as uow:
            row = await uow.first(select(sm_checkpoints).order_by(sm_checkpoints.c.size.desc()).limit(1))
        if row is None or row.size <= await self._last(SM_NOTE, 0):
            return
        await self._tiles(row.size, SM_TILE, sm_tiles)
        await self.seal(SM_NOTE, 0, row.size, row.note.encode())

    async def seal(self, kind: str, level: int, number: int, data: bytes) -> None:
        """Put something in its place, and note where."""
        key = self.key(kind, level, number)
        try:
            version = await self.store.put(key, data)
        except Problem as problem:
            if problem.code in ("objects.refused", "objects.unlocked") and not self._refused:
                self._refused = True
                await alarm(self.runtime, "seal_refused", key=key, reason=problem.code)
            raise
        self._refused = False
        async with self.runtime.unit() as uow:
            digest = hashlib.sha256(data).hexdigest()
            await uow.execute(insert(seals).values(kind=kind, level=level, number=number, version=version, sha256=digest, at=uow.now))
        self._fresh[key] = version

    async def inspect(self) -> None:
        """Compare the store's versions with those that were sealed: another version, or a delete marker, was put by somebody else."""
        found = await self.store.versions()
        async with self.runtime.unit() as uow:
            pruned = (await uow.execute(select(func.coalesce(func.max(prunings.c.minimum), 0)))).scalar_one() // tile.WIDTH
            there = (seals.c.kind != "entries") | (seals.c.number >= pruned)
            rows = await uow.all(select(seals.c.kind, seals.c.level, seals.c.number, seals.c.version).where(there))
        known = {(self.key(row.kind, row.level, row.number), row.version) for row in rows}
        listed = {(version.key, version.id) for version in found}
        names = {key for key, _ in known}
        for version in found:
            if version.marker or ((version.key, version.id) not in known and version.key in names):
                await self._odd_one(version.key)
        for key, _ in sorted(known - listed):
            if key not in self._odd:
                self._odd.add(key)
                await alarm(self.runtime, "seal_altered", key=key)

    async def _odd_one(self, key: str) -> None:
        if key not in self._odd:
            self._odd.add(key)
            await alarm(self.runtime, "sealed_twice", key=key)


async def newest_sealed(store: SealedStore, vkey: str) -> note.Checkpoint | None:
    """The largest checkpoint in the store that we signed: what the log had committed to, whatever the database says now."""
    largest: note.Checkpoint | None = None
    for version in reversed(await store.versions("checkpoint/")):
        if version.marker:
            continue
        try:
            content = json.loads(await store.read(version.key, version.id))
            found = note.parse_checkpoint(note.verify(content["note"], vkey))
        except (Problem, ValueError, KeyError, TypeError):
            continue  # somebody put something else there
        if largest is None or found.size > largest.size:
            largest = found
        if version.key == checkpoint_key(found.size):
            break
    return largest
