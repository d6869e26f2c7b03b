"""The launchers: what dies comes back, what was left behind is cleaned up, nobody from outside gets in."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import stat
from pathlib import Path

import asyncpg
import psutil
import pytest

from medmesh.bus.nats_bus import NatsBus
from medmesh.bus.port import BusMessage, StreamSpec
from medmesh.embedded.nats import NatsUser, configuration
from medmesh.embedded.nursery import Nursery
from medmesh.embedded.process import Command
from medmesh.embedded.run import Run, running, stop
from medmesh.embedded.testing import servers
from medmesh.errors import Problem
from medmesh.security.keys import Identity


def test_an_acknowledged_message_is_on_the_disk() -> None:
    text = configuration(1, 2, Path("/x"), "")
    assert re.search(r"^\s*sync_interval: always$", text, re.MULTILINE)
    assert 'listen: "127.0.0.1:1"' in text


async def test_what_is_killed_comes_back_with_its_data_and_ports(private: Path) -> None:
    async with servers(private / "s") as one:
        database = await asyncpg.connect(one.postgres_url)
        await database.execute("CREATE TABLE kept (x int); INSERT INTO kept VALUES (1)")
        await database.close()
        bus = await NatsBus.connect(one.nats_url, name="t")
        await bus.ensure_stream(StreamSpec("S", ("s.>",)))
        assert await bus.publish([BusMessage("1", "s.a", b"x")]) == [None]
        before = Run.read(private / "s")
        assert before is not None
        for name in ("nats", "postgres"):
            os.kill(before.processes[name].pid, signal.SIGKILL)
        async with asyncio.timeout(20):
            while True:
                try:
                    database = await asyncpg.connect(one.postgres_url)
                    break
                except (OSError, asyncpg.PostgresError):
                    await asyncio.sleep(0.1)
            while not (run := Run.read(private / "s")) or run.processes.get("nats") in (None, before.processes["nats"]):
                await asyncio.sleep(0.1)
        assert await database.fetchval("SELECT x FROM kept") == 1
        await database.close()
        async with asyncio.timeout(20):
            while True:
                try:
                    assert await bus.publish([BusMessage("1", "s.a", b"x"), BusMessage("2", "s.a", b"y")]) == [None, None]
                    break
                except (Problem, AssertionError, TimeoutError):
                    await asyncio.sleep(0.1)
        assert await bus.stream_last_sequence("S") == 2, "the first was kept, and its repetition known"
        await bus.close()
        ports = one.nats_url, one.postgres_url
    async with servers(private / "s") as again:
        assert (again.nats_url, again.postgres_url) == ports
        database = await asyncpg.connect(again.postgres_url)
        assert await database.fetchval("SELECT x FROM kept") == 1
        await database.close()


async def test_two_on_one_folder_are_refused_and_secrets_are_private(private: Path) -> None:
    async with servers(private / "s", postgres=False) as one:
        with pytest.raises(Problem) as caught:
            async with servers(private / "s", postgres=False):
                pass
        assert caught.value.code == "embedded.already_running"
        run = running(private / "s")
        assert run is not None
        text = (private / "s" / "run.json").read_text()
        assert one.nats_url in text
        for path in (private / "s").rglob("*"):
            if path.is_file() and ("secret" in str(path) or path.name == "run.json"):
                assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
        listening = {c.laddr.ip for p in run.processes.values() for c in psutil.Process(p.pid).net_connections() if c.status == "LISTEN"}
        assert listening == {"127.0.0.1"}
    assert running(private / "s") is None
    assert await stop(private / "s") is False


async def test_an_identity_has_exactly_its_subjects_and_a_stranger_none(private: Path) -> None:
    known, stranger = Identity.create(private / "known.nk"), Identity.create(private / "stranger.nk")
    users = [
        NatsUser("known", known.public, ("a.x",), ("_INBOX_known.>",)),
        NatsUser("other", Identity.create(private / "o.nk").public, (), ()),
    ]
    async with servers(private / "s", postgres=False, users=users) as one:
        bus = await NatsBus.connect(one.nats_url, name="known", seed=private / "known.nk")
        refused: list[tuple[str, str]] = []
        bus.refused = lambda operation, subject: refused.append((operation, subject))
        async with asyncio.timeout(10):
            (outcome,) = await bus.publish([BusMessage("1", "b.y", b"")])
        assert isinstance(outcome, Problem)
        assert outcome.code == "bus.permission_denied"
        assert refused == [("publish", "b.y")]
        with pytest.raises(Problem) as caught:
            async with asyncio.timeout(10):
                await bus.request("c.z", b"", timeout=60)
        assert caught.value.code == "bus.permission_denied"
        await bus.close()
        assert stranger.public != known.public
        with pytest.raises(Problem) as caught:
            async with asyncio.timeout(20):
                await NatsBus.connect(one.nats_url, name="stranger", seed=private / "stranger.nk")
        assert caught.value.code == "bus.unauthorised"


async def test_the_nursery_tells_how_a_service_ended_and_is_replaced_when_it_is_killed(private: Path) -> None:
    nursery = Nursery(private / "nursery.log")
    command = Command(("medmesh.service", "nobody", "--settings", "/none"), env={"LC_ALL": "C"}, nursery=True)
    with (private / "service.log").open("ab") as log:
        first, second = await asyncio.gather(nursery.spawn(command, log.fileno()), nursery.spawn(command, log.fileno()))
        assert first.pid != second.pid
        async with asyncio.timeout(20):
            assert [await first.wait(), await second.wait()] == [2, 2]
        assert (private / "service.log").read_text().count("There is no service called nobody.") == 2
        assert nursery._process is not None
        os.kill(nursery._process.pid, signal.SIGKILL)
        await nursery._process.wait()
        async with asyncio.timeout(20):
            while True:
                try:
                    third = await nursery.spawn(command, log.fileno())
                    break
                except OSError:  # it was asked before we knew
                    await asyncio.sleep(0.05)
            assert await third.wait() == 2
    await nursery.close()
    assert (private / "nursery.log").read_text() == ""
