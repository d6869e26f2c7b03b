"""The hospital's side of a federated algorithm: what a training begins with, what of it may travel, and what stays for the next round.

What stays is kept by the round and attempt that made it. The platform says in which round this hospital's update counted last, and that
is what the next one goes on from: an attempt that was void, or came too late, leaves no trace.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.dialects.sqlite import insert as upsert

from medmesh.contracts.federation import RoundOpened
from medmesh.contracts.message import ObjectRef
from medmesh.contracts.plan import Plan
from medmesh.federated.aggregation import Local, download_signature
from medmesh.learning import weights
from medmesh.security.residue import empty
from medmesh.store.objects.directory import DirectoryBlobs
from medmesh.store.objects.encrypted import EncryptedStore
from medmesh.store.objects.incoming import Incoming
from medmesh.store.objects.port import fetch
from medmesh.store.prepared import Prepared
from medmesh.store.unit import UnitOfWork
from medmesh.tasks import BRIEF, aside, uninterrupted
from medmesh.telemetry import log
from medmesh_edge import sealing
from medmesh_edge.ports import Site
from medmesh_edge.tables import among, kept, tasks

_MAY_GO = select(tasks.c.update).where(among(tasks.c.state, "trained", "sent"), tasks.c.update.is_not(None))
_UPDATES = Prepared(_MAY_GO)
_HELD = Prepared(select(kept.c.object).union_all(_MAY_GO))
_KEPT = Prepared(select(kept))

Fetch = Callable[[ObjectRef], Awaitable[Path]]


@asynccontextmanager
async def side(site: Site, plan: Plan, event: RoundOpened, samples: int, base: Path, get: Fetch) -> AsyncIterator[Local]:
    """What this hospital has in hand, in a folder that is emptied afterwards. Raises `Problem` (`weights.*`)."""
    folder = site.layout.work / "round"
    try:
        if os.listdir(folder):  # what a kill left
            await asyncio.to_thread(empty, folder)
    except FileNotFoundError:
        folder.mkdir(parents=True, mode=0o700)
    try:
        weights.check(base, plan.signature)
        state, personal = [await get(ref) if ref else None for ref in (event.state, event.personal)]
        if state:
            weights.check(state, download_signature(plan))
        if personal:
            weights.check(personal, plan.signature)
        yield Local(plan, base, folder, samples, state, personal, await _kept(site, event, folder))
    finally:
        await aside(event.base.bytes, lambda: empty(folder))


async def _kept(site: Site, event: RoundOpened, folder: Path) -> Path | None:
    if (place := event.continues.get(site.settings.hospital)) is None:
        return None
    async with site.unit() as uow:
        row = await uow.first(select(kept).where(_of(event), _at(*map(int, place.split(".")))))
    if row is None:
        log("edge.round.nothing_kept", level=30, federation=event.federation, round=event.round)
        return None
    return await fetch(site.objects, ObjectRef.model_validate(row.object), folder / "kept")


def _of(event: RoundOpened) -> Any:
    return kept.c.federation == event.federation


def _at(number: int, attempt: int) -> Any:
    return (kept.c.round == number) & (kept.c.attempt == attempt)


async def store(site: Site, path: Path) -> tuple[ObjectRef, list[str] | None, bytes | None]:
    """Put weights into the hospital's own store, noted until a row names them (`sealing`); with the marks of a large one's bytes
    (`Digest`), and a small one's bytes. Raises `Problem` (`weights.not_finite`)."""
    objects = site.objects
    if not isinstance(objects.blobs, DirectoryBlobs):
        return await asyncio.to_thread(_put, objects, path)
    incoming = Incoming(objects.blobs, objects.wrapping)
    try:
        few = await uninterrupted(asyncio.to_thread(_read, path, incoming))
        if await sealing.begin(site, incoming.sha256):
            await uninterrupted(asyncio.to_thread(incoming.keep))
        return ObjectRef(sha256=incoming.sha256, bytes=incoming.size), incoming.marks if few is None else None, few
    finally:
        incoming.discard()


def _put(objects: EncryptedStore, path: Path) -> tuple[ObjectRef, None, bytes | None]:
    data = weights.read_finite(path)
    return ObjectRef(sha256=objects.put_now(data), bytes=len(data)), None, data if len(data) <= BRIEF else None


def _read(path: Path, incoming: Incoming) -> bytes | None:
    """Have it arrive; answers its bytes where they are few. What is looked at, hashed and sealed are the same bytes, whoever writes to the
    file, and of a large one they are not held."""
    if path.stat().st_size > BRIEF:
        weights.check_finite(path, incoming.write)
        return None
    data = weights.read_finite(path)
    incoming.write(data)
    return data


async def remember(uow: UnitOfWork[Any], event: RoundOpened, ref: ObjectRef | None) -> None:
    """In the transaction that makes the update durable."""
    if ref is not None:
        values = {"federation": event.federation, "round": event.round, "attempt": event.attempt, "object": ref.model_dump(), "at": uow.now}
        await uow.execute(upsert(kept).values(values).on_conflict_do_update(index_elements=list(kept.primary_key), set_=values))


async def held(site: Site) -> frozenset[str]:
    """The objects that are kept, or may have to be sent: equal bytes are one object, whoever else is done with it."""
    return frozenset(row.object["sha256"] for row in await site.database.look(_HELD))


async def forget(site: Site, event: RoundOpened) -> None:
    """Delete what no later round can go on from: all but this round's and that in which an update counted last."""
    needed = {event.continues.get(site.settings.hospital), f"{event.round}.{event.attempt}"}
    everything = await site.database.look(_KEPT)
    rows = [row for row in everything if row.federation == event.federation and f"{row.round}.{row.attempt}" not in needed]
    used = {row.object["sha256"] for row in everything if row not in rows}
    used |= {row.update["sha256"] for row in await site.database.look(_UPDATES)}  # goes with its round
    for row in rows:
        if row.object["sha256"] not in used:
            await site.objects.delete(row.object["sha256"])
        async with site.unit() as uow:
            await uow.execute(delete(kept).where(_of(event), _at(row.round, row.attempt)))
