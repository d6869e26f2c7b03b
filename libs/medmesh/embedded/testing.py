"""Real servers for tests: `async with servers(folder) as running` inside a loop, `with start(folder) as running` outside one."""

from __future__ import annotations

import asyncio
import atexit
import json
import shutil
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from medmesh.embedded import servers as embedded
from medmesh.embedded.nats import NatsUser
from medmesh.embedded.postgres import USER
from medmesh.embedded.supervisor import Supervisor


@dataclass(frozen=True, slots=True)
class RunningServers:
    """Where they are; empty text for what was not asked for."""

    supervisor: Supervisor = field(repr=False)
    servers: embedded.Servers = field(repr=False)
    nats_url: str = ""
    postgres_url: str = field(default="", repr=False)
    """Of the superuser, with its password: `postgresql://medmesh:...@127.0.0.1:port/medmesh`."""
    s3_url: str = ""
    s3_access_key: str = field(default="", repr=False)
    s3_secret_key: str = field(default="", repr=False)


@cache
def _state() -> Path:
    """Where the database goes when we are root and the folder's parents are closed, as pytest's are; removed at the end."""
    place = Path(tempfile.mkdtemp(prefix="medmesh-state-"))
    place.chmod(0o711)
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    return place


@asynccontextmanager
async def servers(
    folder: Path, *, nats: bool = True, postgres: bool = True, s3: bool = False, users: list[NatsUser] | None = None
) -> AsyncIterator[RunningServers]:
    """Start those asked for on `folder`, stop them at the end. A second time on the same folder finds the same data."""
    async with Supervisor(folder) as supervisor:
        started = await embedded.start(supervisor, nats=nats, postgres=postgres, s3=s3, users=users, state=_state())
        yield _describe(supervisor, started)


@contextmanager
def start(folder: Path, *, nats: bool = True, postgres: bool = True, s3: bool = False) -> Iterator[RunningServers]:
    """The same for code without a loop, or that outlives loops: the supervisor has a thread and a loop of its own."""
    loop = asyncio.new_event_loop()
    # The thread stays for as long as the servers do: the kernel counts the death of the thread that started them as ours.
    thread = threading.Thread(target=loop.run_forever, name="embedded", daemon=True)
    thread.start()
    context = servers(folder, nats=nats, postgres=postgres, s3=s3)
    try:
        yield asyncio.run_coroutine_threadsafe(context.__aenter__(), loop).result()
        asyncio.run_coroutine_threadsafe(context.__aexit__(None, None, None), loop).result()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def _describe(supervisor: Supervisor, started: embedded.Servers) -> RunningServers:
    found: dict[str, str] = {}
    if started.nats:
        found["nats_url"] = started.nats.url
    if started.postgres:
        password = started.postgres.password.read_text(encoding="utf-8")
        found["postgres_url"] = started.postgres.address.replace(f"{USER}@", f"{USER}:{password}@")
    if started.seaweedfs:
        pair = json.loads(started.seaweedfs.credentials.read_text(encoding="utf-8"))
        found |= {"s3_url": started.seaweedfs.url, "s3_access_key": pair["access_key"], "s3_secret_key": pair["secret_key"]}
    return RunningServers(supervisor, started, **found)
