"""What a bus must do, held against the real one and the one in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from time import sleep

import pytest

from medmesh.bus.declarations import FAST_SILENCE
from medmesh.bus.memory_bus import MemoryBus
from medmesh.bus.nats_bus import NatsBus
from medmesh.bus.port import BusMessage, ConsumerSpec, Delivery, StreamSpec, TopologyBus
from medmesh.embedded.testing import RunningServers
from medmesh.errors import Problem
from medmesh.tasks import end


@pytest.fixture(params=["nats", "memory"])
async def bus(request: pytest.FixtureRequest, unique: str) -> AsyncIterator[TopologyBus]:
    if request.param == "memory":
        yield MemoryBus()
        return
    running: RunningServers = request.getfixturevalue("servers")
    made = await NatsBus.connect(running.nats_url, name=unique)
    yield made
    await made.close()


async def _until(condition: object, seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # type: ignore[operator]
            await asyncio.sleep(0.01)


async def _stream(bus: TopologyBus, name: str, **consumer: object) -> ConsumerSpec:
    spec = ConsumerSpec(stream=f"S_{name}", durable=f"c-{name}", subjects=(f"x.{name}.>",), **consumer)  # type: ignore[arg-type]
    await bus.ensure_stream(StreamSpec(f"S_{name}", (f"x.{name}.>",)))
    await bus.ensure_consumer(spec)
    return spec


async def test_every_message_arrives_once_and_a_second_copy_is_dropped(bus: TopologyBus, unique: str) -> None:
    spec = await _stream(bus, unique)
    messages = [BusMessage(f"{unique}-{n}", f"x.{unique}.a", str(n).encode()) for n in range(500)]
    assert await bus.publish(messages) == [None] * 500
    assert await bus.publish(messages[:100]) == [None] * 100
    seen: list[bytes] = []

    async def take(delivery: Delivery) -> None:
        seen.append(delivery.body)
        await delivery.ack()

    consuming = await bus.consume(spec, take)
    await _until(lambda: len(seen) >= 500)
    await asyncio.sleep(0.2)
    await consuming.stop()
    assert sorted(map(int, seen)) == list(range(500))


async def test_a_consumer_that_takes_one_at_a_time_takes_them_all(bus: TopologyBus, unique: str) -> None:
    spec = await _stream(bus, unique, max_in_flight=1)
    await bus.publish([BusMessage(f"{unique}-{n}", f"x.{unique}.a", str(n).encode()) for n in range(20)])
    seen: list[int] = []

    async def take(delivery: Delivery) -> None:
        seen.append(int(delivery.body))
        await delivery.ack()

    consuming = await bus.consume(spec, take, concurrency=1)
    await _until(lambda: len(seen) == 20)
    await consuming.stop()
    assert seen == list(range(20))


async def test_a_retry_comes_again_with_its_attempt_and_what_is_acknowledged_does_not(bus: TopologyBus, unique: str) -> None:
    spec = await _stream(bus, unique, backoff=(0.05, 0.05))
    attempts: list[int] = []

    async def fail_twice(delivery: Delivery) -> None:
        attempts.append(delivery.attempt)
        await (delivery.retry(0.05) if delivery.attempt < 3 else delivery.ack())

    await bus.publish([BusMessage(unique, f"x.{unique}.a", b"")])
    consuming = await bus.consume(spec, fail_twice)
    await _until(lambda: len(attempts) == 3)
    await asyncio.sleep(0.3)
    await consuming.stop()
    assert attempts == [1, 2, 3]


async def test_a_message_published_before_the_consumer_ran_is_delivered(bus: TopologyBus, unique: str) -> None:
    spec = await _stream(bus, unique)
    await bus.publish([BusMessage(unique, f"x.{unique}.a", b"early")])
    got = asyncio.Event()

    async def take(delivery: Delivery) -> None:
        await delivery.ack()
        got.set()

    consuming = await bus.consume(spec, take)
    await asyncio.wait_for(got.wait(), 10)
    await consuming.stop()


async def test_stopping_finishes_what_was_begun(bus: TopologyBus, unique: str) -> None:
    spec = await _stream(bus, unique)
    begun, done = asyncio.Event(), []

    async def slow(delivery: Delivery) -> None:
        begun.set()
        await asyncio.sleep(0.3)
        await delivery.ack()
        done.append(1)

    await bus.publish([BusMessage(unique, f"x.{unique}.a", b"")])
    consuming = await bus.consume(spec, slow)
    await asyncio.wait_for(begun.wait(), 10)
    await consuming.stop()
    assert done == [1]


async def test_request_is_answered_and_nobody_there_is_said_at_once(bus: TopologyBus, unique: str) -> None:
    async def upper(body: bytes) -> bytes:
        return body.upper()

    serving = await bus.serve(f"q.{unique}", upper, queue="q")
    assert await bus.request(f"q.{unique}", b"abc") == b"ABC"
    await serving.stop()
    with pytest.raises(Problem, match=f"q.{unique}.none") as caught:
        await asyncio.wait_for(bus.request(f"q.{unique}.none", b"", timeout=60), 20)
    assert caught.value.code == "bus.no_responder"


async def _hold(held: list[tuple[bytes, int]], delivery: Delivery) -> None:
    held.append((delivery.body, delivery.attempt))
    await asyncio.Event().wait()


async def _take(seen: list[tuple[bytes, int]], delivery: Delivery) -> None:
    seen.append((delivery.body, delivery.attempt))
    await delivery.ack()


async def test_what_a_killed_process_held_comes_to_the_next_and_what_a_living_one_holds_does_not(
    servers: RunningServers, unique: str
) -> None:
    bus, living, killed = [await NatsBus.connect(servers.nats_url, name=unique) for _ in range(3)]
    spec = await _stream(bus, unique, ack_wait=FAST_SILENCE, max_in_flight=8)
    kept: list[tuple[bytes, int]] = []
    lost: list[tuple[bytes, int]] = []
    seen: list[tuple[bytes, int]] = []
    await bus.publish([BusMessage(f"{unique}-kept", f"x.{unique}.a", b"kept")])
    await living.consume(spec, partial(_hold, kept), concurrency=1)
    await _until(lambda: kept)
    await living._consumers.copy().pop()._subscription.unsubscribe()  # it takes nothing more
    await killed.consume(spec, partial(_hold, lost), concurrency=1)
    await bus.publish([BusMessage(f"{unique}-{n}", f"x.{unique}.a", str(n).encode()) for n in range(3)])
    await _until(lambda: lost)
    await end(killed._keeper)  # type: ignore[arg-type]
    await killed._client.close()  # as a killed process leaves: nothing is given back
    began = asyncio.get_running_loop().time()
    await bus.consume(spec, partial(_take, seen))
    await _until(lambda: len(seen) == 3, 30)
    waited = asyncio.get_running_loop().time() - began
    await asyncio.sleep(2 * FAST_SILENCE)
    assert sorted(seen) == [(b"0", 2), (b"1", 2), (b"2", 2)], "each once more, and not what is held by who lives"
    assert kept == [(b"kept", 1)]
    assert waited < 5, "some 2 s on a machine that does nothing else"
    await living.close()
    await bus.close()


async def test_what_comes_again_to_who_holds_it_is_not_handled_beside_itself(servers: RunningServers, unique: str) -> None:
    """A process whose loop was held up spoke too late; the server gave its message out again, to itself."""
    bus = await NatsBus.connect(servers.nats_url, name=unique)
    spec = await _stream(bus, unique, ack_wait=0.3)
    handled: list[int] = []
    done = asyncio.Event()

    async def slow(delivery: Delivery) -> None:
        handled.append(delivery.attempt)
        await done.wait()
        await delivery.ack()

    await bus.publish([BusMessage(unique, f"x.{unique}.a", b"")])
    await bus.consume(spec, slow)
    await _until(lambda: handled)
    sleep(1.0)  # nothing of this process runs meanwhile
    await asyncio.sleep(0.5)
    look = bus._client.jetstream().consumer_info
    assert (await look(spec.stream, spec.durable)).num_redelivered == 1, "the server did give it out again"
    done.set()
    await asyncio.sleep(0.6)
    assert handled == [1]
    found = await look(spec.stream, spec.durable)
    assert (found.num_ack_pending, found.ack_floor.stream_seq) == (0, 1)  # type: ignore[union-attr]
    await bus.close()


async def test_a_signal_is_heard_by_who_listens(bus: TopologyBus, unique: str) -> None:
    heard: list[tuple[str, bytes]] = []

    async def hear(subject: str, body: bytes) -> None:
        heard.append((subject, body))

    listening = await bus.listen(f"s.{unique}.*.alive", hear)
    await bus.ready()
    await bus.signal(f"s.{unique}.renji.alive", b"1")
    await _until(lambda: heard)
    await listening.stop()
    assert heard == [(f"s.{unique}.renji.alive", b"1")]


async def test_a_consumer_nobody_declared_is_a_clear_error(bus: TopologyBus, unique: str) -> None:
    await bus.ensure_stream(StreamSpec(f"S_{unique}", (f"x.{unique}.>",)))

    async def never(delivery: Delivery) -> None:
        raise AssertionError

    with pytest.raises(Problem) as caught:
        await bus.consume(ConsumerSpec(stream=f"S_{unique}", durable="nobody", subjects=("x",)), never)
    assert caught.value.code == "bus.topology_missing"


async def test_what_no_stream_keeps_is_not_lost_silently(bus: TopologyBus, unique: str) -> None:
    (outcome,) = await bus.publish([BusMessage(unique, f"nowhere.{unique}", b"")])
    assert isinstance(outcome, Problem)
