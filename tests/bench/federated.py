"""Federations of real processes against NVIDIA FLARE and Flower: the same work, each in its own processes over loopback, in turn.

The model is eight float32 tensors, a client adds 0.01 (of ours each another number) and hands everything back, the mean is committed.
Ours goes over mutual TLS, through gateway, coordinator, bus, database and the audit log, with a sandboxed worker at each hospital; a
round is the time from its opening to the next one's. The peers' drivers and environments are outside the project: `MEDMESH_BENCH_PEERS`
names the folder of the drivers (`nvflare_bench.py`, `flower_bench.py`), `MEDMESH_BENCH_NVFLARE` and `MEDMESH_BENCH_FLOWER` the
interpreters; without them ours runs alone.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
from PIL import Image

from medmesh.contracts.federation import RoundCommitted
from medmesh.imaging.reading import wrap
from medmesh.simulation.data import Sample
from medmesh.simulation.run import simulate
from medmesh_edge.rounds import hospital_seed
from tests.bench.common import Measure
from tests.bench.federated_stage import SEED, Done, Field, field_of, last_row, package
from tests.faults.harness import until
from tests.packages import TINY

SIZES = {"fl.8x1mb": (8, 1.0, 20), "fl.4x100mb": (4, 100.0, 4), "fl.64x40kb": (64, 0.04, 10)}
GOALS = {"fl.8x1mb": (10, 50), "fl.4x100mb": (1.5, None), "fl.64x40kb": (None, None)}
"""How many times faster than FLARE and than Flower."""
TOGETHER = 16
"""Nodes in a process where there are 64: half a gigabyte of interpreters less, and nothing else is shared."""
KILLS = 20
KILLED_ROUNDS = 8 * KILLS
"""Rounds of the federation that is disturbed: enough that none of the kills comes after its end."""
LARGE = (16, 100.0, 2)
"""Hospitals, MB and rounds to see that the coordinator's memory depends on neither (`fl.4x100mb` is the one beside it)."""
SECURE = ((4, 100.0, 4), (8, 1.0, 10))
"""Hospitals, MB and rounds of secure sums beside plain ones."""


def measure(names: Sequence[str] = ()) -> list[Measure]:
    """Every figure whose name begins with one of these."""

    def wanted(name: str) -> bool:
        return not names or name.startswith(tuple(names))

    found: list[Measure] = []
    for name, (clients, mb, rounds) in SIZES.items():
        if wanted(name):
            ours = asyncio.run(_ours(clients, mb, rounds))
            found += _measures(name, *ours, _peers(clients, mb, min(rounds, 15)) if clients <= 8 else {})
    if wanted("fl.coordinator_pss"):
        found.append(asyncio.run(_coordinator(*LARGE)))
    if wanted("fl.int8_bytes"):
        found.append(asyncio.run(_int8()))
    for clients, mb, rounds in SECURE:
        if wanted("fl.secagg"):
            found += asyncio.run(_secagg(clients, mb, rounds))
    if wanted("fl.kill20"):
        found += asyncio.run(_kills())
    if wanted("fl.sim256"):
        found.append(asyncio.run(_simulated(256, 5)))
    return found


async def _simulated(hospitals: int, rounds: int) -> Measure:
    """A round of simulated hospitals with eight samples and a softmax regression each: what is left is bookkeeping."""
    shares, opened = {f"h{n:03d}": [_sample(n, place) for place in range(8)] for n in range(hospitals)}, [0.0]

    def hear(kind: str, fact: dict[str, Any]) -> None:
        if kind == RoundCommitted.subject():
            opened.append(monotonic())

    with tempfile.TemporaryDirectory() as folder:
        rules = {"rounds": rounds, "local_steps": 5, "batch_size": 4, "learning_rate": "0.1"}
        done = await simulate(TINY, shares, Path(folder) / "model", news=hear, **rules)
    assert done.view.state == "completed", done.view.failure
    taken = [after - before for before, after in pairwise(opened[1:])]
    print(f"sim{hospitals}: rounds after the first {[round(one, 2) for one in taken]}", file=sys.stderr)
    return Measure(f"fl.sim{hospitals}", statistics.median(taken), "s/round", goal=1.0)


def _sample(hospital: int, place: int) -> Sample:
    pixels = (np.random.default_rng(1000 * hospital + place).integers(0, 90, (8, 8)) + 130 * (place % 2)).astype(np.uint8)
    about = {"patient_id": "", "patient_name": "", "study_uid": "2.25.1", "series_uid": "2.25.2", "study_date": "", "modality": "MR"}
    data = wrap(Image.fromarray(pixels), sop_uid=f"2.25.{1000 * hospital + place + 1}", extra={}, **about)
    return Sample(data, ("none", "tumour")[place % 2], f"p{place}", place > 5, "MR")


async def _ours(clients: int, mb: float, rounds: int) -> tuple[Done, dict[str, float], dict[str, float]]:
    async with field_of(clients, TOGETHER if clients > 16 else 1) as field:
        source = package(field.folder / "package", mb, differ=True)
        await field.federate(source, field.hospitals, 2)  # workers start with the first
        before = field.processor()
        done = await field.federate(source, field.hospitals, rounds)
        spent = {name: (after - before[name]) / rounds for name, after in field.processor().items()}
        # Looking at the memory of thirty processes takes a good part of a processor: not while time is measured.
        with (peak := field.peak()).watching():
            await field.federate(source, field.hospitals, 3)
        return done, peak.mib, spent


async def _coordinator(clients: int, mb: float, rounds: int) -> Measure:
    """The coordinator's largest PSS of many large models."""
    async with field_of(clients, TOGETHER) as field:
        source = package(field.folder / "package", mb, differ=True)
        with (peak := field.peak()).watching():
            await field.federate(source, field.hospitals, rounds)
        return Measure(f"fl.coordinator_pss {clients}x{mb:g}mb", peak.mib["coordinator"], "MiB", goal=200)


def _measures(name: str, done: Done, mib: dict[str, float], cpu: dict[str, float], peers: dict[str, dict[str, Any]]) -> list[Measure]:
    flare, flower = (peers.get(peer, {}).get("round_s_median") for peer in ("flare", "flower"))
    times, times_flower = GOALS[name]
    goal = flare / times if flare and times else {"fl.64x40kb": 0.8}.get(name)
    found = [Measure(name, done.median, "s/round", peer="FLARE", peer_value=flare, goal=goal)]
    if times_flower:
        found.append(
            Measure(name, done.median, "s/round", peer="Flower", peer_value=flower, goal=flower / times_flower if flower else None)
        )
    server = peers.get("flare", {}).get("rss", {}).get("server", {}).get("peak_tree_mib")
    label = name.removeprefix("fl.")
    found += [
        Measure(f"fl.coordinator_pss {label}", mib["coordinator"], "MiB", goal=200),
        Measure(f"fl.servers_pss {label}", mib["servers"], "MiB", peer="FLARE's server tree (RSS)", peer_value=server),
        Measure(f"fl.edge_pss {label}", mib["edge"], "MiB", goal=120 if label == "8x1mb" else None),
        *(
            Measure(f"fl.cpu {label} {part}", seconds, "s of processor a round, its federation's beginning and end included")
            for part, seconds in cpu.items()
        ),
        Measure(f"fl.submit_to_round {label}", done.submit_to_round, "s", goal=1.0),
    ]
    return found


def _peers(clients: int, mb: float, rounds: int) -> dict[str, dict[str, Any]]:
    """A row of each peer that is there; who is absent is said."""
    drivers, found = os.environ.get("MEDMESH_BENCH_PEERS"), {}
    for peer, variable, script, most in (
        ("flare", "MEDMESH_BENCH_NVFLARE", "nvflare_bench.py", rounds),
        ("flower", "MEDMESH_BENCH_FLOWER", "flower_bench.py", 3),
    ):
        python = os.environ.get(variable)
        if not drivers or not python:
            print(f"{peer}: not measured, {variable} or MEDMESH_BENCH_PEERS is not set", file=sys.stderr)
            continue
        # FLARE's server listens on all interfaces: it gets a network of its own.
        alone = (str(Path(drivers) / "netns.sh"),) if peer == "flare" else ()
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "rows.jsonl"
            argv = (*alone, python, str(Path(drivers) / script), "--clients", str(clients), "--mb", f"{mb:g}", "--rounds", str(most))
            subprocess.run(argv, check=False, stdout=subprocess.DEVNULL, env={**os.environ, "FL_BENCH_OUT": str(out)}, timeout=300)
            if out.exists():
                found[peer] = last_row(out)
                print(peer, found[peer], file=sys.stderr)
    return found


async def _int8() -> Measure:
    """Bytes of an update with int8 against the same in float32."""
    async with field_of(2) as field:
        source = package(field.folder / "package", 4.0)
        whole = await field.federate(source, field.hospitals, 2)
        short = await field.federate(source, field.hospitals, 2, codec="int8")
        return Measure("fl.int8_bytes", short.bytes / whole.bytes, "of float32", goal=0.26)


async def _secagg(clients: int, mb: float, rounds: int) -> list[Measure]:
    """A round under secure aggregation over a plain one, in the same run: median over median, and by processor time. Hospitals' updates
    differ, or the plain round would upload one of them only."""
    label, threshold = f"{clients}x{mb:g}mb", 2 * clients // 3 + 1
    plans = {"plain": {}, "64": {"secure": {"threshold": threshold}}, "32": {"secure": {"threshold": threshold, "ring": 32, "bits": 12}}}
    took, spent = {}, {}
    async with field_of(clients) as field:
        source = package(field.folder / "package", mb, differ=True)
        await field.federate(source, field.hospitals, 2)
        for name, beside in plans.items():
            before = field.processor()["all"]
            took[name] = (await field.federate(source, field.hospitals, rounds, **beside)).median
            spent[name] = (field.processor()["all"] - before) / rounds
            print(f"secagg {label} {name}: {took[name]:.3f} s a round, {spent[name]:.2f} s of processor", file=sys.stderr)
        if mb == LARGE[1]:
            took["64_dropped"] = await _dropped(field, mb, rounds, threshold)
            print(f"secagg {label} 64, one dropped: {took['64_dropped']:.3f} s a round", file=sys.stderr)
    return [
        *(
            Measure(f"fl.secagg{ring} {label}", took[ring] / took["plain"], "of the plain round", goal=2.0)
            for ring in took
            if ring != "plain"
        ),
        *(
            Measure(f"fl.secagg{ring}_cpu {label}", spent[ring] / spent["plain"], "of the plain round's processor time")
            for ring in ("64", "32")
        ),
    ]


async def _dropped(field: Field, mb: float, rounds: int, threshold: int) -> float:
    """Seconds a round in which the last hospital fails a second after the others put masks in for it, which are opened then; so every
    round begins with keys, too."""
    last, seeds = field.hospitals[-1], [SEED * 1_000_003 + number for number in range(1, rounds + 1)]  # `round_seed`
    source = package(field.folder / "fails", mb, differ=True, fails=[hospital_seed(seed, last) for seed in seeds])
    beside = {"secure": {"threshold": threshold}, "min_participants": threshold}
    done = await field.federate(source, field.hospitals, rounds, **beside)
    if (dropped := await field.dropped_after_masking(done.federation, last)) != rounds:
        raise RuntimeError(f"it dropped out after others were masked with it in {dropped} of {rounds} rounds")
    return done.median


async def _kills() -> list[Measure]:
    """The coordinator is killed at random moments of a federation; how often that ended with the model of an undisturbed one."""
    dice, resumed = random.Random(20_267), []
    async with field_of(2) as field:
        source = package(field.folder / "package", 0.2, differ=True)
        calm = await field.federate(source, field.hospitals, KILLED_ROUNDS)
        running = asyncio.create_task(field.federate(source, field.hospitals, KILLED_ROUNDS))
        await until(lambda: _rounds(field, calm.federation), 120, 0.05)
        kills = 0
        while kills < KILLS and not running.done():
            await asyncio.sleep(dice.uniform(0.05, 0.6))
            while (victim := field.stage.run.processes.get("federation")) is None:
                await asyncio.sleep(0.02)
            os.kill(victim.pid, signal.SIGKILL)
            kills, began = kills + 1, monotonic()
            before = await _committed(field)  # now: what it committed in its last moment is no resumption
            while not running.done() and await _committed(field) <= before:
                await asyncio.sleep(0.02)
            resumed.append(monotonic() - began)
        hurt = await running
        twice = sum(_trained_twice(field, name, hurt.federation) for name in field.hospitals)
    print(f"{kills} kills, resumed after {[round(seconds, 2) for seconds in sorted(resumed)]}, trained twice: {twice}", file=sys.stderr)
    same = float(kills) if hurt.model == calm.model and not twice else 0.0
    return [
        Measure("fl.kill20", same, "of 20 kills", goal=float(KILLS), better="more"),
        Measure("fl.kill20 resume", max(resumed), "s (the longest, to the next commit)", goal=3.0),
    ]


async def _committed(field: Field) -> int:
    found = await field.stage.sql("SELECT count(*) AS n FROM federation.rounds WHERE state = 'committed'")
    return int(found[0]["n"])


async def _rounds(field: Field, calm: str) -> bool:
    found = await field.stage.sql("SELECT count(*) AS n FROM federation.rounds WHERE state = 'committed' AND federation <> $1", calm)
    return int(found[0]["n"]) > 0


def _trained_twice(field: Field, hospital: str, federation: str) -> int:
    import sqlite3

    store = sqlite3.connect(f"file:{field.folder / hospital / 'store.db'}?mode=ro", uri=True)
    try:
        return int(store.execute("SELECT count(*) FROM tasks WHERE federation = ? AND trained > 1", (federation,)).fetchone()[0])
    finally:
        store.close()
