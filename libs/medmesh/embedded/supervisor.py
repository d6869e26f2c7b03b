"""Keeps processes running: starts them when what they need is ready, starts again what dies, stops them in reverse order.

When this process itself is killed the kernel ends its children; what even that leaves is ended at the next start.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from medmesh.embedded import files
from medmesh.embedded.nursery import Born, Nursery
from medmesh.embedded.ports import Ports
from medmesh.embedded.process import Command, Server
from medmesh.embedded.run import Lock, Run, Running, end
from medmesh.errors import Problem
from medmesh.telemetry.logs import log

_FIRST_DELAY, _LONGEST_DELAY, _HEALTHY_AFTER = 0.2, 10.0, 30.0
_LONGEST_AFTER_READY = 0.5
_ATTEMPTS = 3
_LOG_BYTES, _LOG_CHECK_SECONDS = 16 * 2**20, 10.0


class Supervisor:
    """One data folder and its processes: `async with Supervisor(folder) as supervisor: await supervisor.start(server)`."""

    def __init__(self, folder: Path, *, ready_seconds: float = 60.0) -> None:
        self.folder = folder.absolute()
        self._ready_seconds = ready_seconds
        self._children: dict[str, _Child] = {}
        self.ports: Ports
        self.run: Run

    async def __aenter__(self) -> Self:
        """Raises `Problem`: `embedded.already_running`, or `embedded.folder_unusable`."""
        try:
            # Passable, because the account of the database lives below; what is private inside says so itself.
            files.folder(self.folder, 0o711)
            self._logs = files.folder(self.folder / "logs")
            self._lock = Lock(self.folder)
        except OSError as error:
            raise Problem("embedded.folder_unusable", folder=self.folder, reason=error.strerror) from None
        before = Run.read(self.folder)
        for process in reversed(before.processes.values() if before else ()):
            await end(process, grace=5.0)
        self.ports = Ports(self.folder / "ports.json")
        self.run = Run(supervisor=Running.of(os.getpid()), paths={"logs": self._logs})
        self.run.write(self.folder)
        self._nursery = Nursery(self._logs / "nursery.log")
        self._rotation = asyncio.create_task(self._rotate())
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.stop()

    async def start(self, *servers: Server) -> None:
        """Start these at once and return when all are ready; call again for what needs them.

        Raises `Problem` `embedded.start_failed` when one died or was not ready in time at each of three attempts, or the `Problem`
        of its `command()`.
        """
        children = [_Child(server, self._logs / f"{server.name}.log", self._ready_seconds, self._note, self._nursery) for server in servers]
        for child in children:
            self._children[child.server.name] = child
            child.begin()
        outcomes = await asyncio.gather(*(child.first_ready for child in children), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    def send(self, name: str, signum: signal.Signals) -> None:
        """Give the process `name` a signal; nothing when it is between two lives."""
        self._children[name].send(signum)

    def publish(
        self, *, urls: Mapping[str, str] | None = None, paths: Mapping[str, Path] | None = None, ports: Mapping[str, int] | None = None
    ) -> None:
        """Add to `run.json`. Give no secrets: name the files that hold them."""
        self.run.urls.update(urls or {})
        self.run.paths.update(paths or {})
        self.run.ports.update({**self.ports.taken, **(ports or {})})
        self.run.write(self.folder)

    async def stop(self, *names: str) -> None:
        """Stop these, or everything, the last started first, each with its own signal and patience."""
        for name in reversed(names or tuple(self._children)):
            await self._children.pop(name).end()
        if not names:
            await self._nursery.close()
            self._rotation.cancel()
            (self.folder / "run.json").unlink(missing_ok=True)
            self.ports.close()
            self._lock.close()

    def _note(self, name: str, process: Running | None) -> None:
        if process:
            self.run.processes[name] = process
        else:
            self.run.processes.pop(name, None)
        self.run.write(self.folder)

    async def _rotate(self) -> None:
        while True:
            await asyncio.sleep(_LOG_CHECK_SECONDS)
            for child in self._children.values():
                await asyncio.to_thread(rotate, child.log, _LOG_BYTES)


class _Child:
    """One server through all its lives."""

    def __init__(
        self, server: Server, log_file: Path, ready_seconds: float, note: Callable[[str, Running | None], None], nursery: Nursery
    ) -> None:
        self.server = server
        self.log = log_file
        self.first_ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ready_seconds = ready_seconds
        self._note = note
        self._nursery = nursery
        self._stopping = asyncio.Event()
        self._process: asyncio.subprocess.Process | Born | None = None
        self._task: asyncio.Task[None] | None = None
        self._restarts = 0
        self._was_ready = False

    def begin(self) -> None:
        self._task = asyncio.create_task(self._keep())

    def send(self, signum: signal.Signals) -> None:
        if self._process and self._process.returncode is None:
            self._process.send_signal(signum)

    async def end(self) -> None:
        self._stopping.set()
        if self._task:
            await self._task

    async def _keep(self) -> None:
        clock, delay = asyncio.get_running_loop().time, 0.0
        while not self._stopping.is_set():
            began = clock()
            try:
                reason = await self._live()
            except Problem as problem:
                if self._fail(problem):
                    return
                reason = problem.code
            except OSError as error:
                reason = error.strerror or type(error).__name__
            except BaseException as error:  # a mistake of ours: whoever waits must hear of it, not wait for ever
                self._fail(error)
                raise
            if self._stopping.is_set():
                break
            log("server.died", server=self.server.name, reason=reason)
            self._restarts += 1
            if self._restarts >= _ATTEMPTS and self._fail(
                Problem("embedded.start_failed", server=self.server.name, reason=f"{reason}: {last_line(self.log)}", log=self.log)
            ):
                return
            delay = pause(delay, was_ready=self._was_ready, lived=clock() - began)
            await _either(self._stopping.wait(), asyncio.sleep(delay))
        self._fail(asyncio.CancelledError())

    def _fail(self, error: BaseException) -> bool:
        """Tell who waits for the first readiness; whether somebody did."""
        if self.first_ready.done():
            return False
        self.first_ready.set_exception(error)
        return True

    async def _live(self) -> str:
        """One life, from start to end; answers how it ended."""
        self._was_ready = False
        command = await asyncio.to_thread(self.server.command)
        with open(self.log, "ab", opener=lambda path, flags: os.open(path, flags, 0o600)) as output:
            process = await (self._nursery.spawn(command, output.fileno()) if command.nursery else _execute(command, output))
        self._process = process
        self._note(self.server.name, Running.of(process.pid, stop=int(command.stop), log=self.log, restarts=self._restarts))
        try:
            return await self._watch(process)
        finally:
            await _finish(process, command)
            self._note(self.server.name, None)

    async def _watch(self, process: asyncio.subprocess.Process | Born) -> str:
        died, stopping = asyncio.ensure_future(process.wait()), asyncio.ensure_future(self._stopping.wait())
        ready = asyncio.ensure_future(self.server.ready())
        try:
            await asyncio.wait({died, stopping, ready}, timeout=self._ready_seconds, return_when=asyncio.FIRST_COMPLETED)
            if not ready.done() and not died.done() and not stopping.done():
                return f"not ready after {self._ready_seconds:g} s"
            if ready.done() and not died.done():
                ready.result()
                self._was_ready = True
                log("server.ready", server=self.server.name, pid=process.pid)
                if not self.first_ready.done():
                    self.first_ready.set_result(None)
                await asyncio.wait({died, stopping}, return_when=asyncio.FIRST_COMPLETED)
            return f"ended with code {process.returncode}"
        finally:
            for task in (died, stopping, ready):
                task.cancel()
            await asyncio.gather(died, stopping, ready, return_exceptions=True)


async def _execute(command: Command, output: IO[bytes]) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *command.wrapped(),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        env=command.environment(),
        start_new_session=True,  # an interrupt from the terminal is for us alone: the order of stopping is ours
    )


async def _either(*waits: object) -> None:
    tasks = [asyncio.ensure_future(wait) for wait in waits]  # type: ignore[call-overload]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()


async def _finish(process: asyncio.subprocess.Process | Born, command: Command) -> None:
    """End the process with its own signal, or with its whole group by force when it takes too long."""
    if process.returncode is None:
        process.send_signal(command.stop)
        try:
            await asyncio.wait_for(process.wait(), command.grace)
        except TimeoutError:
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


def pause(before: float, *, was_ready: bool, lived: float) -> float:
    """Seconds until the next start, after the pause `before` the last one (0: there was none).

    One that was ready can start: waiting long mends nothing, and everybody else waits for it. One that never was is given time.
    """
    if before == 0 or lived > _HEALTHY_AFTER:
        return _FIRST_DELAY
    return min(before * 2, _LONGEST_AFTER_READY if was_ready else _LONGEST_DELAY)


def rotate(file: Path, limit: int) -> None:
    """When `file` is larger than `limit` bytes, keep its content as `.1` and empty it; the writer, which appends, goes on."""
    if file.exists() and file.stat().st_size > limit:
        old = file.with_name(f"{file.name}.1")
        shutil.copyfile(file, old)
        old.chmod(0o600)
        os.truncate(file, 0)


def last_line(file: Path) -> str:
    """The last line of a log that says something."""
    lines = [line for line in file.read_text(errors="replace")[-4096:].splitlines() if line.strip()] if file.exists() else []
    return lines[-1].strip() if lines else "it wrote nothing"
