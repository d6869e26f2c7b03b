"""What a simulation says is what would happen: the same plan on real servers, with real nodes, ends in the same bytes."""

from __future__ import annotations

import asyncio
import base64
import csv
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from tests.hospitals import completed, consented, enrolled, federation, pacs
from tests.packages import TINY, tiny
from tests.world import World, small_world

from medmesh.cli.federation import federation as command
from medmesh.contracts.audit import AuditBatch, Receipts
from medmesh.contracts.federation import FederationView
from medmesh.embedded.ports import Ports
from medmesh.embedded.testing import RunningServers
from medmesh.errors import Problem
from medmesh.learning import isolation
from medmesh.learning.package import pack
from medmesh.simulation.data import Sample, read, share
from medmesh.simulation.hospital import GATHERED
from medmesh.simulation.log import Log
from medmesh.simulation.run import simulate
from medmesh_edge import intake, samples
from medmesh_edge.node import running
from medmesh_edge.patients import images, opened
from medmesh_edge.ports import Site, site
from medmesh_federation.service import SERVICE as FEDERATION

pytestmark = [pytest.mark.slow, pytest.mark.skipif(isolation.capability().kind == "none", reason="nothing isolates here")]
HOSPITALS = ("huashan", "renji", "tongji")
RULES: dict[str, Any] = {
    "rounds": 3,
    "local_steps": 20,
    "batch_size": 8,
    "learning_rate": "0.3",
    "seed": 11,
    "min_participants": 3,
    "baseline": True,
    "algorithm": "fedadam",
    "codec": "topk",  # the others round by a secret of each hospital, too
    "small_cell": 0,  # what rounds counts is a secret of each hospital, and these have others
}


@pytest.fixture
async def world(servers: RunningServers, private: Path, ports: Ports) -> AsyncIterator[World]:
    async with small_world(servers, private, ports, FEDERATION, settings={"federation": {"tick_seconds": 0.1}}) as made:
        yield made


async def held(opened_site: Site) -> list[Sample]:
    """What a node took in, in its own order."""
    schema, found = pack(TINY).manifest.data, []
    for testing in (False, True):
        for row in await samples.rows(opened_site, schema, held_out=testing):
            data = b"".join(images(opened_site, opened(opened_site, row.patient, row.key)).open(row.object))
            found.append(Sample(data, row.label, row.patient, testing, schema.modality))
    return found


async def test_the_same_plan_simulated_and_on_real_servers_ends_in_the_same_model(world: World) -> None:
    admin = await world.admin()
    researcher, approver = await world.user(admin, "li", "researcher"), await world.user(admin, "wu", "approver")
    shares = {}
    async with AsyncExitStack() as stack:
        nodes = []
        for hospital in HOSPITALS:
            folder = await enrolled(world, admin, approver, hospital)
            async with site(folder) as opened_site:
                await intake.ingest(opened_site, pacs(world.p.folder, hospital), "brain")
                shares[hospital] = await held(opened_site)
            nodes.append(await stack.enter_async_context(running(folder)))
        made = await federation(world, researcher, approver, HOSPITALS, **RULES)
        await consented(nodes, made)
        real = await completed(researcher, made)
    target = world.p.folder / "simulated"
    done = await simulate(TINY, shares, target, **RULES)
    assert (done.view.state, done.view.failure) == ("completed", None)
    assert real.model is not None
    assert done.view.model == real.model
    assert [round_.model for round_ in done.view.rounds] == [round_.model for round_ in real.rounds]
    assert [[(a.hospital, a.samples, a.bytes, a.metrics) for a in r.answers] for r in done.view.rounds] == [
        [(a.hospital, a.samples, a.bytes, a.metrics) for a in r.answers] for r in real.rounds
    ]
    assert sorted(done.view.evaluation, key=str) == sorted(real.evaluation, key=str)
    assert target.stat().st_size == real.model.bytes


def pictures(folder: Path, count: int = 80) -> Path:
    """Bright ones are tumours."""
    folder.mkdir()
    dice = np.random.default_rng(1)
    with (folder / "labels.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("file", "label", "patient"))
        for n in range(count):
            Image.fromarray((dice.integers(0, 90, (16, 16)) + 130 * (n % 2)).astype(np.uint8)).save(folder / f"{n}.png")
            rows.writerow((f"{n}.png", ("none", "tumour")[n % 2], f"p{n // 2}"))
    return folder


def simulated(data: Path, out: Path, *further: str, package: Path = TINY) -> Any:
    options = ["--rounds", "2", "--steps", "10", "--learning-rate", "0.5", "--out", str(out), *further]
    return CliRunner().invoke(command, ["simulate", str(package), "--data", str(data), *options])


def test_the_command_deals_out_trains_and_writes_what_a_federation_would(private: Path) -> None:
    data, out = pictures(private / "data"), private / "out"
    done = simulated(data, out, "--hospitals", "5", "--baseline")
    assert done.exit_code == 0, done.output
    view = FederationView.model_validate_json((private / "out.json").read_bytes())
    assert [answer.hospital for answer in view.rounds[0].answers] == ["h0", "h1", "h2", "h3", "h4"]
    assert view.model is not None
    assert f"model {view.model.sha256}" in done.output
    assert "would refuse this" in done.stderr and "min_samples" in done.stderr, "of sixteen pictures, at five hospitals"
    assert "min_batch" not in done.stderr and "min_seen" not in done.stderr
    assert (private / "out.png").stat().st_size > 10_000
    assert len((private / "out.csv").read_text().splitlines()) == 1 + 5 * 4
    again = simulated(data, private / "again", "--hospitals", "5", "--workers", "1")
    assert f"model {view.model.sha256}" in again.output, "the same data, seed and plan: the same bytes, with or without a baseline"


def test_what_a_hospital_would_refuse_is_simulated_and_said(private: Path) -> None:
    few = ("--hospitals", "2", "--min-participants", "2", "--steps", "1", "--batch-size", "1")
    done = simulated(pictures(private / "data"), private / "out", *few)
    assert done.exit_code == 0, done.output
    said = [line for line in done.stderr.splitlines() if "would refuse this" in line]
    assert {line.split(": ")[1] for line in said} >= {"min_hospitals", "min_batch", "min_steps", "min_seen"}


@pytest.mark.parametrize(
    "further",
    [
        ("--secure", "3"),
        ("--pace", "3"),
        ("--privacy", "hospital", "--noise", "20", "--epsilon", "10"),
        ("--evaluate-every", "1", "--stop-after", "1"),
        ("--algorithm", "scaffold"),
        ("--codec", "int8"),
    ],
    ids=lambda further: further[0],
)
def test_whatever_a_plan_can_have_is_simulated(private: Path, further: tuple[str, ...]) -> None:
    done = simulated(pictures(private / "data"), private / "out", "--hospitals", "4", *further)
    assert done.exit_code == 0, done.output
    assert FederationView.model_validate_json((private / "out.json").read_bytes()).state == "completed"


def test_counts_are_told_as_coarsely_as_real_hospitals_tell_them_unless_asked_otherwise(private: Path) -> None:
    data, found = pictures(private / "data", 400), []
    for further in ((), ("--small-cell", "0")):
        assert simulated(data, private / "out", "--hospitals", "3", "--baseline", *further).exit_code == 0
        view = FederationView.model_validate_json((private / "out.json").read_bytes())
        found.append([count for one in view.evaluation for row in one.counts for count in row])
    coarse, exact = found
    assert sum(coarse) > 0 and all(count % 5 == 0 for count in coarse)
    assert any(count % 5 for count in exact)


def test_what_contradicts_is_said(private: Path) -> None:
    data = pictures(private / "data", 8)
    for further, code in (
        (("--hospitals", "30"), "simulation.partition"),
        (("--secure", "1"), "plan.bound"),
        (("--workers", "-1"), "simulation.workers"),
    ):
        done = simulated(data, private / "out", *further)
        assert done.exit_code == 1
        assert getattr(done.exception, "code", None) == code, done.output
    (private / "nothing").mkdir()
    assert getattr(simulated(private / "nothing", private / "out").exception, "code", None) == "simulation.data"


def test_one_that_cannot_go_on_says_so_and_with_fewer_it_does(private: Path) -> None:
    """A hospital whose only patients are held out has nothing to train on."""
    data = pictures(private / "data", 40)
    rows = (data / "labels.csv").read_text().splitlines()
    (private / "places").mkdir()
    for name, part, split in (("a", rows[1:15], "train"), ("b", rows[15:29], "train"), ("c", rows[29:], "test")):
        (place := private / "places" / name).mkdir()
        (place / "labels.csv").write_text("\n".join(["file,label,patient,split", *(f"{row},{split}" for row in part)]))
        for row in part:
            (data / row.split(",")[0]).rename(place / row.split(",")[0])
    done = simulated(private / "places", private / "out", "--partition", "natural")
    assert "failed: federation.quorum" in done.output
    done = simulated(private / "places", private / "out", "--partition", "natural", "--min-participants", "2")
    assert "round 2 train: 2 hospitals" in done.output


def test_when_nobody_can_go_on_the_reason_is_told(private: Path) -> None:
    tiny(private, "\ndef train(model, samples, schedule, on_step):\n    raise ValueError\n")
    done = simulated(pictures(private / "data"), private / "out", "--hospitals", "3", package=private / "package-source")
    assert getattr(done.exception, "code", None) == "simulation.stuck", done.output
    assert "h0: worker.failed, h1: worker.failed" in str(done.exception)


def children(pid: int) -> set[int]:
    """Processes that this one started and that still run."""
    return {int(one) for task in Path(f"/proc/{pid}/task").iterdir() for one in (task / "children").read_text().split()}


async def test_at_the_end_every_record_of_every_hospital_was_handed_in(private: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    take, left = Log.take, Counter[tuple[str, str]]()

    def seen(log: Log, batch: AuditBatch) -> Receipts:
        left.update((batch.emitter, json.loads(base64.b64decode(one.body))["sub"]) for one in batch.records)
        return take(log, batch)

    monkeypatch.setattr(Log, "take", seen)
    shares = share(read(pictures(private / "data", 400), pack(TINY).manifest.data, 1), 20, "iid", seed=1)
    done = await simulate(TINY, shares, private / "out", workers=1, rounds=GATHERED + 2, local_steps=5, batch_size=4, learning_rate="0.1")
    assert done.view.state == "completed", done.view.failure
    of_hospitals = {key: count for key, count in left.items() if key[0] != "federation"}
    uploads = {emitter: count for (emitter, verb), count in of_hospitals.items() if verb == "federation.upload"}
    assert uploads == {f"edge:{name}": GATHERED + 2 for name in shares}
    assert done.records >= sum(of_hospitals.values())


@pytest.mark.parametrize(("asked", "processes"), [(1, 1), (3, 3), (9, 4), (0, 2)])
async def test_as_many_processes_train_as_are_asked_for_and_no_more_than_there_are_hospitals(
    private: Path, monkeypatch: pytest.MonkeyPatch, asked: int, processes: int
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    before, seen = children(os.getpid()), set[int]()

    def count(kind: str, fact: dict[str, Any]) -> None:
        if kind.endswith(".round.committed.v1"):
            seen.update(children(os.getpid()) - before)

    shares = share(read(pictures(private / "data"), pack(TINY).manifest.data, 1), 4, "iid", seed=1)
    done = await simulate(
        TINY, shares, private / "out", news=count, workers=asked, rounds=1, local_steps=5, batch_size=4, learning_rate="0.1"
    )
    assert done.view.state == "completed", done.view.failure
    assert len(seen) == processes


async def test_a_process_of_hospitals_that_is_killed_ends_the_simulation_with_the_reason(private: Path) -> None:
    before, below = children(os.getpid()), set[int]()

    def kill(kind: str, fact: dict[str, Any]) -> None:
        if kind.endswith(".round.committed.v1") and not below:
            one = min(children(os.getpid()) - before)
            below.update(children(one))
            os.kill(one, signal.SIGKILL)

    data = pictures(private / "data")
    shares = share(read(data, pack(TINY).manifest.data, 1), 4, "iid", seed=1)
    with pytest.raises(Problem) as caught:
        await simulate(TINY, shares, private / "out", news=kill, workers=2, rounds=50, local_steps=5, batch_size=4, learning_rate="0.1")
    assert caught.value.code == "simulation.killed"
    assert caught.value.params["hospital"] in shares
    assert below, "it had a worker"
    assert children(os.getpid()) == before
    async with asyncio.timeout(30):
        while any(Path(f"/proc/{one}/exe").exists() for one in below):  # the worker's pipe is closed
            await asyncio.sleep(0.05)


def test_interrupted_it_ends_and_leaves_nothing(private: Path) -> None:
    data, room = pictures(private / "data"), private / "room"
    room.mkdir()
    options = ["--data", str(data), "--hospitals", "4", "--rounds", "500", "--steps", "5", "--learning-rate", "0.5", "--out", "out"]
    line = [str(Path(sys.executable).with_name("medmesh")), "federation", "simulate", str(TINY), *options]
    environment = {**os.environ, "TMPDIR": str(room), "PYTHONUNBUFFERED": "1"}

    def heeding() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs this in the background had it ignored

    with subprocess.Popen(
        line, stdout=subprocess.PIPE, text=True, cwd=private, env=environment, start_new_session=True, preexec_fn=heeding
    ) as process:
        assert process.stdout is not None
        assert any(said.startswith("round 2 ") for said in process.stdout)
        made = children(process.pid)
        assert made
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(60) != 0
    assert not any(Path(f"/proc/{one}/exe").exists() for one in made)
    assert list(room.iterdir()) == []
