"""`python -m medmesh.service.nursery FD`: a process that has imported what every service imports, and forks a service when asked.

Ten services on one machine then share the memory of their libraries and start without importing them again. Nothing runs here: no
thread, no event loop, no connection, so that a fork is a clean beginning. The socket FD (SOCK_SEQPACKET) carries

    <- {"argv": [...], "cwd": "...", "env": {...}} and the descriptor of the log
    -> {"pid": 7}                       it was started
    -> {"pid": 7, "code": -9}           it ended: its exit code, or the negative number of the signal

When the other end closes, this process and (by the kernel's signal) all that it started end.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import random
import select
import signal
import socket
import sys
import traceback
from importlib import import_module
from typing import Any, NoReturn

SHARED = ("medmesh.service.__main__", "fastapi", "uvicorn", "httptools", "uvloop", "asyncpg", "minio", "sqlalchemy.dialects.postgresql")
_PR_SET_PDEATHSIG, _PR_SET_NAME = 1, 15


def preload() -> None:
    """Import it all, and tell the collector to leave it alone: what is not touched stays shared."""
    from medmesh.service.spec import services

    for name in SHARED:
        import_module(name)
    services()
    gc.collect()
    gc.freeze()


def serve(control: socket.socket) -> None:
    """Start and bury until the other end closes."""
    reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(writing)
    signal.signal(signal.SIGCHLD, lambda *_: None)  # only its byte in the pipe is wanted
    while True:
        ready = select.select([control.fileno(), reading], [], [])[0]
        if reading in ready:
            os.read(reading, 4096)
            for pid, code in _ended():
                control.send(json.dumps({"pid": pid, "code": code}).encode())
        if control.fileno() in ready:
            message, descriptors, _, _ = socket.recv_fds(control, 1 << 20, 1)
            if not message:
                return
            nursery, pid = os.getpid(), os.fork()
            if not pid:
                signal.set_wakeup_fd(-1)
                for descriptor in (reading, writing):
                    os.close(descriptor)
                control.close()
                _become(json.loads(message), descriptors[0], nursery)
            os.close(descriptors[0])
            control.send(json.dumps({"pid": pid}).encode())


def _ended() -> list[tuple[int, int]]:
    """(pid, exit code) of each child that is over."""
    ended: list[tuple[int, int]] = []
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if not pid:
            return ended
        ended.append((pid, os.waitstatus_to_exitcode(status)))


def _become(wanted: dict[str, Any], log: int, nursery: int) -> NoReturn:
    """From a copy of the nursery to a service of its own session, as if it had been started by its own interpreter."""
    code = 1
    try:
        libc = ctypes.CDLL(None)
        libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != nursery:  # it died before the kernel knew our wish
            os._exit(1)
        os.setsid()
        os.umask(0o077)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(source, target)
        os.close(nothing)
        os.close(log)
        os.chdir(wanted["cwd"])
        os.environ.clear()
        os.environ.update(wanted["env"])
        sys.argv = wanted["argv"]
        libc.prctl(_PR_SET_NAME, f"medmesh {sys.argv[1]}".encode()[:15], 0, 0, 0)
        random.seed()
        from medmesh.service.__main__ import main

        code = main()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # not the nursery's own end


if __name__ == "__main__":
    connection = socket.socket(fileno=int(sys.argv[1]))
    preload()
    serve(connection)
