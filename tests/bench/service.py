"""The service of the bus measures: it remembers each event, writes one row and emits one event, in one transaction."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, ClassVar

from sqlalchemy import Column, Integer, String, Table, insert, text
from sqlalchemy.engine import make_url

from medmesh.bus.declarations import Handlers
from medmesh.contracts.message import Envelope, Event, Query, Record
from medmesh.embedded.testing import RunningServers
from medmesh.security.authority import Authority
from medmesh.security.keys import Identity
from medmesh.security.tokens import TrustBundle
from medmesh.service.runtime import Runtime
from medmesh.service.settings import ServiceSettings
from medmesh.service.spec import ServiceSpec
from medmesh.store import postgres
from medmesh.store.database import Database
from medmesh.store.tables import service_metadata
from medmesh.store.unit import UnitOfWork

NAME = "bench"
PASSWORD = "bench-only"
BATCH = 64
METADATA = service_metadata()
SEEN = Table("seen", METADATA, Column("id", String(64), primary_key=True), Column("n", Integer, nullable=False))


class Happened(Event):
    """What is handled one event a transaction."""

    TYPE: ClassVar[str] = "bench.thing.happened.v1"

    n: int
    padding: str = ""


class HappenedOften(Happened):
    """What is handled in batches."""

    TYPE: ClassVar[str] = "bench.thing.happened-often.v1"


class Noted(Event):
    """What the handlers emit."""

    TYPE: ClassVar[str] = "bench.thing.noted.v1"

    n: int


class Answer(Record):
    """The reply."""

    n: int
    padding: str = ""


class Ask(Query):
    """A question anybody may ask."""

    TYPE: ClassVar[str] = "bench.ask.v1"
    ACTION: ClassVar[str | None] = None
    Reply: ClassVar[type[Record]] = Answer

    n: int
    padding: str = ""


@dataclass
class Clock:
    """When handlers began and how many transactions' events are committed."""

    wanted: int = 0
    committed: int = 0
    first: float = 0.0
    last: float = 0.0
    began: dict[str, float] = field(default_factory=dict)
    done: asyncio.Event = field(default_factory=asyncio.Event)

    def begin(self, id_: str) -> None:
        """A handler starts."""
        self.began[id_] = perf_counter()
        self.first = self.first or self.began[id_]

    def commit(self) -> None:
        """One event more is committed."""
        self.committed += 1
        if self.committed == self.wanted:
            self.last = perf_counter()
            self.done.set()


HANDLERS = Handlers(NAME)


async def _handle(event: Envelope[Any], uow: UnitOfWork[Clock]) -> None:
    uow.ports.begin(event.id)
    await uow.execute(insert(SEEN).values(id=event.id, n=event.data.n))
    uow.emit(Noted(n=event.data.n))
    uow.on_commit(uow.ports.commit)


@HANDLERS.on(Happened)
async def one(event: Envelope[Happened], uow: UnitOfWork[Clock]) -> None:
    """One event a transaction, with the default concurrency."""
    await _handle(event, uow)


@HANDLERS.on(HappenedOften, batch=BATCH)
async def many(event: Envelope[HappenedOften], uow: UnitOfWork[Clock]) -> None:
    """Up to `BATCH` events a transaction."""
    await _handle(event, uow)


@HANDLERS.answers(Ask)
async def ask(query: Envelope[Ask], _: UnitOfWork[Clock]) -> Answer:
    """The whole path of a query, with its transaction."""
    return Answer(n=query.data.n, padding=query.data.padding)


@asynccontextmanager
async def _open(_: Runtime) -> AsyncIterator[Clock]:
    yield Clock()


SERVICE = ServiceSpec(
    name=NAME,
    purpose="Measures the bus.",
    handlers=HANDLERS,
    settings=ServiceSettings,
    metadata=METADATA,
    migrations=Path(),
    open=_open,
    emits=(Happened, Noted),
)


async def prepared(servers: RunningServers, folder: Path) -> ServiceSettings:
    """A schema of its own in the database, an identity, and the settings that name them."""
    engine = postgres.engine(servers.postgres_url, pool_size=1)
    async with engine.connect() as sql:
        await sql.execute(text(f"CREATE ROLE {NAME} LOGIN PASSWORD '{PASSWORD}'"))
        await sql.execute(text(f"CREATE SCHEMA {NAME} AUTHORIZATION {NAME}"))
        await sql.execute(text(f"ALTER ROLE {NAME} SET search_path TO {NAME}"))
    await engine.dispose()
    url = make_url(servers.postgres_url).set(username=NAME, password=PASSWORD).render_as_string(hide_password=False)
    database = Database.postgres(url)
    await database.create(METADATA)
    await database.close()
    identity = Identity.ensure(folder / "bench.nk")
    (folder / "ca").mkdir()
    authority = Authority.ensure(folder / "ca")
    TrustBundle(platform="bench", services={NAME: identity.public}, release_key=identity.public, ca_pem=authority.certificate_pem).save(
        folder / "trust.json"
    )
    return ServiceSettings(
        nats_url=servers.nats_url, identity=folder / "bench.nk", database_url=url, trust=folder / "trust.json", state=folder / "state"
    )
