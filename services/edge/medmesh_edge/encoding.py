"""An update in fewer bytes: what the codec leaves out is kept here, durably with the update, and goes into the next round's."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from sqlalchemy import ColumnElement, FromClause, and_, bindparam, delete, insert, not_, select

from medmesh.contracts.federation import RoundOpened
from medmesh.contracts.plan import Plan
from medmesh.store.objects.port import fetch, file_digest
from medmesh.store.prepared import Prepared
from medmesh.store.unit import UnitOfWork
from medmesh_edge import sealing
from medmesh_edge.ports import Site
from medmesh_edge.tables import among, federations, residuals, tasks

_OVER = select(federations.c.federation).where(among(federations.c.state, "completed", "failed"))
_ENDED = Prepared(select(residuals.c.federation).where(residuals.c.federation.in_(_OVER)).distinct())


def _earlier(table: FromClause) -> ColumnElement[bool]:
    """The table's rows of a federation's rounds before one."""
    return and_(table.c.federation == bindparam("federation"), table.c.round < bindparam("before"))


_OTHERS = residuals.alias()
# Equal bytes are one object: where an update left nothing out, what is kept of two rounds is the same.
_STILL = residuals.c.object.in_(select(_OTHERS.c.object).where(not_(_earlier(_OTHERS))))
_EARLIER = Prepared(select(residuals.c.object, _STILL.label("needed")).where(_earlier(residuals)))
_FORGET = Prepared(delete(residuals).where(_earlier(residuals)))
EVER = 2**31
"""Later than any round."""


async def encode(site: Site, plan: Plan, event: RoundOpened, base: Path, update: Path, folder: Path) -> tuple[Path, str]:
    """(the encoded update, the residual's object): both files' places are in `folder`, which is the worker's alone no longer."""
    from medmesh.federated import codecs
    from medmesh.federated.aggregation import upload_signature

    encoded, left = folder / "encoded", folder / "left"
    before = await _before(site, event, folder)
    work = (plan.codec, upload_signature(plan), base, update, before, encoded, left)
    await asyncio.to_thread(codecs.encode, *work, share=plan.codec_share)
    digest, _ = await asyncio.to_thread(file_digest, left)
    if await sealing.begin(site, digest):
        await site.objects.put_file(left, digest)
    return encoded, digest


async def _before(site: Site, event: RoundOpened, folder: Path) -> Path | None:
    """The residual of the newest round before this one that was not void; none in the first."""
    r, t = residuals.c, tasks.c
    same = (r.federation == t.federation) & (r.round == t.round) & (r.attempt == t.attempt)
    earlier = (r.federation == event.federation) & (r.round < event.round) & t.state.in_(["trained", "sent", "releasable", "released"])
    wanted = select(r.object).join(tasks, same).where(earlier).order_by(r.round.desc(), r.attempt.desc()).limit(1)
    async with site.unit() as uow:
        found = await uow.first(wanted)
    return None if found is None else await fetch(site.objects, found.object, folder / "residual")


async def keep(uow: UnitOfWork[Any], event: RoundOpened, residual: str) -> None:
    """In the transaction that makes the update durable."""
    values = {"federation": event.federation, "round": event.round, "attempt": event.attempt, "object": residual}
    await uow.execute(insert(residuals).values(values))


async def sweep(site: Site) -> None:
    """Forget the residuals of federations that are over."""
    for row in await site.database.look(_ENDED):
        await forget(site, row.federation)


async def forget(site: Site, federation: str, before: int = EVER) -> None:
    """Residuals of rounds before `before` are no longer needed."""
    gone = await site.database.look(_EARLIER, federation=federation, before=before)
    for row in gone:
        if not row.needed:
            await site.objects.delete(row.object)
    if gone:
        async with site.unit() as uow:
            await uow.rows(_FORGET, federation=federation, before=before)
