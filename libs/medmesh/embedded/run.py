"""`run.json`: what runs on a data folder, for everybody who wants to look. It names secrets by path and holds none."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from medmesh.embedded import files
from medmesh.embedded.process import birth
from medmesh.errors import Problem


class Running(BaseModel):
    """A process. `birth` tells it apart from a later one with the same pid; `stop` is the signal that ends it in order."""

    model_config = ConfigDict(frozen=True)

    pid: int
    birth: str
    stop: int = int(signal.SIGTERM)
    log: Path | None = None
    restarts: int = 0

    @classmethod
    def of(cls, pid: int, **fields: object) -> Self:
        """The process `pid`, now."""
        return cls.model_validate({"pid": pid, "birth": birth(pid) or "gone", **fields})

    @property
    def alive(self) -> bool:
        """Whether this very process still runs."""
        return birth(self.pid) == self.birth


class Run(BaseModel):
    """The content of `run.json`."""

    supervisor: Running
    since: datetime = Field(default_factory=lambda: datetime.now(UTC))
    processes: dict[str, Running] = {}
    ports: dict[str, int] = {}
    urls: dict[str, str] = {}
    paths: dict[str, Path] = {}
    ready: bool = False
    """Everything was started and answered at least once."""

    @classmethod
    def read(cls, folder: Path) -> Run | None:
        """What was last written on `folder`, be it still true or not; None when there is nothing to read."""
        try:
            return cls.model_validate_json((folder / "run.json").read_bytes())
        except (FileNotFoundError, ValidationError):
            return None

    def write(self, folder: Path) -> None:
        """Replace `run.json`, mode 0600."""
        files.write(folder / "run.json", self.model_dump_json(indent=1))


def running(folder: Path) -> Run | None:
    """What runs on `folder` now, or None."""
    run = Run.read(folder)
    return run if run and run.supervisor.alive else None


class Lock:
    """The right to run on a data folder: an flock, so that it ends with the process, however that ends."""

    def __init__(self, folder: Path) -> None:
        """Raises `Problem` `embedded.already_running`."""
        self._file = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            run = Run.read(folder)
            raise Problem("embedded.already_running", folder=folder, pid=run.supervisor.pid if run else "?") from None

    def close(self) -> None:
        """Let the next one in."""
        os.close(self._file)


async def end(process: Running, grace: float = 10.0) -> None:
    """End a process that need not be our child: its own signal, and SIGKILL after `grace` seconds."""
    for signum, seconds in ((process.stop, grace), (signal.SIGKILL, 5.0)):
        if not process.alive:
            return
        os.kill(process.pid, signum)
        for _ in range(int(seconds / 0.02)):
            if birth(process.pid) != process.birth:
                return
            await asyncio.sleep(0.02)


async def stop(folder: Path, grace: float = 60.0) -> bool:
    """Stop the platform on `folder` from outside; answers whether one was running. Returns when everything has ended."""
    run = running(folder)
    if run is None:
        return False
    await end(run.supervisor, grace)
    for process in reversed(run.processes.values()):
        await end(process)
    return True
