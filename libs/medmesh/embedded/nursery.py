"""The supervisor's side of `medmesh.service.nursery`: services as forks of one process that has imported what they share."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from dataclasses import dataclass, field
from pathlib import Path

from medmesh.embedded.process import Command

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
"""Read by libraries when they are loaded: it holds for the nursery and all its services."""


@dataclass(eq=False)
class Born:
    """A process that the nursery started; as `asyncio.subprocess.Process` as far as the supervisor looks."""

    pid: int
    returncode: int | None = None
    _over: asyncio.Event = field(default_factory=asyncio.Event)

    async def wait(self) -> int:
        """Its exit code when it is over."""
        await self._over.wait()
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, signum: int) -> None:
        """Nothing when it is over."""
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signum)

    def end(self, code: int) -> None:
        """It is over."""
        self.returncode = code
        self._over.set()


class Nursery:
    """Started with the first service, and again when it died; its services die with it, by the kernel's hand."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._process: asyncio.subprocess.Process | None = None
        self._control: socket.socket | None = None
        self._reader: asyncio.Task[None] | None = None
        self._asked: asyncio.Queue[asyncio.Future[Born]] = asyncio.Queue()
        self._born: dict[int, Born] = {}
        self._lock = asyncio.Lock()

    async def spawn(self, command: Command, output: int) -> Born:
        """Start a service; `output` is the descriptor of its log. Raises `OSError` when the nursery cannot."""
        async with self._lock:
            if self._control is None:
                await self._open()
            assert self._control is not None
            made: asyncio.Future[Born] = asyncio.get_running_loop().create_future()
            self._asked.put_nowait(made)
            document = {"argv": command.argv, "cwd": str(command.cwd), "env": command.environment()}
            socket.send_fds(self._control, [json.dumps(document).encode()], [output])
        return await made

    async def close(self) -> None:
        """End it; the services were ended before."""
        if self._control is not None:
            self._control.shutdown(socket.SHUT_RDWR)
        if self._reader is not None:
            await self._reader

    async def _open(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        # Through child.py like every child of ours: its own session, no environment but what is named, and it ends when we do.
        argv = (sys.executable, "-P", "-m", "medmesh.service.nursery", str(theirs.fileno()))
        command = Command(argv, env=ENVIRONMENT, orphaned=signal.SIGKILL)
        with theirs, open(self._log, "ab", opener=lambda path, flags: os.open(path, flags, 0o600)) as output:
            self._process = await asyncio.create_subprocess_exec(
                *command.wrapped(),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=command.environment(),
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        self._control, self._reader = ours, asyncio.create_task(self._listen(ours, self._process))

    async def _listen(self, control: socket.socket, process: asyncio.subprocess.Process) -> None:
        """Pass on what the nursery tells, until it is over; then nobody it started lives."""
        loop = asyncio.get_running_loop()
        with control:
            while message := await _received(loop, control):
                told = json.loads(message)
                if "code" in told:
                    self._born.pop(told["pid"]).end(told["code"])
                else:
                    born = self._born[told["pid"]] = Born(told["pid"])
                    self._asked.get_nowait().set_result(born)
        self._control = None
        await process.wait()
        for born in self._born.values():
            born.end(-signal.SIGKILL)
        self._born.clear()
        while not self._asked.empty():
            self._asked.get_nowait().set_exception(OSError("the nursery of services ended; see its log"))


async def _received(loop: asyncio.AbstractEventLoop, control: socket.socket) -> bytes:
    try:
        return await loop.sock_recv(control, 1 << 16)
    except OSError:
        return b""
