"""What a step of a test leaves in the audit log: every record, of whichever service, on its way or there already."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from sqlalchemy import select

from medmesh_audit.tables import entries, facts
from tests.platform import Platform


class Records:
    """Reads what is new since it was asked last. `aside` are verbs of records that others leave whenever they like: the log's watcher."""

    def __init__(self, p: Platform, aside: tuple[str, ...] = ()) -> None:
        self.p = p
        self._aside = aside
        self._known: set[str] = set()

    async def new(self) -> list[dict[str, Any]]:
        """In no order. A record is committed before the answer that it is about, so nothing needs to be waited for."""
        found: dict[str, dict[str, Any]] = {}
        for runtime in self.p.runtimes.values():
            found |= {id_: json.loads(body) for _, id_, body in await runtime.database.unreceipted(100_000)}
        if "audit" in self.p.runtimes:  # after the others: a record moves from there to here
            async with self.p.runtimes["audit"].unit() as uow:
                found |= {row.id: json.loads(row.body) for row in await uow.all(select(entries.c.id, entries.c.body))}
        fresh = [record for id_, record in found.items() if id_ not in self._known and record["sub"] not in self._aside]
        self._known |= found.keys()
        return fresh

    async def said(self) -> list[tuple[str, str, int, str]]:
        """(service, verb, outcome, why) of what is new, sorted."""
        return sorted((r["src"]["service"], r["sub"], r["out"], r["why"]) for r in await self.new())


async def arrived(p: Platform) -> None:
    """What is on its way to the log now is in it: what was answered before is recorded, and the record is sent on after the answer."""

    async def waiting() -> set[str]:
        return {id_ for runtime in p.runtimes.values() for _, id_, _ in await runtime.database.unreceipted(100_000)}

    under_way = await waiting()
    async with asyncio.timeout(30):
        while under_way & await waiting():
            await asyncio.sleep(0.05)


async def left(p: Platform, verb: str, count: int = 1) -> list[dict[str, Any]]:
    """The records of a verb that the log holds, in its order, once there are `count`: what something in the background leaves."""
    wanted = select(entries.c.body).join(facts, facts.c.seq == entries.c.seq).where(facts.c.verb == verb).order_by(entries.c.seq)
    async with asyncio.timeout(30):
        while True:
            async with p.runtimes["audit"].unit() as uow:
                found = [json.loads(row.body) for row in await uow.all(wanted)]
            if len(found) >= count:
                return found
            await asyncio.sleep(0.1)
