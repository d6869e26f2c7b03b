"""What a round seals lies in the store before a row names it. It is noted before, and the transaction that names it takes the note away: so
what a kill or a failure left is known by its note, and nothing else is ever taken for it, whatever tables name objects.
"""

from __future__ import annotations

import asyncio
import json

from sqlalchemy import bindparam, delete, func, select
from sqlalchemy.dialects.sqlite import insert as upsert

from medmesh.errors import Problem
from medmesh.store.objects import incoming
from medmesh.store.objects.directory import DirectoryBlobs
from medmesh.store.prepared import Prepared
from medmesh.store.unit import UnitOfWork
from medmesh.telemetry import log
from medmesh_edge.ports import Site
from medmesh_edge.tables import given, unnamed

_NOTE = Prepared(upsert(unnamed).values(given(unnamed)).on_conflict_do_nothing())
_NOTED = Prepared(select(unnamed.c.object))
_THESE = func.json_each(bindparam("these")).table_valued("value")
_NAMED = Prepared(delete(unnamed).where(unnamed.c.object.in_(select(_THESE.c.value))))


async def begin(site: Site, sha256: str) -> bool:
    """Note an object that is about to be sealed. False where it need not be, because it is there and a row names it: equal bytes are one
    object. One that has a note is sealed anew, as what is there may be half of one."""
    if not isinstance(blobs := site.objects.blobs, DirectoryBlobs):  # in memory, which outlives nobody
        return not _there(site, sha256)
    if any(row.object == sha256 for row in await site.database.look(_NOTED)):
        await asyncio.to_thread(incoming.erase, blobs, sha256)
        return True
    if _there(site, sha256):
        return False
    async with site.unit(durable=False) as uow:  # a kill leaves it; a power cut may take it, and then the object stays for nothing
        await uow.rows(_NOTE, object=sha256)
    return True


def _there(site: Site, sha256: str) -> bool:
    try:
        return site.objects.header(sha256) is not None
    except Problem:  # a power cut left no more than its name
        return False


async def named(uow: UnitOfWork[Site], *objects: str) -> None:
    """In the transaction whose rows name these."""
    await uow.rows(_NAMED, these=json.dumps(objects))


async def sweep(site: Site) -> None:
    """Erase what was sealed and named by no row. Only by who works on the rounds, and between two: what is being sealed is noted, too."""
    for row in await site.database.look(_NOTED):
        assert isinstance(site.objects.blobs, DirectoryBlobs)
        await asyncio.to_thread(incoming.erase, site.objects.blobs, row.object)
        async with site.unit(durable=False) as uow:  # else it is erased once more
            await named(uow, row.object)
        log("edge.round.unnamed", level=30, object=row.object[:16])


def clear(site: Site) -> None:
    """Erase what a kill left of objects that were still growing. Only before anybody works on rounds."""
    if isinstance(site.objects.blobs, DirectoryBlobs):
        incoming.clear(site.objects.blobs)
