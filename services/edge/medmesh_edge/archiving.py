"""The node's archive of DICOM objects, for requests; and what it left to be put on record, taken over into the node's own store."""

from __future__ import annotations

import asyncio
import queue
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cached_property
from itertools import groupby
from sqlite3 import Connection, OperationalError
from typing import Any, TypeVar

from medmesh.archive import query, records
from medmesh.archive.objects import Objects
from medmesh.archive.receive import Receiver
from medmesh.archive.tables import open_archive, transaction
from medmesh.errors import Problem
from medmesh.security.tokens import Actor
from medmesh.store.objects.envelope import Wrapping
from medmesh.store.unit import AuditEntry, Entity
from medmesh_edge import originals
from medmesh_edge.patients import HOSPITAL
from medmesh_edge.ports import Site
from medmesh_edge.reception import Reception

T = TypeVar("T")
CONNECTIONS = 4
QUERY_SECONDS = 10.0
"""How long a query may read; then it is too broad."""
INTERRUPTED = {"out": 8, "why": Problem("archive.interrupted").code}
"""What a record says of what came to no end."""


class Archive:
    """The node's archive, for requests: opened at the first, in threads."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self._connections: queue.LifoQueue[Connection] = queue.LifoQueue()
        self._opened = 0

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """One to read with, for a thread; it stops by itself."""
        if self._connections.empty() and self._opened < CONNECTIONS:
            self._opened += 1
            self._connections.put(open_archive(self.site.layout.archive))
        given = self._connections.get()
        end = time.monotonic() + QUERY_SECONDS
        given.set_progress_handler(lambda: time.monotonic() > end, 20_000)
        try:
            yield given
        except OperationalError as error:
            if "interrupted" in str(error):
                raise Problem("archive.query_broad", most=query.SCANNED) from None
            raise
        finally:
            given.set_progress_handler(None, 0)
            self._connections.put(given)

    async def work(self, run: Callable[[Connection], T]) -> T:
        """In a thread, on a connection."""

        def inside() -> T:
            with self.connection() as connection:
                return run(connection)

        return await asyncio.to_thread(inside)

    async def commit(self, run: Callable[[Connection], T]) -> T:
        """In a thread, in a transaction that it shares with what is received."""
        return await asyncio.to_thread(lambda: self.receiver.commit(run))

    @cached_property
    def objects(self) -> Objects:
        """The originals' bytes."""
        return originals.objects(self.site)

    @cached_property
    def receiver(self) -> Receiver:
        """Takes objects in, as the processes that receive from a PACS do."""
        path = self.site.layout.dicom
        settings = Reception.read(path) if path.exists() else Reception()
        wrapping = Wrapping(self.site.keys, HOSPITAL)
        return Receiver(self.site.layout.archive, wrapping, reserve=settings.reserve_mib * 2**20, backlog=settings.backlog)

    async def record(self, only: str = "") -> None:
        """Put on record what waits for it, or `only` that one."""
        found = await self.work(lambda connection: records.waiting(connection, only))
        if found:
            await put_on_record(self.site, found)
            await self.commit(lambda connection: records.done(connection, [identifier for identifier, _ in found]))

    async def recover(self) -> None:
        """Put on record what a kill cut short. At the node's start: records that grow are of its own process."""
        if not self.site.layout.archive.exists():
            return

        def close(connection: Connection) -> None:
            with transaction(connection):
                records.interrupted(connection, INTERRUPTED)

        await self.work(close)
        await self.record()

    def close(self) -> None:
        """Commit what waits, and close."""
        if "receiver" in self.__dict__:
            self.receiver.close()
        while not self._connections.empty():
            self._connections.get().close()


def record_body(
    verb: str, action: str, entities: Sequence[Entity], detail: Mapping[str, Any], actor: Actor | None = None
) -> dict[str, Any]:
    """What `medmesh.archive.records` keeps of an audit record until it is taken over; without an actor it is the hospital's."""
    body: dict[str, Any] = {"verb": verb, "action": action, "entities": [[one.kind, one.id] for one in entities], "detail": dict(detail)}
    body["at"] = datetime.now(UTC).isoformat()
    return body if actor is None else body | {"actor": [actor.kind, actor.id, actor.organisation]}


async def take_over(site: Site, connection: Connection) -> int:
    """Put on record what the archive left to be; how many. Killed between the two stores, it is done once all the same."""
    found = records.waiting(connection)
    if found:
        await put_on_record(site, found)
        with transaction(connection):
            records.done(connection, [identifier for identifier, _ in found])
    return len(found)


async def put_on_record(site: Site, found: Sequence[tuple[str, dict[str, Any]]]) -> None:
    """Each under its identifier, which is remembered; on behalf of whom it names, or of the hospital."""
    for who, rows in groupby(found, lambda one: one[1].get("actor")):
        async with site.unit(Actor(*who) if who else None) as uow:
            for identifier, body in rows:
                if await uow.journal.remember("archive.records", identifier, uow.now):
                    entities = tuple(Entity(*one) for one in body["entities"])
                    at = datetime.fromisoformat(body["at"]) if "at" in body else None  # not in those of an earlier release
                    verb, why = body["verb"], body.get("why", "")
                    uow.audit(AuditEntry(verb, body["action"], body.get("out", 0), why, entities, detail=body["detail"], at=at))
