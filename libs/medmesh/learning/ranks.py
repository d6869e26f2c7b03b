"""Training in several processes of one hospital, inside the worker's sandbox: as torchrun and msrun start them, by a supervisor of ours.

Each training is an attempt of its own: fresh processes, a free port, an id that nobody else joins by. The first process that ends badly
ends the attempt, and is named. The processes see one another over the loopback of the sandbox's own network, and nobody else.
"""

from __future__ import annotations

import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from medmesh.contracts.message import new_id
from medmesh.errors import Problem
from medmesh.learning.protocol import read_frame, write_frame

if TYPE_CHECKING:
    from medmesh.learning.worker import Session

HERE = "127.0.0.1"
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
    attempt = new_id()
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
    about = {"package": str(session.folder), "framework": session.framework, "rank": rank, "ranks": session.ranks}
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
    """Until every rank is done."""
    results: dict[int, dict[str, Any]] = {}
    wanted = {rank for rank in running if rank != SCHEDULER}
    while set(results) != wanted:
        rank, frame = said.get()
        match frame and frame["event"]:
            case "progress":
                if rank == 0:
                    tell(frame)
            case "done":
                assert frame is not None
                results[rank] = frame["result"]
            case "problem":
                assert frame is not None
                raise Problem.from_document(frame["document"])
            case "failed":
                assert frame is not None
                raise Problem("worker.rank", rank=rank, ranks=len(wanted), reason=f"{frame['error']} at {frame['at']}")
            case _ if rank in wanted - set(results):
                raise Problem("worker.rank", rank=rank, ranks=len(wanted), reason=_ending(running[rank].wait()))
            case _:
                continue
    return results[0]


def _ending(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"
