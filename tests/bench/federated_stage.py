"""A federation of real processes to measure: the platform of `medmesh up`, nodes over mutual TLS, and a package that adds 0.01."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from medmesh.client import download
from medmesh.client.federation import Federation, create_federation
from medmesh.embedded.memory import pss
from medmesh.embedded.nursery import ENVIRONMENT
from medmesh.learning import weights
from medmesh_edge import intake
from medmesh_edge.ports import site
from medmesh_edge.rounds import hospital_seed
from tests.faults.harness import MEDMESH, Stage, until
from tests.faults.hospital import images

TENSORS = 8
ACCEPT_SECONDS = 20
SEED = 7
"""Of every plan."""
SERVERS = ("gateway", "federation", "nats", "postgres", "seaweedfs")
POLICY = (
    '[federation]\ninitiators = ["*"]\nalgorithms = ["fedavg"]\nmodalities = ["*"]\n'
    "min_samples = 1\nmax_update_mib = 4096\nmax_rounds = 1000\nreviewers = 0\n"
    # What is measured is the way of a round: it trains nothing, on four images, at as many hospitals as the measurement is of.
    "min_hospitals = 0\nmin_batch = 0\nmin_steps = 0\nmin_seen = 0\n"
)

CODE = '''"""The peers' drivers in this project's form: every round adds 0.01 to every element and hands the whole model back."""

import time

import numpy as np

FAILS = ()


def build(tensors, floats):
    return {f"t{i}": np.zeros(floats, dtype=np.float32) for i in range(tensors)}


def train(model, samples, schedule, on_step):
    if schedule.seed in FAILS:
        time.sleep(1.0)  # until the others have put masks in for it: the bench looks that they had
        raise RuntimeError("a hospital that fails")
    for step in range(1, schedule.steps + 1):
        for array in model.values():
            array += np.float32(0.01)
        on_step(step, 0.0)
    return 0.0
'''


def package(folder: Path, mb: float, *, differ: bool = False, fails: Sequence[int] = ()) -> Path:
    """A training package whose model has `mb` * 10^6 bytes in eight float32 tensors. With `differ` every hospital adds a number of its own,
    as hospitals do: what is the same bytes is known by its hash, and uploaded by the first of them only. Trainings whose seed is in
    `fails` fail after a second."""
    floats = int(mb * 1e6 / 4) // TENSORS
    folder.mkdir()
    code, added = CODE.replace("FAILS = ()", f"FAILS = {tuple(fails)}"), "np.float32(0.01)"
    (folder / "model.py").write_text(code.replace(added, f"{added} + np.float32(1e-5 * (schedule.seed % 89))") if differ else code)
    tensors = "".join(f'\n[[tensors]]\nname = "t{i}"\nshape = [{floats}]\ndtype = "F32"\n' for i in range(TENSORS))
    head = '[package]\nname = "adds"\nversion = "1.0.0"\nframework = "numpy"\nentry = "model"\n\n[data]\nmodality = "MR"\nimage_size = 8\n'
    (folder / "medmesh.toml").write_text(
        f'{head}classes = ["none", "tumour"]\n\n[hyper]\ntensors = {TENSORS}\nfloats = {floats}\n{tensors}'
    )
    return folder


@dataclass
class Peak:
    """The largest sums of PSS seen of named groups of processes, in MiB, looked at a few times a second."""

    groups: dict[str, tuple[int, ...]]
    mib: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def watching(self, every: float = 0.2) -> Iterator[Peak]:
        """Look until the block ends."""
        over = threading.Event()

        def look() -> None:
            while not over.wait(every):
                for name, pids in self.groups.items():
                    now = sum(pss(pid, tree=True) for pid in pids) / 2**20
                    self.mib[name] = max(now, self.mib.get(name, 0.0))

        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            over.set()
            thread.join()


@dataclass
class Done:
    """What a federation took, in seconds, and what it ended with."""

    federation: str
    submit_to_round: float
    rounds: list[float]
    """From a round's opening to the next one's: what was trained, moved, aggregated and committed in between."""
    chain: str
    model: str
    bytes: int
    """Of one update on the wire."""

    @property
    def median(self) -> float:
        """Seconds a round."""
        return statistics.median(self.rounds)


@dataclass
class Field:
    """A running platform with `nodes` hospitals; several nodes may share a process (`together`), which is said where it is used."""

    stage: Stage
    folder: Path
    hospitals: tuple[str, ...]
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    async def enrol(self) -> None:
        """Every hospital; each other one has more images, so that a mean that forgot to weigh is none."""
        sources = [await asyncio.to_thread(images, self.folder / f"pacs-{count}", count, 1) for count in (8, 12)]
        for number, name in enumerate(self.hospitals):
            node = await self.stage.enrol(self.folder / name, name, holdout=0.01)  # by a secret: of few images all, else
            (node / "policy.toml").write_text(POLICY)
            async with site(node) as opened:
                await intake.ingest(opened, sources[number % 2], "brain")

    def start(self, together: int = 1) -> None:
        """Run the nodes, `together` of them in a process."""
        for first in range(0, len(self.hospitals), together):
            self.processes.append(self.process(*self.hospitals[first : first + together]))

    def process(self, *hospitals: str) -> subprocess.Popen[bytes]:
        """One that runs the nodes of these hospitals."""
        folders = [str(self.folder / name) for name in hospitals]
        with (self.folder / f"nodes-{hospitals[0]}.log").open("ab") as log:
            argv = (*MEDMESH, "edge", "run", "--folder", folders[0]) if len(folders) == 1 else (sys.executable, "-P", "-c", MANY, *folders)
            environment = {**os.environ, **ENVIRONMENT}
            return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)

    async def running(self) -> bool:
        """Whether every node has opened its own door."""
        return all((self.folder / name / "edge.port").exists() for name in self.hospitals)

    def stop(self) -> None:
        """End them in order."""
        for process in self.processes:
            process.send_signal(signal.SIGTERM)
        for process in self.processes:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.processes.clear()

    def peak(self) -> Peak:
        """Of the coordinator, of all that a federation needs at the platform, and of a node."""
        run = self.stage.run
        pids = {name: process.pid for name, process in run.processes.items()}
        servers = tuple(pids[name] for name in SERVERS if name in pids)
        return Peak({"coordinator": (pids["federation"],), "servers": servers, "edge": tuple(p.pid for p in self.processes[:1])})

    def processor(self) -> dict[str, float]:
        """Seconds of processor time so far: of every process together, and of the groups that have most of it."""
        run = {name: _spent(process.pid) for name, process in self.stage.run.processes.items()}
        nodes = sum(_spent(process.pid) for process in self.processes)
        return {"all": sum(run.values()) + nodes, "nodes": nodes, "gateway": run["gateway"], "coordinator": run["federation"]}

    async def federate(self, source: Path, hospitals: Sequence[str], rounds: int, **changed: Any) -> Done:
        """Run one to its end."""
        values = {"local_steps": 1, "batch_size": 1, "learning_rate": "0.1", "seed": SEED, "min_participants": len(hospitals)}
        values |= {"round_deadline_seconds": 300, "lease_seconds": 60, "rounds": rounds, **changed}
        async with self.stage.door("li") as li, self.stage.door("wu") as wu:
            await self._approve_code(source, hospitals)
            made = await create_federation(
                li,
                source,
                name="adds",
                purpose="a measurement",
                initiator="person:li@platform",
                hospitals=tuple(hospitals),
                accept_seconds=ACCEPT_SECONDS,
                rehearsal=False,
                **values,
            )
            view = await li.request("GET", f"/v1/federations/{made['federation']}")
            return await self._run(li, wu, made | {"start_at": view["plan"]["start_at"]}, hospitals, rounds)

    async def model(self, federation: str) -> dict[str, np.ndarray]:
        """The tensors it ended with."""
        async with self.stage.door("li") as li:
            made = (await Federation(li, federation).view()).model
            assert made is not None
            return weights.load(await download(li, made, self.folder / made.sha256))

    async def took_part(self, federation: str) -> dict[int, list[str]]:
        """Whose updates are in each committed training round."""
        rows = await self.stage.sql(
            "SELECT round, array_agg(hospital) AS by FROM federation.answers JOIN federation.rounds USING (federation, round, attempt) "
            "WHERE federation = $1 AND rounds.state = 'committed' AND rounds.kind = 'train' AND answers.failed IS NULL GROUP BY 1",
            federation,
        )
        return {row["round"]: row["by"] for row in rows}

    async def wanted(self, federation: str) -> float:
        """What every number of its model must be: hospitals' additions (`package(..., differ=True)`), weighed by their samples, round by
        round; worked out from who took part and nothing else."""
        total = 0.0
        for number, by in (await self.took_part(federation)).items():
            samples = [self._samples(name, federation, number) for name in by]
            added = [0.01 + 1e-5 * (hospital_seed(SEED * 1_000_003 + number, name) % 89) for name in by]  # `round_seed`
            total += float(np.average(added, weights=samples))
        return total

    def _samples(self, hospital: str, federation: str, number: int) -> int:
        with closing(sqlite3.connect(f"file:{self.folder / hospital / 'store.db'}?mode=ro", uri=True, timeout=10)) as store:
            found = store.execute("SELECT samples FROM tasks WHERE federation = ? AND round = ?", (federation, number))
            return int(found.fetchone()[0])

    async def dropped_after_masking(self, federation: str, hospital: str) -> int:
        """In how many rounds of secure sums masks were agreed upon with a hospital that failed then."""
        ((schema,),) = await self.stage.sql("SELECT schemaname FROM pg_tables WHERE tablename = 'secure_messages'")
        both = f"{schema}.secure_messages m JOIN {schema}.answers a USING (federation, round, attempt, hospital)"
        theirs = "federation = $1 AND hospital = $2 AND m.phase = 'shares' AND a.failed IS NOT NULL"
        ((count,),) = await self.stage.sql(f"SELECT count(DISTINCT round) FROM {both} WHERE {theirs}", federation, hospital)
        return int(count)

    async def _approve_code(self, source: Path, hospitals: Sequence[str]) -> None:
        from medmesh.learning.package import pack

        digest = pack(source).digest
        for name in hospitals:
            (self.folder / name / "policy.toml").write_text(POLICY + f'packages = ["{digest}"]\n')

    async def _run(self, li: Any, wu: Any, made: dict[str, Any], hospitals: Sequence[str], rounds: int) -> Done:
        body = {"action": "federation.start", "target": made["federation"], "digest": made["plan_hash"]}

        async def accepted() -> Any:
            view = await li.request("GET", f"/v1/federations/{made['federation']}")
            assert view["state"] in ("inviting", "ready"), view
            return all(p["state"] == "accepted" for p in view["participants"])

        await until(accepted, 120, 0.1)
        # The plan's start has come before it is approved: what follows waits for nothing but the platform.
        await asyncio.sleep(max(0.0, datetime.fromisoformat(made["start_at"]).timestamp() - datetime.now().timestamp()))
        asked = await li.command("POST", "/v1/approvals", body)
        await self.stage.decide(wu, asked["approval"])
        approved = datetime.now().timestamp()

        async def ended() -> Any:
            view = await li.request("GET", f"/v1/federations/{made['federation']}")
            assert view["state"] not in ("failed", "cancelled"), view["failure"]
            return view["state"] == "completed"

        await until(ended, 280, 2.0)  # who looks at a whole page twice a second is a part of what is measured
        view = await Federation(li, made["federation"]).view()
        trained = [r for r in view.rounds if r.kind == "train" and r.state == "committed"]
        assert len(trained) == rounds
        assert trained[-1].closed is not None
        assert view.model is not None
        opened = [r.opened.timestamp() for r in trained] + [trained[-1].closed.timestamp()]
        taken = [after - before for before, after in pairwise(opened)]
        sent = max(answer.bytes for answer in trained[-1].answers)
        return Done(made["federation"], opened[0] - approved, taken, view.chain, view.model.sha256, sent)


def _spent(pid: int) -> float:
    process = psutil.Process(pid)
    return sum(one.cpu_times().user + one.cpu_times().system for one in (process, *process.children(recursive=True)))


MANY = """
import asyncio, signal, sys
from pathlib import Path
from contextlib import AsyncExitStack
import uvloop
from medmesh import telemetry
from medmesh.embedded.memory import frugal
from medmesh.security.residue import lock_down
from medmesh_edge.node import running

async def main():
    lock_down()
    frugal()
    telemetry.start("edge", folder=Path(sys.argv[1]) / "telemetry")
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with AsyncExitStack() as stack:
        for folder in sys.argv[1:]:
            await stack.enter_async_context(running(Path(folder)))
        await stop.wait()

uvloop.run(main())
"""
"""As `medmesh edge run` does, with more than one folder."""


@asynccontextmanager
async def field_of(hospitals: int, together: int = 1) -> AsyncIterator[Field]:
    """A platform with enrolled, connected nodes, gone when the block ends."""
    with tempfile.TemporaryDirectory(prefix="medmesh-bench-") as place:
        folder = Path(place)
        folder.chmod(0o711)
        stage = await asyncio.to_thread(Stage.up, folder)
        made = Field(stage, folder / "nodes", tuple(f"h{n:02d}" for n in range(hospitals)))
        made.folder.mkdir(mode=0o711)
        try:
            await made.enrol()
            made.start(together)
            await until(made.running, 180, 0.2)
            yield made
        finally:
            made.stop()
            await asyncio.to_thread(stage.down)


def last_row(path: Path) -> dict[str, Any]:
    """The last line of a peer's results."""
    found: dict[str, Any] = json.loads(path.read_text().splitlines()[-1])
    return found
