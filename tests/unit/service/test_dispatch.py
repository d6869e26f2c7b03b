"""The dispatcher on a real store: a command that leaves no audit record commits nothing, and a refusal is always recorded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import pytest
from sqlalchemy import insert, select
from tests.store import example_metadata, example_sqlite

from medmesh.bus.declarations import Handlers
from medmesh.contracts.labels import DescribeObject, ObjectView, SecurityLabel
from medmesh.contracts.message import Command, Envelope, Names, OperationFinished, Query, encode, envelope
from medmesh.errors import Problem
from medmesh.security.access import BUILT_IN
from medmesh.security.authority import Authority
from medmesh.security.keys import Identity
from medmesh.security.labels import INTERNAL
from medmesh.security.tokens import Actor, TrustBundle, person_token
from medmesh.service.dispatch import Dispatcher, Work
from medmesh.service.guard import Guard, finished
from medmesh.store.database import Database
from medmesh.store.unit import AuditEntry, UnitOfWork

things = example_metadata().tables["things"]


class MakeThing(Command):
    TYPE: ClassVar[str] = "example.make-thing.v1"
    ACTION: ClassVar[str] = "dataset.create"

    name: str


class MakeFrom(MakeThing):
    """Made from another service's object; what it makes gets a label."""

    OBJECTS: ClassVar[tuple[Names, ...]] = (Names("job", "{name}", "training.read"),)
    MAKES: ClassVar[str] = "model"


VIEWS = {
    id_: ObjectView(known=True, kind="job", id=id_, label=SecurityLabel(level=level), owner="platform", organisations=("platform",))
    for id_, level in (("open", "internal"), ("secret", "sensitive"))
}


@dataclass
class Delivered:
    """One delivery, and what was said of it."""

    body: bytes
    subject: str = MakeThing.subject()
    headers: Mapping[str, str] = field(default_factory=dict)
    attempt: int = 1
    said: list[str] = field(default_factory=list)

    async def ack(self) -> None:
        self.said.append("ack")

    async def retry(self, delay: float) -> None:
        self.said.append("retry")

    async def terminate(self, reason: str) -> None:
        self.said.append("dead")


@pytest.fixture
async def database(private: Path) -> AsyncIterator[Database]:
    async with example_sqlite(private, emits=frozenset((OperationFinished,))) as made:
        yield made


@pytest.fixture
def trust(private: Path) -> Callable[..., tuple[TrustBundle, str]]:
    governance = Identity.create(private / "g.nk")
    (private / "ca").mkdir()
    bundle = TrustBundle("medmesh", {"governance": governance.public}, ca_pem=Authority.create(private / "ca").certificate_pem)

    def made(*roles: str) -> tuple[TrustBundle, str]:
        return bundle, person_token(governance, Actor("person", "li", "platform", frozenset(roles), clearance=INTERNAL))

    return made


async def run(
    database: Database,
    trust: tuple[TrustBundle, str],
    handler: Callable[..., Awaitable[Any]],
    *,
    slow: bool = False,
    message: MakeThing = MakeThing(name="a"),
) -> tuple[list[str], set[str], list[str], int]:
    """(what was said to the bus, things made, audit verbs, answers)."""
    handlers, (bundle, token) = Handlers("example"), trust
    (handlers.slow if slow else handlers.on)(type(message))(handler)
    delivered = Delivered(encode(envelope(message, source="test", actor=token)))

    async def ask(query: DescribeObject) -> ObjectView:
        return VIEWS.get(query.id, ObjectView(known=False, kind=query.kind, id=query.id))

    guard = Guard(handlers, lambda: BUILT_IN, lambda: bundle, ask)
    await Dispatcher(handlers.consumers[0], database, lambda: bundle, None, guard).deliver(delivered)  # type: ignore[arg-type]
    async with database.engine.connect() as sql:
        made = {row.name for row in await sql.execute(select(things))}
    records = [body.decode().split()[1] for _, _, body in await database.unreceipted()]
    async with database.claim_unsent() as (rows, _):
        return delivered.said, made, records, len(rows)


async def make(uow: UnitOfWork[Any]) -> None:
    await uow.execute(insert(things).values(name="a", count=1))


async def test_a_handler_that_forgets_its_record_commits_nothing(database: Database, trust: Any) -> None:
    async def forgets(command: Envelope[MakeThing], uow: UnitOfWork[Any]) -> None:
        await make(uow)

    assert await run(database, trust("researcher"), forgets) == (["retry"], set(), [], 0)


async def test_a_slow_handler_that_forgets_its_record_commits_nothing(database: Database, trust: Any) -> None:
    async def forgets(command: Envelope[MakeThing], work: Work[Any]) -> None:
        async with work.finish() as uow:
            await make(uow)

    assert await run(database, trust("researcher"), forgets, slow=True) == (["retry"], set(), [], 0)


async def test_what_is_recorded_commits_with_its_answer(database: Database, trust: Any) -> None:
    async def records(command: Envelope[MakeThing], uow: UnitOfWork[Any]) -> None:
        await make(uow)
        uow.audit(AuditEntry("thing.make", "C"))

    assert await run(database, trust("researcher"), records) == (["ack"], {"a"}, ["thing.make"], 1)


async def test_messages_that_come_in_the_same_moment_share_a_transaction(database: Database, trust: Any) -> None:
    units = []

    async def handler(command: Envelope[MakeThing], uow: UnitOfWork[Any]) -> None:
        units.append(uow)
        await uow.execute(insert(things).values(name=command.data.name, count=1))
        uow.audit(AuditEntry("dataset.create", "C"))

    handlers, (bundle, token) = Handlers("example"), trust("researcher")
    handlers.on(MakeThing, batch=8)(handler)
    dispatcher = Dispatcher(handlers.consumers[0], database, lambda: bundle, None, Guard(handlers, lambda: BUILT_IN, lambda: bundle, None))  # type: ignore[arg-type]
    came = [Delivered(encode(envelope(MakeThing(name=name), source="test", actor=token))) for name in "abcde"]
    await asyncio.gather(*(dispatcher.deliver(one) for one in came))
    assert [one.said for one in came] == [["ack"]] * 5
    assert len(units) == 5 and len({id(uow) for uow in units}) == 1
    async with database.engine.connect() as sql:
        assert {row.name for row in await sql.execute(select(things))} == set("abcde")


async def test_what_was_so_already_needs_no_second_record(database: Database, trust: Any) -> None:
    async def known(command: Envelope[MakeThing], uow: UnitOfWork[Any]) -> None:
        uow.unchanged()

    assert await run(database, trust("researcher"), known) == (["ack"], set(), [], 1)


async def test_a_refusal_undoes_the_handler_and_is_recorded(database: Database, trust: Any) -> None:
    async def refuses(command: Envelope[MakeThing], uow: UnitOfWork[Any]) -> None:
        await make(uow)
        uow.audit(AuditEntry("thing.make", "C"))
        raise Problem("objects.full")

    assert await run(database, trust("researcher"), refuses) == (["ack"], set(), ["dataset.create"], 1)


async def test_who_may_not_is_recorded_and_the_handler_never_runs(database: Database, trust: Any) -> None:
    async def never(command: Envelope[MakeThing], uow: UnitOfWork[Any]) -> None:
        raise AssertionError

    assert await run(database, trust("auditor"), never) == (["ack"], set(), ["dataset.create"], 1)


async def makes(command: Envelope[MakeFrom], uow: UnitOfWork[Any]) -> None:
    """As a service does that labels what it makes: the guard has found the source."""
    assert [source.label for source in uow.access.sources] == [INTERNAL]
    await make(uow)
    uow.access.made.add("model")
    uow.audit(AuditEntry("thing.make", "C"))


async def test_a_handler_that_gives_what_it_makes_no_label_commits_nothing(database: Database, trust: Any) -> None:
    async def forgets(command: Envelope[MakeFrom], uow: UnitOfWork[Any]) -> None:
        await makes(command, uow)
        uow.access.made.clear()

    assert await run(database, trust("researcher"), forgets, message=MakeFrom(name="open")) == (["retry"], set(), [], 0)
    assert await run(database, trust("researcher"), makes, message=MakeFrom(name="open")) == (["ack"], {"a"}, ["thing.make"], 1)


@pytest.mark.parametrize("slow", [False, True])
@pytest.mark.parametrize("name", ["secret", "nowhere"])
async def test_the_handler_never_runs_for_a_source_somebody_may_not_see(database: Database, trust: Any, name: str, slow: bool) -> None:
    """And what is not there is answered alike, but nothing was refused."""

    async def never(command: Envelope[MakeFrom], uow: Any) -> None:
        raise AssertionError

    verb = "access.denied" if name == "secret" else "dataset.create"
    assert await run(database, trust("researcher"), never, slow=slow, message=MakeFrom(name=name)) == (["ack"], set(), [verb], 1)


async def test_a_handler_that_lists_past_the_guard_answers_nothing() -> None:
    class ListThings(Query):
        TYPE: ClassVar[str] = "example.list-things.v1"
        ACTION: ClassVar[str | None] = "model.read"
        LISTS: ClassVar[str] = "model"

    access = Guard(Handlers("example"), lambda: BUILT_IN, TrustBundle, None).open(None, "model.read", datetime.now(UTC))  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        finished(ListThings(), access, same=False)
