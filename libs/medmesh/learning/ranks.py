"""Training in several processes of one hospital, inside the worker's sandbox: as torchrun and msrun start them, by a supervisor of ours.

Each training is an attempt of its own: fresh processes, a free port, an id that nobody else joins by. The first process that ends badly
ends the attempt, and is named. The processes see one another over the loopback of the sandbox's own network, and nobody else.
"""

from __future__ import annotations

import os
import queue
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from medmesh.errors import Problem
from medmesh.learning.protocol import read_frame, write_frame

if TYPE_CHECKING:
    from medmesh.learning.worker import Session

HERE = "127.0.0.1"
GRACE_SECONDS = 2.0
LOST = ("RuntimeError", "DistBackendError", "DistNetworkError", "DistStoreError")
"""What PyTorch and MindSpore raise where another process is gone."""
SCHEDULER = -1
"""In place of a rank: the process through which MindSpore's find each other."""


def free_port() -> int:
    """A port that nobody listens at: in a network of one's own nobody takes it before the ranks do."""
    with socket.socket() as one:
        one.bind((HERE, 0))
        return int(one.getsockname()[1])


def environments(framework: str, ranks: int, port: int, attempt: str) -> dict[int, dict[str, str]]:
    """By rank, the variables by which frameworks find each other: MindSpore's as msrun sets them, all others' as torchrun does."""
    if framework == "mindspore":
        shared = {"MS_WORKER_NUM": str(ranks), "MS_SCHED_HOST": HERE, "MS_SCHED_PORT": str(port), "GLOG_v": "4"}
        workers = {n: {**shared, "MS_ROLE": "MS_WORKER", "MS_NODE_ID": str(n), "RANK_ID": str(n)} for n in range(ranks)}
        return {SCHEDULER: {**shared, "MS_ROLE": "MS_SCHED"}, **workers}
    shared = {
        "MASTER_ADDR": HERE,
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "GLOO_SOCKET_IFNAME": "lo",
        "TORCHELASTIC_RUN_ID": attempt,
    }
    return {n: {**shared, "RANK": str(n), "LOCAL_RANK": str(n)} for n in range(ranks)}


def together(session: Session, call: Mapping[str, Any], tell: Any) -> dict[str, Any]:
    """Train in `session.ranks` processes; answers what the first of them does. Raises `Problem` (`package.not_parallel`, `worker.rank`)."""
    if hasattr(session.module, "train") or not getattr(session.adapter, "parallel", False):
        raise Problem("package.not_parallel", framework=session.framework)
    if call.get("private"):
        raise Problem("privacy.package", reason="gradients are clipped by patient in one process: worker_processes in edge.json")
    if call["batch_size"] < session.ranks:
        raise Problem("worker.ranks_few", batch=call["batch_size"], ranks=session.ranks)
    attempt = secrets.token_hex(16)
    found = environments(session.framework, session.ranks, free_port(), attempt)
    running = {rank: _start(session, call, rank, variables) for rank, variables in found.items()}
    said: queue.Queue[tuple[int, dict[str, Any] | None]] = queue.Queue()
    for rank, process in running.items():
        threading.Thread(target=_listen, args=(rank, process.stdout, said), daemon=True).start()
    try:
        return _follow(running, said, tell)
    finally:
        for process in running.values():
            process.kill()
            process.wait()


def _start(session: Session, call: Mapping[str, Any], rank: int, variables: Mapping[str, str]) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "medmesh.learning.rank"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, **variables},
    )
    assert process.stdin is not None
    about = {"package": str(session.folder), "framework": session.framework, "told": session.told, "rank": rank, "ranks": session.ranks}
    write_frame(cast(BinaryIO, process.stdin), {**call, **about})
    return process


def _listen(rank: int, stream: Any, said: queue.Queue[tuple[int, dict[str, Any] | None]]) -> None:
    """Pass on what a process says; None at its end."""
    try:
        while (frame := read_frame(stream)) is not None:
            said.put((rank, frame))
    except ValueError:
        pass
    said.put((rank, None))


def _follow(
    running: Mapping[int, subprocess.Popen[bytes]], said: queue.Queue[tuple[int, dict[str, Any] | None]], tell: Any
) -> dict[str, Any]:
    """Until every rank is done, or one is not."""
    results: dict[int, dict[str, Any]] = {}
    wanted = {rank for rank in running if rank != SCHEDULER}
    while set(results) != wanted:
        rank, frame = said.get()
        if frame is None and rank not in wanted - set(results):
            continue
        match frame and frame["event"]:
            case "progress":
                if rank == 0 and frame is not None:
                    tell(frame)
            case "done":
                assert frame is not None
                results[rank] = frame["result"]
            case _:
                raise _blame(running, said, [(rank, frame)], len(wanted))
    return {**results[0], "processes": len(results)}


def _blame(
    running: Mapping[int, subprocess.Popen[bytes]],
    said: queue.Queue[tuple[int, dict[str, Any] | None]],
    heard: list[tuple[int, dict[str, Any] | None]],
    ranks: int,
) -> Problem:
    """Whose fault it was. The others fail too, because they lose it, and may be heard first: so a little is waited for, and one that ended
    without a word, or said what was wrong, comes before those that lost a connection."""
    end = time.monotonic() + GRACE_SECONDS
    with suppress(queue.Empty):
        while (left := end - time.monotonic()) > 0:
            heard.append(said.get(timeout=left))
    told = {rank for rank, frame in heard if frame is not None and frame["event"] != "progress"}
    for rank, frame in heard:
        if frame is None and rank not in told and rank != SCHEDULER:
            return Problem("worker.rank", rank=rank, ranks=ranks, reason=_ending(running[rank].wait()))
    failed = [(rank, frame) for rank, frame in heard if frame is not None and frame["event"] in ("problem", "failed")]
    rank, frame = min(failed, key=lambda one: one[1].get("error") in LOST)
    if frame["event"] == "problem":
        return Problem.from_document(frame["document"])
    return Problem("worker.rank", rank=rank, ranks=ranks, reason=f"{frame['error']} at {frame['at']}")


def _ending(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
