"""Letting bodies go that nobody needs any more: an approved change, recorded in the log before anything is touched.

The order makes every step safe to do again: the record is in the log, headers are sealed in the place of what goes, the minimum index is
written down, and only then bodies go, in the database and in the sealed store. What is killed in between goes on where it was.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sqlalchemy import delete, insert, select, text, type_coerce, update
from sqlalchemy.dialects.postgresql import JSONB

from medmesh.contracts.audit import LogChanged
from medmesh.errors import Problem
from medmesh.ledger.tiles import WIDTH
from medmesh.store.unit import AuditEntry, Entity, UnitOfWork
from medmesh.telemetry import log
from medmesh_audit.ports import Ports
from medmesh_audit.retention import PRUNE, minimum_index
from medmesh_audit.sealing import HEADERS, Sealer
from medmesh_audit.tables import changes, entries, facts, prunings, seals

if TYPE_CHECKING:
    from medmesh.store.objects.sealed import SealedStore

_STEP = 16_384
_POLL_SECONDS = 30.0


async def work(ports: Ports, sealer: Sealer, leading: Callable[[], bool]) -> None:
    """Forever, in whichever instance leads: do what was approved."""
    while True:
        ports.prune.clear()
        if leading():
            await once(ports, sealer)
        try:
            async with asyncio.timeout(_POLL_SECONDS if not await _waiting(ports) else 0.5):
                await ports.prune.wait()
        except TimeoutError:
            pass


async def _waiting(ports: Ports) -> bool:
    async with ports.runtime.unit() as uow:
        return await uow.first(_approved()) is not None


def _approved() -> Any:
    return select(changes).where(changes.c.state == "approved", changes.c.action == PRUNE).order_by(changes.c.created_at).limit(1)


async def once(ports: Ports, sealer: Sealer) -> bool:
    """The next approved pruning; False when there is none, or its record is not in the log yet."""
    runtime = ports.runtime
    async with runtime.unit() as uow:
        row = await uow.first(_approved())
        record = await _record(uow, row.change) if row is not None else None
    if row is None or record is None:
        return False
    minimum, code = int(row.request["minimum"]), ""
    try:
        await _unlocked(ports, sealer.store, minimum)
    except Problem as problem:
        code = problem.code
    if not code:
        await _headers(ports, sealer, minimum)
        async with runtime.unit() as uow:
            if await minimum_index(uow) < minimum:
                await uow.execute(insert(prunings).values(minimum=minimum, record=record, change=row.change, at=uow.now))
        for first in range(0, minimum, _STEP):
            async with runtime.unit() as uow:
                end = min(first + _STEP, minimum)
                await uow.execute(text("SELECT prune(:first, :end)").bindparams(first=first, end=end))
                await uow.execute(delete(facts).where(facts.c.seq >= first, facts.c.seq < end))
        for sealed in await _bundles(ports, minimum):
            await sealer.store.remove(sealer.key(sealed.kind, sealed.level, sealed.number), sealed.version)
    async with runtime.unit() as uow:
        done = update(changes).where(changes.c.change == row.change, changes.c.state == "approved")
        if (await uow.execute(done.values(state="failed" if code else "done", code=code))).rowcount:
            about = (Entity("change", row.change, digest=row.digest),)
            uow.audit(AuditEntry("log.pruned", "D", 8 if code else 0, code, about, detail={"minimum": minimum}))
            uow.emit(LogChanged(change=row.change, action=PRUNE, minimum=minimum, code=code))
    log("audit.pruned", minimum=minimum, code=code)
    return True


async def _record(uow: UnitOfWork[Any], change: str) -> int | None:
    """Where the log says that this pruning was approved."""
    fits = (facts.c.verb == PRUNE) & type_coerce(facts.c.entities, JSONB).contains([f"change:{change}"])
    row = await uow.first(select(facts.c.seq).where(fits).limit(1))
    return int(row.seq) if row is not None else None


async def _bundles(ports: Ports, minimum: int) -> list[Any]:
    async with ports.runtime.unit() as uow:
        return list(await uow.all(select(seals).where(seals.c.kind == "entries", seals.c.number < minimum // WIDTH)))


async def _unlocked(ports: Ports, store: SealedStore, minimum: int) -> None:
    """Raise `Problem` (`objects.locked`) when a sealed segment with these bodies may not go yet: the store is asked, not the database."""
    for sealed in await _bundles(ports, minimum):
        await store.unlocked(Sealer.key(sealed.kind, sealed.level, sealed.number), sealed.version)


async def _headers(ports: Ports, sealer: Sealer, minimum: int) -> None:
    """Seal what stays of the bundles that go: a log read back from the store still has every entry."""
    for number in range(minimum // WIDTH):
        async with ports.runtime.unit() as uow:
            if await uow.first(select(seals.c.number).where(seals.c.kind == HEADERS, seals.c.number == number)) is not None:
                continue
            within = entries.c.seq.between(number * WIDTH, number * WIDTH + WIDTH - 1)
            rows = await uow.all(select(entries.c.seq, entries.c.leaf).where(within).order_by(entries.c.seq))
        lines = [json.dumps({"seq": row.seq, "leaf": base64.b64encode(row.leaf).decode()}) for row in rows]
        await sealer.seal(HEADERS, WIDTH, number, "".join(f"{line}\n" for line in lines).encode())
