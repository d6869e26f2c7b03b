"""An update in fewer bytes: what the codec leaves out is kept here, durably with the update, and goes into the next round's."""

from __future__ import annotations

import asyncio
import hmac
from pathlib import Path
from typing import Any

from sqlalchemy import bindparam, delete, insert, select

from medmesh.contracts.federation import RoundOpened
from medmesh.contracts.plan import Plan
from medmesh.security.keys import read_secret
from medmesh.store.attempts import attempt, of_attempt
from medmesh.store.objects.port import fetch, file_digest
from medmesh.store.prepared import Prepared
from medmesh.store.unit import UnitOfWork
from medmesh.telemetry import log
from medmesh_edge import sealing
from medmesh_edge.ports import Site
from medmesh_edge.tables import among, federations, residuals

_OVER = select(federations.c.federation).where(among(federations.c.state, "completed", "failed", "withdrawn"))
_ENDED = Prepared(select(residuals.c.federation).where(residuals.c.federation.in_(_OVER)).distinct())
_OF = Prepared(select(residuals).where(residuals.c.federation == bindparam("federation")))
_FORGET = Prepared(delete(residuals).where(of_attempt(residuals)))


async def encode(site: Site, plan: Plan, event: RoundOpened, base: Path, update: Path, folder: Path) -> tuple[Path, str]:
    """(the encoded update, the residual's object): both files' places are in `folder`, which is the worker's alone no longer."""
    from medmesh.federated import codecs
    from medmesh.federated.aggregation import upload_signature

    encoded, left = folder / "encoded", folder / "left"
    before = await _before(site, event, folder)
    work = (plan.codec, upload_signature(plan), base, update, before, encoded, left)
    await asyncio.to_thread(codecs.encode, *work, share=plan.codec_share, key=rounding(site, event))
    digest, _ = await asyncio.to_thread(file_digest, left)
    if await sealing.begin(site, digest):
        await site.objects.put_file(left, digest)
    return encoded, digest


def rounding(site: Site, event: RoundOpened) -> bytes:
    """By what an update is rounded: nobody outside knows it, training code neither, and the same attempt trained once more has the same."""
    secret = b"rounding:" + read_secret(site.layout.site_key).strip()
    about = f"{site.settings.hospital}/{event.federation}/{event.round}/{event.attempt}"
    return hmac.digest(secret, about.encode(), "sha256")


async def _before(site: Site, event: RoundOpened, folder: Path) -> Path | None:
    """What the last update left out that is in a model, as the platform says: what a later one said came to nothing, and with it what it
    left out. None before there was one."""
    place = event.continues.get(site.settings.hospital)
    for row in await site.database.look(_OF, federation=event.federation):
        if f"{row.round}.{row.attempt}" == place:
            return await fetch(site.objects, str(row.object), folder / "residual")
    if place is not None:
        log("edge.round.nothing_left", level=30, federation=event.federation, round=event.round)
    return None


async def keep(uow: UnitOfWork[Any], event: RoundOpened, residual: str) -> None:
    """In the transaction that makes the update durable."""
    values = {"federation": event.federation, "round": event.round, "attempt": event.attempt, "object": residual}
    await uow.execute(insert(residuals).values(values))


async def sweep(site: Site) -> None:
    """Forget the residuals of federations that are over."""
    for row in await site.database.look(_ENDED):
        await _forget(site, row.federation, frozenset())


async def forget(site: Site, event: RoundOpened) -> None:
    """What no later round can go on from: all but this round's and what it went on from itself."""
    await _forget(site, event.federation, frozenset({event.continues.get(site.settings.hospital), f"{event.round}.{event.attempt}"}))


async def _forget(site: Site, federation: str, needed: frozenset[str | None]) -> None:
    every = await site.database.look(_OF, federation=federation)
    gone = [row for row in every if f"{row.round}.{row.attempt}" not in needed]
    # Equal bytes are one object: where an update left nothing out, what is kept of two rounds is the same.
    for name in {row.object for row in gone} - {row.object for row in every if row not in gone}:
        await site.objects.delete(name)
    if gone:
        async with site.unit() as uow:
            for row in gone:
                await uow.rows(_FORGET, **attempt(row))
