"""The platform as a whole: how soon it is up, and how much memory it and a hospital's node take when nothing happens.

Floor: the three servers alone, from the same programs on a folder of their own; for the node, an interpreter with its loop. Peer: as
many processes as there are services (or one, for the node) that import what such a process is usually built of, and do nothing.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from statistics import median
from time import perf_counter

import psutil

from medmesh.client import Authenticator, Gateway, sign_in
from medmesh.client.approvals import decide
from medmesh.demo.keeping import Keepers
from medmesh.demo.processes import medmesh
from medmesh.demo.processes import node as node_process
from medmesh.embedded import run as runs
from medmesh.embedded.memory import pss
from medmesh.embedded.testing import servers
from medmesh.security.signing import Signer
from medmesh.service.spec import services
from tests.bench.common import REPEATS, Measure

SETTLE, SETTLE_EDGE = 60.0, 30.0
PASSWORD = "Bench-only-Passw0rd!"
MB = 1e6

SERVICE_LIKE = "fastapi, uvicorn, sqlalchemy.ext.asyncio, asyncpg, nats, minio, opentelemetry.sdk.trace, prometheus_client"
NODE_LIKE = "fastapi, uvicorn, sqlalchemy.ext.asyncio, httpx, pydicom, numpy, PIL.Image"
NOTHING = "asyncio, ssl"

Taken = dict[str, list[float]]


def measure(names: Sequence[str] = ()) -> list[Measure]:
    """Run the whole area, whatever the names: its measures come from the same starts."""
    return asyncio.run(_measure())


async def _measure() -> list[Measure]:
    taken: Taken = {}

    def note(name: str, value: float) -> None:
        taken.setdefault(name, []).append(value)
        print(f"{name} {value:.1f}", file=sys.stderr, flush=True)

    for _ in range(max(3, REPEATS)):
        with tempfile.TemporaryDirectory(prefix="medmesh-bench-") as place:
            folder = Path(place)
            folder.chmod(0o711)
            await _floor(folder / "servers", note)
            await _peer(len(services()), SERVICE_LIKE, note, "peer")
            await _peer(1, NODE_LIKE, note, "node")
            await _peer(1, NOTHING, note, "nothing")
            await _platform(folder, note)
    m = {name: median(values) for name, values in taken.items()}
    like = f"servers + {len(services())} empty services"
    return [
        Measure("up.first", m["up.first"], "s", m["servers.first"], like, m["servers.first"] + m["peer.seconds"], 20),
        Measure("up.warm", m["up.warm"], "s", m["servers.warm"], like, m["servers.warm"] + m["peer.seconds"], 12),
        Measure("up.idle_pss", m["up.idle_pss"], "MB", m["servers.pss"], like, m["servers.pss"] + m["peer.pss"], 1000),
        Measure("edge.idle_pss", m["edge.idle_pss"], "MB", m["nothing.pss"], "an empty node", m["node.pss"], 120),
    ]


async def _floor(folder: Path, note: Callable[[str, float], None]) -> None:
    """The servers alone: a fresh folder, and the same again."""
    for name in ("servers.first", "servers.warm"):
        began = perf_counter()
        async with servers(folder, s3=True) as up:
            note(name, perf_counter() - began)
            if name == "servers.first":
                await asyncio.sleep(5)
                note("servers.pss", sum(pss(process.pid, tree=True) for process in up.supervisor.run.processes.values()) / MB)


async def _peer(count: int, imports: str, note: Callable[[str, float], None], name: str) -> None:
    """Processes that import and wait; all of them at once, as services start."""
    code = f"import {imports}\nprint(flush=True)\nimport sys\nsys.stdin.read()"
    began = perf_counter()
    async with AsyncExitStack() as stack:
        processes = [await stack.enter_async_context(_waiting(code)) for _ in range(count)]
        for process in processes:
            assert process.stdout is not None
            assert await process.stdout.readline(), f"it could not import {imports}"
        note(f"{name}.seconds", perf_counter() - began)
        note(f"{name}.pss", sum(pss(process.pid) for process in processes) / MB)


@asynccontextmanager
async def _waiting(code: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-c", code, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={"MALLOC_ARENA_MAX": "2", **os.environ}
    )
    try:
        yield process
    finally:
        process.kill()
        await process.wait()


async def _platform(folder: Path, note: Callable[[str, float], None]) -> None:
    data = folder / "platform"
    try:
        note("up.first", await _up(data))
        await asyncio.sleep(SETTLE)
        _breakdown(data)
        note("up.idle_pss", _total(data))
        await _edge(data, folder / "hospital", note)
        await medmesh("down", "--data", str(data))
        note("up.warm", await _up(data))
    finally:
        await runs.stop(data)


async def _up(data: Path) -> float:
    """Seconds that the command takes, its own interpreter included."""
    began = perf_counter()
    await medmesh("up", "--data", str(data))
    return perf_counter() - began


def _total(data: Path) -> float:
    run = runs.running(data)
    assert run is not None
    return pss(run.supervisor.pid, tree=True) / MB


def _breakdown(data: Path) -> None:
    """Who takes how much."""
    run = runs.running(data)
    assert run is not None
    rows = [("supervisor", pss(run.supervisor.pid), 1)]
    for name, process in run.processes.items():
        count = 1 + len(psutil.Process(process.pid).children(recursive=True))
        rows.append((name, pss(process.pid, tree=True), count))
    for name, size, count in sorted(rows, key=lambda row: -row[1]):
        print(f"  {name:12} {size / MB:7.1f} MB{f'  {count} processes' if count > 1 else ''}", file=sys.stderr)


async def _edge(data: Path, folder: Path, note: Callable[[str, float], None]) -> None:
    """A node enrolled at this platform, connected to it, with nothing to do."""
    run = runs.running(data)
    assert run is not None
    url, ca = run.urls["gateway"], run.paths["ca"]
    folder.mkdir(mode=0o700)
    async with Gateway(url, ca=ca) as anybody:
        keepers, wu = Keepers(data), Signer.create("person:wu@platform")
        keepers.add(wu.vkey, roles=("approver",))
        admin, approver = await _people(anybody, data)
        made = await admin.request("POST", "/v1/hospitals", {"hospital": "bench", "display_name": "bench"})
        where = ("--folder", str(folder), "--gateway", url, "--ca", str(ca), "--hospital", "bench")
        enrolling = asyncio.create_task(medmesh("edge", "enrol", *where, "--code", made["code"], "--wait", "60"))
        async with asyncio.timeout(60):
            while not (found := (await approver.request("GET", "/v1/approvals", query={"state": "open"}))["approvals"]):
                await asyncio.sleep(0.2)
        await decide(approver, found[0]["approval"], wu)
        await enrolling
    node = node_process("bench", folder)
    node.start()
    try:
        await asyncio.sleep(SETTLE_EDGE)
        assert node.process is not None
        assert node.process.poll() is None, (folder / "node.log").read_text()[-2000:]
        note("edge.idle_pss", pss(node.process.pid, tree=True) / MB)
    finally:
        node.stop()


async def _people(anybody: Gateway, data: Path) -> tuple[Gateway, Gateway]:
    token = (data / "secrets" / "bootstrap.token").read_text().strip()
    await anybody.request("POST", "/v1/bootstrap", {"token": token, "name": "sun", "display_name": "sun", "password": PASSWORD})
    admin = await sign_in(anybody, "sun", PASSWORD, Authenticator())
    body = {"name": "wu", "display_name": "wu", "organisation": "platform", "roles": ["approver"]}
    code = (await admin.request("POST", "/v1/users", body))["code"]
    await anybody.request("POST", "/v1/activations", {"name": "wu", "code": code, "password": PASSWORD})
    return admin, await sign_in(anybody, "wu", PASSWORD, Authenticator())
