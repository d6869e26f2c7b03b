"""Chapter 2: the federation, and what is broken while it runs."""

from __future__ import annotations

import asyncio
import json
import os
import time
from datetime import UTC, datetime
from functools import partial
from typing import Any

from medmesh.client.federation import create_federation
from medmesh.contracts.federation import FederationView
from medmesh.demo.processes import Process, medmesh
from medmesh.demo.stage import BATCH, LEASE, MODEL, PACKAGE, RATE, ROUNDS, STEPS, Stage
from medmesh.embedded.run import running
from medmesh.errors import Problem
from medmesh.learning import metrics
from medmesh.learning.package import pack
from medmesh.pipelines import words


async def federate(stage: Stage) -> str:
    stage.say("a researcher creates a federation; hospitals read the plan and approve the code", "研究者创建联邦；医院阅读方案并批准代码")
    made = await create_federation(
        stage.people["li"],
        PACKAGE,
        name=MODEL,
        purpose="tell MRI slices with a tumour from those without",
        initiator="person:li@platform",
        hospitals=tuple(stage.nodes),
        accept_seconds=180,
        rounds=ROUNDS,
        local_steps=STEPS,
        batch_size=BATCH,
        learning_rate=RATE,
        seed=stage.seed,
        min_participants=3,
        round_deadline_seconds=150,
        lease_seconds=LEASE,
        baseline=True,
        small_cell=0,  # a public data set: its counts may be told as they are
        reviews=stage.reviews(PACKAGE),
    )
    federation = str(made["federation"])
    stated = pack(PACKAGE).manifest.images().pipeline
    assert stated is not None
    stage.summary["pipeline"] = {"name": stated.name, "hash": stated.hash, "steps": [words.step(one) for one in stated.steps]}
    stage.say(
        f"each hospital's node prepares its images by the pipeline {stated.name}, hash {stated.hash[:16]}",
        f"各院节点按处理流程 {stated.name}（哈希 {stated.hash[:16]}）处理影像",
    )

    async def invited(node: Process) -> bool:
        known = json.loads(await medmesh("edge", "federations", "--folder", str(node.folder)))
        return any(entry["federation"] == federation for entry in known)

    async def answer(node: Process) -> None:
        await stage.until(f"the invitation at {node.name}", partial(invited, node))
        await medmesh("edge", "show", "--folder", str(node.folder), federation)
        await medmesh("edge", "approve", "--folder", str(node.folder), federation)

    await asyncio.gather(*(answer(node) for node in stage.nodes.values()))
    body = {"action": "federation.start", "target": federation, "digest": made["plan_hash"]}
    await stage.people["li"].command("POST", "/v1/approvals", body)
    await stage.approve("federation.start")
    stage.happened("federation approved")
    await follow(stage, federation)
    return federation


async def look(stage: Stage, federation: str) -> FederationView | None:
    try:
        stage.view = await stage.people["li"].ask(f"/v1/federations/{federation}", FederationView)
    except Problem:
        return None  # the coordinator is being killed: it answers again in a moment
    return stage.view


async def follow(stage: Stage, federation: str) -> None:
    """Watch the rounds, and break what the checker chose."""
    stage.say(
        f"rounds run; the checker kills {stage.choice['victim']} in round {stage.choice['victim_round']} and the coordinator in "
        f"round {stage.choice['coordinator_round']}",
        f"训练开始；检查器将在第 {stage.choice['victim_round']} 轮终止 {stage.choice['victim']}，"
        f"在第 {stage.choice['coordinator_round']} 轮终止协调器",
    )
    told, killed_at, pid_before = 0, 0.0, 0
    victim = stage.nodes[stage.choice["victim"]]
    durations: list[float] = []
    dropped = 0  # the round it was dropped from
    rejoined = False
    end = time.monotonic() + 900
    while time.monotonic() < end:
        view = await look(stage, federation)
        if view is None:
            await asyncio.sleep(0.2)
            continue
        if view.state in ("failed", "cancelled"):
            raise Problem("demo.never", what=f"the federation ended as {view.state} ({view.failure})", seconds=0)
        for done in view.rounds:
            if done.round > told and done.state == "committed":
                told = done.round
                durations.append((done.closed or done.opened).timestamp() - done.opened.timestamp())
                parties = len(done.answers)
                stage.happened(f"round {told} {done.kind}", parties=parties)
                stage.say(f"  round {told} {done.kind}: {parties} hospitals", f"  第 {told} 轮 {done.kind}：{parties} 家医院")
        current = view.rounds[-1] if view.rounds else None
        if current is not None and current.state == "open":
            age = (datetime.now(UTC) - current.opened).total_seconds()
            # The first round is longer than the others: workers start. One that ended too soon for its moment passes it on.
            moment = stage.choice["fraction"] * min(durations, default=3.0)
            late = current.round > stage.choice["victim_round"]
            if not killed_at and (late or (current.round == stage.choice["victim_round"] and age >= moment)):
                victim.kill()
                killed_at = time.monotonic()
                stage.happened(f"{victim.name} killed", round=current.round)
            if current.round == stage.choice["coordinator_round"] and not pid_before:
                pid_before = kill_coordinator(stage)
                stage.happened("coordinator killed", round=current.round)
        state = {p.hospital: p for p in view.participants}
        if killed_at and not dropped and state[victim.name].drops:
            dropped = view.rounds[-1].round
            stage.happened(f"{victim.name} left, the others go on")
        if killed_at and victim.process is None and (dropped or time.monotonic() - killed_at > 2.5 * LEASE):
            victim.start()
            stage.happened(f"{victim.name} started again")
        after = [r for r in view.rounds if dropped and r.round > dropped and r.state == "committed"]
        if not rejoined and any(a.hospital == victim.name and not a.late for r in after for a in r.answers):
            rejoined = True
            stage.happened(f"{victim.name} rejoined")
        if view.state == "completed":
            break
        await asyncio.sleep(0.2)
    run = running(stage.data)
    assert stage.view is not None
    assert run is not None
    if stage.view.state != "completed":
        raise Problem("demo.never", what="the federation's end", seconds=900)
    stage.happened("federation completed")
    stage.summary |= {
        "rounds": sum(r.state == "committed" and r.kind == "train" for r in stage.view.rounds),
        "hospital_rejoined": rejoined,
        "coordinator_resumed": bool(pid_before) and run.processes["federation"].pid != pid_before,
    }
    accuracies(stage)


def kill_coordinator(stage: Stage) -> int:
    run = running(stage.data)
    assert run is not None
    pid = run.processes["federation"].pid
    os.kill(pid, 9)
    return pid


def accuracies(stage: Stage) -> None:
    """Cross-site evaluation: every model on the union of all held-out samples, from counts alone."""
    assert stage.view is not None
    union: dict[str, Any] = {}
    for entry in stage.view.evaluation:
        union.setdefault(entry.name, []).append(entry.counts)
    matrices = {name: metrics.add(counts) for name, counts in union.items()}
    if missing := sorted(set(stage.nodes) - set(matrices)):
        raise Problem("demo.never", what=f"a model that {', '.join(missing)} trained alone", seconds=0)
    federated = matrices["federated"]
    for hospital in stage.summary["hospitals"]:
        local = matrices[hospital["name"]]
        hospital |= {
            "local_acc": metrics.balanced_accuracy(local),
            "local_interval": metrics.interval(local),
            "federated_acc": metrics.balanced_accuracy(federated),
            "federated_interval": metrics.interval(federated),
        }
    stage.summary["held_out"] = int(federated.sum())
