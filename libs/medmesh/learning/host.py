"""The host's side of a worker: starts it in its sandbox, speaks to it, and ends it when it crashes, loops or goes silent."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import medmesh
from medmesh.errors import Problem
from medmesh.learning import isolation
from medmesh.learning.package import Package
from medmesh.learning.protocol import MAX_FRAME, parse_frame
from medmesh.security.residue import wipe

Progress = Callable[[int, int, float], None]
_ELSEWHERE = frozenset(("client", "request", "bus", "query", "security", "federation"))
"""Families of problems that nobody meets inside a sandbox."""


LIBRARY = Path(medmesh.__path__[0]).parent
"""Where medmesh itself lies: an editable install is outside the interpreter's own folders."""
_Stamp = tuple[int, ...]
TICK_NS = 20_000_000
"""More than a tick of the clock by which file systems stamp: 10 ms at most, before Linux 6.13 also between two changes of one file."""


def _stamped(found: os.stat_result) -> _Stamp:
    # The time of change is the kernel's own: whoever writes to a file, or renames or links it, alters it.
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _stamp(path: Path | str) -> _Stamp:
    try:
        return _stamped(os.lstat(path))
    except FileNotFoundError:
        return ()


def _fresh(folder: int, name: str) -> int:
    """A new file in a folder."""
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder)
    made = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644, dir_fd=folder)
    os.fchmod(made, 0o644)
    return made


def _untouched(folder: int, name: str, stamp: _Stamp) -> int | None:
    """The file of this stamp, open to be written over; None where it is another by now, or was written to, renamed or linked."""
    if not stamp:
        return None
    try:  # not waiting: what was planted in its place may be a pipe
        found = os.open(name, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    except OSError:
        return None
    if _stamped(os.fstat(found)) == stamp:
        return found
    os.close(found)
    return None


def _silent(step: int, steps: int, loss: float) -> None:
    return None


@dataclass
class _Processor:
    """Seconds of CPU: what an operation may use, at which the kernel ends the process, what it says that it used, and until where the
    operation that is under way may go on. It may lie: then the kernel ends it, or the host does, sooner."""

    limit: int
    most: int
    spent: int = 0
    until: int = 0

    def told(self, spent: Any) -> None:
        if type(spent) is int:  # from code we do not trust
            self.spent = max(self.spent, min(spent, self.most))

    def left(self) -> int:
        return max(1, self.until - self.spent)


class Worker:
    """A running worker for `framework`; `folder` is the one place it may write, and where inputs are handed in."""

    def __init__(self, process: asyncio.subprocess.Process, folder: Path, silence: float, framework: str, limits: isolation.Limits) -> None:
        self._process = process
        self.folder = folder
        self.framework = framework
        self._silence = silence
        self._memory = limits.memory_bytes
        self._processor = _Processor(limits.cpu_seconds, limits.cpu_seconds * limits.operations, until=limits.cpu_seconds)
        self._busy = asyncio.Lock()
        self._given: dict[str, tuple[_Stamp, _Stamp]] = {}
        self._made: dict[str, _Stamp] = {}

    @property
    def pid(self) -> int:
        """Of its outermost process."""
        return self._process.pid

    def begin(self) -> bool:
        """Begin another operation of several calls, which together may use the processor time of one. False where the process has used
        so much that the kernel would end it before: another one must do it."""
        processor = self._processor
        if processor.spent + processor.limit > processor.most:
            return False
        processor.until = processor.spent + processor.limit
        return True

    def within(self, name: str) -> Worker:
        """The same process with a folder of its own in this one's, for one of several who use it in turn."""
        other, owner = copy(self), self.folder.stat()
        other.folder = self.folder / name
        other.folder.mkdir(mode=0o700, exist_ok=True)
        if owner.st_uid != os.geteuid():  # the account of its own that the process has
            os.chown(other.folder, owner.st_uid, owner.st_gid)
        return other

    def give(self, source: Path, name: str, *, over: bool = False) -> str:
        """Copy a file into the worker's folder, readable for its account; answers the path to hand over.

        The package runs already and may have planted links there: the copy is a fresh file, and nothing is followed. One that neither it
        nor we have touched since, of a file that is the same, is not made again. `over`: of another file it may be written over, as nobody
        reads the one before any more; its pages need not be asked for anew.
        """
        place = f"{self.folder}/{name}"
        given = self._given.get(place)
        if given is not None and given == (_stamp(source), _stamp(place)):
            return place
        folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            descriptor = _untouched(folder, name, self._made.get(place, ())) if over else None
            with os.fdopen(_fresh(folder, name) if descriptor is None else descriptor, "wb") as target, source.open("rb") as file:
                before = _stamped(os.fstat(file.fileno()))
                size = 0
                while copied := os.sendfile(target.fileno(), file.fileno(), None, 1 << 30):  # by the kernel
                    size += copied
                os.ftruncate(target.fileno(), size)
                made = self._made[place] = _stamped(os.fstat(target.fileno()))
                if time.time_ns() - before[-1] > TICK_NS:
                    self._given[place] = before, made
                else:  # within the same tick it may change again and look the same
                    self._given.pop(place, None)
        finally:
            os.close(folder)
        return place

    async def call(self, op: str, *, progress: Progress = _silent, **arguments: Any) -> dict[str, Any]:
        """Run one operation. Raises `Problem`: `worker.failed` (the package raised), `worker.memory` (it had too little),
        `worker.processor` (it used too much time of the processor), `worker.crashed`, `worker.silent` (no progress for too long), or the
        problem the worker itself reports."""
        async with self._busy:
            await self._send({"op": op, "cpu": self._processor.left(), **arguments})
            while True:
                answer = await self._receive()
                self._processor.told(answer.get("cpu"))
                match answer.get("event"):
                    case "progress":
                        loss = answer["loss"]  # null: not a number
                        progress(int(answer["step"]), int(answer["steps"]), math.nan if loss is None else float(loss))
                    case "done":
                        result: dict[str, Any] = answer["result"]
                        return result
                    case "problem":
                        raise _reported(answer["document"])
                    case _ if answer.get("error") == "MemoryError":
                        raise Problem("worker.memory", mib=self._memory >> 20)
                    case _:
                        raise Problem("worker.failed", error=str(answer.get("error"))[:60], at=str(answer.get("at"))[:120])

    async def _send(self, document: dict[str, Any]) -> None:
        import json

        body = json.dumps(document).encode()
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(len(body).to_bytes(4, "big") + body)
            await self._process.stdin.drain()
        except (BrokenPipeError, ConnectionResetError):
            raise await self._gone() from None

    async def _receive(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(self._silence):
                length = int.from_bytes(await self._process.stdout.readexactly(4), "big")
                if length > MAX_FRAME:
                    raise ValueError
                return parse_frame(await self._process.stdout.readexactly(length))
        except asyncio.IncompleteReadError:
            raise await self._gone() from None
        except TimeoutError:
            await self.kill()
            raise Problem("worker.silent", seconds=int(self._silence)) from None
        except ValueError:
            await self.kill()
            raise Problem("worker.crashed", reason="it wrote nonsense") from None

    async def _gone(self) -> Problem:
        with suppress(TimeoutError):
            async with asyncio.timeout(5):
                await self._process.wait()
        code = self._process.returncode
        if code == 125:
            assert self._process.stderr is not None
            line = (await self._process.stderr.read(2000)).decode(errors="replace")
            return Problem("worker.not_isolated", reason=line.strip()[:300])
        if code == -signal.SIGXCPU:
            return Problem("worker.processor", seconds=self._processor.limit)
        if code is not None and code < 0:
            return Problem("worker.crashed", reason=signal.Signals(-code).name)
        return Problem("worker.crashed", reason=f"exit code {code}")

    async def kill(self) -> None:
        """End it and everything it started."""
        await kill(self._process)


async def kill(process: asyncio.subprocess.Process) -> None:
    """End what `start` began and everything that began, if it is not over."""
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


def _reported(document: Any) -> Problem:
    """What a worker says went wrong. It cannot know of networks and doors: whoever says so wants to be asked again for ever."""
    problem = Problem.from_document(document)
    if problem.code.partition(".")[0] in _ELSEWHERE or problem.status in (502, 503, 504, 507):
        return Problem("worker.failed", error=problem.code, at="")
    return problem


async def start(module: str, python: Path | None, sandbox: isolation.Sandbox) -> asyncio.subprocess.Process:
    """Run one of our modules by an interpreter, ours by default, in a sandbox that reads `LIBRARY`. Raises `Problem` (`isolation.*`)."""
    return await asyncio.create_subprocess_exec(
        *isolation.wrap([str(python or sys.executable), "-P", "-m", module], sandbox),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**isolation.environment(sandbox), "PYTHONPATH": str(LIBRARY)},
        start_new_session=True,
        cwd="/",
    )


@asynccontextmanager
async def worker(
    package: Package,
    folder: Path,
    *,
    framework: str = "",
    python: Path | None = None,
    silence: float = 120.0,
    limits: isolation.Limits | None = None,
    account: str | None = None,
    ranks: int = 1,
) -> AsyncIterator[Worker]:
    """A worker with `package` opened for `framework` (the package's own by default). `folder` is made fresh and removed at the end;
    `python` is the framework's interpreter. It trains in `ranks` processes, which share its sandbox and have a loopback of their own."""
    await asyncio.to_thread(wipe, folder)
    folder.mkdir(parents=True, mode=0o700)
    code = package.unpack(folder / "package")
    limits = limits or isolation.Limits()
    sandbox = isolation.Sandbox(read=(LIBRARY,), write=folder, limits=limits, account=account, loopback=ranks > 1)
    process = await start("medmesh.learning.worker", python, sandbox)
    made = Worker(process, folder, silence, framework or package.manifest.package.framework, limits)
    try:
        await made.call("open", package=str(code), framework=made.framework, told=package.manifest.told(made.framework), ranks=ranks)
        yield made
    finally:
        await made.kill()
        transport = getattr(process, "_transport", None)
        if transport is not None:
            transport.close()
        await asyncio.to_thread(wipe, folder)
