"""How records reach the log, and messages the stream, from the tables they were committed to: each until it was taken, however often."""

from __future__ import annotations

import asyncio
import base64
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.store import example_sqlite

from medmesh.bus.port import BusMessage
from medmesh.contracts.audit import AuditBatch, Receipt, Receipts
from medmesh.contracts.message import OperationFinished, decode
from medmesh.errors import Problem
from medmesh.service import relays
from medmesh.service.relays import AuditRelay, OutboxRelay
from medmesh.store.database import Database
from medmesh.store.unit import AuditEntry, Context


class Log:
    """Gives receipts for the first `most` of a batch, or fails with what is next in `failures`."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.ids: dict[int, set[str]] = {}
        self.most = 1000
        self.failures: list[BaseException | Problem] = []
        self.lost = False
        """Whether it takes what it is given and its answer is lost."""

    async def request(self, subject: str, body: bytes, *, timeout: float) -> bytes:
        assert subject == "medmesh.audit.example.record.v1"
        assert len(body) < 900_000, "more than the bus carries"
        batch = AuditBatch.model_validate_json(body)
        if self.failures:
            failure = self.failures.pop(0)
            if isinstance(failure, Problem):
                return Receipts(problem=failure.document()).model_dump_json().encode()
            raise failure
        for record in batch.records:
            assert base64.b64decode(record.body).split()[0] == str(record.n).encode()
            self.ids.setdefault(record.n, set()).add(record.id)
        self.batches.append([record.n for record in batch.records])
        if self.lost:
            self.lost = False
            raise TimeoutError
        given = batch.records[: self.most]
        return Receipts(receipts=tuple(Receipt(id=one.id, seq=one.n, leaf="0" * 64) for one in given)).model_dump_json().encode()


@pytest.fixture
async def database(private: Path) -> AsyncIterator[Database]:
    async with example_sqlite(private) as made:
        yield made


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def relay(database: Database, log: Log) -> AuditRelay:
    return AuditRelay(service="example", database=database, bus=log, gather=0)  # type: ignore[arg-type]


async def leave(database: Database, count: int = 1, size: int = 0) -> None:
    async with database.unit(Context("example")) as uow:
        for _ in range(count):
            uow.audit(AuditEntry("x" * max(size, 1), "C"))


async def while_(still: Callable[[Any], Awaitable[Any]], of: Any) -> None:
    """Wait as long as something is still so."""
    async with asyncio.timeout(20):
        while await still(of):
            await asyncio.sleep(0.01)


async def left(database: Database) -> list[int]:
    return [n for n, _, _ in await database.unreceipted(1000)]


async def test_a_row_goes_on_its_own_receipt_and_the_others_are_handed_in_again(database: Database, log: Log, relay: AuditRelay) -> None:
    await leave(database, relay.batch)
    log.most = 2
    assert not await relay.step(), "the log did not take all: whoever asks at once again only makes it worse"
    rest = list(range(3, relay.batch + 1))
    assert await left(database) == rest
    log.most = 1000
    await relay.step()
    assert log.batches == [[1, 2, *rest], rest]
    assert await left(database) == []


async def test_what_the_log_refuses_or_does_not_answer_stays_and_comes_again_as_the_same(
    database: Database, log: Log, relay: AuditRelay
) -> None:
    await leave(database, 3)
    log.failures = [Problem("audit.retry"), TimeoutError()]
    with pytest.raises(Problem) as caught:
        await relay.step()
    assert caught.value.code == "audit.retry"
    with pytest.raises(TimeoutError):
        await relay.step()
    log.lost = True
    with pytest.raises(TimeoutError):
        await relay.step()
    assert await left(database) == [1, 2, 3]
    await relay.step()
    assert log.batches == [[1, 2, 3], [1, 2, 3]]
    assert all(len(ids) == 1 for ids in log.ids.values()), "whoever gets a record twice knows it by its id"
    assert await left(database) == []


async def test_records_too_large_for_one_message_follow_each_other_at_once(database: Database, log: Log, relay: AuditRelay) -> None:
    await leave(database, 5, size=150_000)
    while await relay.step():
        pass
    assert [n for batch in log.batches for n in batch] == [1, 2, 3, 4, 5]
    assert all(len(batch) <= 2 for batch in log.batches)
    # One that alone is more than that is handed in alone.
    await leave(database, 2, size=450_000)
    while await relay.step():
        pass
    assert log.batches[-2:] == [[6], [7]]


async def test_a_full_batch_is_followed_by_the_next(database: Database, log: Log, relay: AuditRelay) -> None:
    await leave(database, 2 * relay.batch + 1)
    steps = [await relay.step() for _ in range(3)]
    assert ([len(batch) for batch in log.batches], steps) == ([64, 64, 1], [True, True, False])


async def test_what_is_left_within_a_moment_rides_in_one_message(database: Database, log: Log, relay: AuditRelay) -> None:
    relay.gather = 0.5  # what a service waits is shorter; here nothing may depend on how busy the machine is
    assert AuditRelay().gather == relays.GATHER_SECONDS > 0
    relay.start()
    await asyncio.sleep(0)  # its first look finds nothing
    for _ in range(10):
        await leave(database)
        relay.wake()
    await while_(left, database)
    assert log.batches == [list(range(1, 11))]
    await relay.stop()


async def test_it_goes_on_by_itself_after_the_log_was_away_and_hands_in_the_rest_when_it_is_stopped(
    database: Database, log: Log, relay: AuditRelay
) -> None:
    log.failures = [TimeoutError(), TimeoutError()]
    await leave(database, 2)
    relay.start()
    await while_(left, database)
    assert log.batches == [[1, 2]]
    relay.gather = 60
    await leave(database, 100)
    await relay.stop()
    assert await left(database) == []


class Stream:
    """Refuses what is called so."""

    def __init__(self, *refused: str) -> None:
        self.refused, self.taken = set(refused), list[tuple[str, str]]()

    async def publish(self, messages: Sequence[BusMessage]) -> list[BaseException | None]:
        outcomes: list[BaseException | None] = []
        for message in messages:
            name = decode(message.body, OperationFinished).data.operation
            outcomes.append(Problem("bus.no_responder", subject=message.subject) if name in self.refused else None)
            self.taken += [] if name in self.refused else [(message.id, name)]
        return outcomes

    @property
    def names(self) -> str:
        return "".join(name for _, name in self.taken)


@pytest.fixture
async def sending(private: Path) -> AsyncIterator[tuple[Database, Stream, OutboxRelay]]:
    """A database, a stream, and a relay between them that has looked for what was left before."""
    async with example_sqlite(private, emits=frozenset((OperationFinished,))) as made:
        stream = Stream()
        relay = _between(made, stream)
        await relay.step()
        yield made, stream, relay


def _between(database: Database, stream: Stream, **options: Any) -> OutboxRelay:
    """As a process that starts."""
    made = OutboxRelay(service="example", database=database, bus=stream, **options)  # type: ignore[arg-type]
    database.on_sent = made.hand
    return made


async def _emit(database: Database, names: str, failing: bool = False) -> None:
    async with database.unit(Context("example")) as uow:
        for name in names:
            uow.emit(OperationFinished(service="example", operation=name, command="x", succeeded=True))
        await uow.flush()
        if failing:
            raise ZeroDivisionError


async def _waiting(database: Database) -> int:
    return (await database.outbox_backlog())[0]


async def silent(stream: Stream) -> bool:
    return not stream.names


async def test_what_was_committed_goes_out_without_being_read_again(
    sending: tuple[Database, Stream, OutboxRelay], monkeypatch: pytest.MonkeyPatch
) -> None:
    database, stream, _ = sending
    now, marked, sent = 0.0, list[int](), database.sent

    async def mark(ids: Sequence[str]) -> None:
        marked.append(len(ids))
        await sent(ids)

    monkeypatch.setattr(relays, "monotonic", lambda: now)
    relay = _between(database, stream)
    await relay.step()
    monkeypatch.setattr(database, "claim_unsent", lambda *_: pytest.fail("the table was asked"))
    monkeypatch.setattr(database, "sent", mark)
    await _emit(database, "ab")
    await _emit(database, "c")
    with pytest.raises(ZeroDivisionError):
        await _emit(database, "x", failing=True)
    assert not await relay.step()
    now = relays.MARK_SECONDS / 2
    await _emit(database, "d")
    assert not await relay.step()
    assert (stream.names, marked, relay.due) == ("abcd", [], relays.MARK_SECONDS), "and the relay knows that it has something to do"
    now = relays.MARK_SECONDS
    assert not await relay.step()
    assert (stream.names, marked, await _waiting(database)) == ("abcd", [4], 0), "marked together, so long after the first"
    assert relay.due == relays.IDLE_SECONDS


async def test_what_was_published_is_marked_although_nobody_wakes_the_relay_again(
    sending: tuple[Database, Stream, OutboxRelay], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, seconds in (("POLL_SECONDS", 3600), ("IDLE_SECONDS", 3600), ("MARK_SECONDS", 0.01)):
        monkeypatch.setattr(relays, name, seconds)
    database, stream, _ = sending
    relay = _between(database, stream)
    await relay.step()
    relay.start()
    await _emit(database, "a")
    await while_(_waiting, database)
    assert stream.names == "a"
    await relay.stop()


async def test_a_message_that_was_not_taken_comes_again_and_those_beside_it_do_not(private: Path) -> None:
    bus = Stream("b")
    async with example_sqlite(private, emits=frozenset((OperationFinished,))) as database:
        relay = _between(database, bus, batch=3)
        for again in (False, True):  # from the table, then from memory
            bus.taken.clear()
            bus.refused.add("b")
            await _emit(database, "abcd")
            with pytest.raises(Problem):  # so that it waits a little, and somebody is told
                await relay.step()
            assert (bus.names, await _waiting(database)) == ("ac", 2)
            await _emit(database, "e")  # waits its turn
            bus.refused.clear()
            if again:
                assert await relay.step(), "a full batch is followed by the next"
            while await relay.step():
                pass
            assert (bus.names, len({id_ for id_, _ in bus.taken})) == ("acbde", 5)
        await _emit(database, "efgh")
        assert await relay.step(), "a full batch is followed by the next"
        assert not await relay.step()


async def test_a_process_killed_before_or_after_it_published_loses_nothing_and_sends_the_same_id(
    sending: tuple[Database, Stream, OutboxRelay],
) -> None:
    database, stream, _ = sending
    await _emit(database, "a")  # in the memory of a process that is gone now
    relay = _between(database, stream)
    await relay.step()
    await _emit(database, "bc")
    await relay.step()  # published, and not marked
    assert await _waiting(database) == 2
    await _between(database, stream).step()
    assert stream.names == "abcbc"
    assert len(set(stream.taken)) == 3
    assert await _waiting(database) == 0


async def test_what_another_process_left_goes_out_when_it_is_old_enough(
    sending: tuple[Database, Stream, OutboxRelay], monkeypatch: pytest.MonkeyPatch
) -> None:
    database, stream, relay = sending
    monkeypatch.setattr(relays, "POLL_SECONDS", 0.0)
    relay = _between(database, stream)
    await relay.step()
    database.on_sent = lambda _: None  # handed to a relay elsewhere
    await _emit(database, "a")
    await relay.step()
    assert stream.names == "", "whoever committed it is about to publish it"
    monkeypatch.setattr(relays, "OVERDUE", timedelta(0))
    await relay.step()
    assert (stream.names, await _waiting(database)) == ("a", 0)


async def test_while_the_bus_is_away_memory_does_not_grow_and_the_order_stays(
    sending: tuple[Database, Stream, OutboxRelay], monkeypatch: pytest.MonkeyPatch
) -> None:
    database, stream, relay = sending
    names = "abcdefghijklmnopqrstuvwxyz"
    monkeypatch.setattr(relays, "MOST_HANDED_BYTES", 2000)
    for name in names[:13]:
        await _emit(database, name)
        assert sum(len(message.body) for message in relay._handed) <= 2000
    stream.refused = set(names)
    for name in names[13:]:
        with pytest.raises(Problem):
            await relay.step()
        await _emit(database, name)
        assert not relay._handed
    stream.refused.clear()
    while await relay.step():
        pass
    assert (stream.names, await _waiting(database)) == (names, 0)


async def test_it_publishes_what_is_left_when_it_is_stopped(sending: tuple[Database, Stream, OutboxRelay]) -> None:
    database, stream, relay = sending
    relay.start()
    await asyncio.sleep(0)
    stream.refused = {"a"}
    await _emit(database, "a")
    await asyncio.sleep(0.05)
    await _emit(database, "b")
    stream.refused.clear()
    await relay.stop()
    assert (sorted(stream.names), await _waiting(database)) == (["a", "b"], 0)


async def test_what_was_published_is_marked_when_it_is_stopped_and_not_published_again(
    sending: tuple[Database, Stream, OutboxRelay], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("POLL_SECONDS", "MARK_SECONDS"):
        monkeypatch.setattr(relays, name, 3600)
    database, stream, _ = sending
    relay = _between(database, stream)
    await relay.step()
    relay.start()
    await _emit(database, "a")
    await while_(silent, stream)
    assert await _waiting(database) == 1
    await relay.stop()
    assert (stream.names, await _waiting(database)) == ("a", 0)


async def test_a_relay_that_finds_nothing_looks_ever_more_seldom_and_at_once_when_it_is_woken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relays, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(relays, "IDLE_SECONDS", 0.08)
    looked: asyncio.Queue[float] = asyncio.Queue()

    class Idle(relays._Loop):
        async def step(self) -> bool:
            looked.put_nowait(asyncio.get_running_loop().time())
            return False

    loop = Idle("idle")
    loop.start()
    times = [await looked.get() for _ in range(5)]
    waited = [after - before for before, after in itertools.pairwise(times)]
    assert all(one > least - 0.005 for one, least in zip(waited, (0.02, 0.04, 0.08, 0.08), strict=True))
    monkeypatch.setattr(relays, "IDLE_SECONDS", 3600)
    monkeypatch.setattr(relays, "POLL_SECONDS", 3600)
    await looked.get()  # the last look by the short clock; from here on only a waking makes it look
    loop.wake()
    await looked.get()
    loop.wake()
    await looked.get()
    await loop.stop()
