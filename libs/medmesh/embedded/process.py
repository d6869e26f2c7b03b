"""What to run, and who a process is."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from medmesh.embedded.accounts import Account

_CHILD = Path(__file__).with_name("child.py")


@dataclass(frozen=True, slots=True)
class Command:
    """A program with its surroundings. The child gets `env` and a search path, nothing else of ours; no shell reads it."""

    argv: tuple[str, ...]
    """Absolute path of the program and its arguments; every account of the machine can read these."""
    cwd: Path = Path("/")
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    account: Account | None = None
    """Whom to become; None stays who we are."""
    stop: signal.Signals = signal.SIGTERM
    grace: float = 10.0
    """Seconds between `stop` and SIGKILL."""
    orphaned: signal.Signals = signal.SIGKILL
    """What the kernel sends when we are gone."""
    nursery: bool = False
    """A service: `argv` is that of `medmesh.service`, and it is forked from a process that has its libraries."""

    def wrapped(self) -> list[str]:
        """The arguments that start it through `child.py`, from this process and the thread that calls."""
        uid, gid = (self.account.uid, self.account.gid) if self.account else (-1, -1)
        first = [os.getpid(), int(self.orphaned), uid, gid, self.cwd]
        return [sys.executable, "-I", "-S", str(_CHILD), *map(str, first), *self.argv]

    def environment(self) -> dict[str, str]:
        """The whole environment of the child."""
        return {"PATH": os.defpath, "LC_ALL": "C.UTF-8", **self.env}


class Server(Protocol):
    """Something the supervisor keeps running."""

    @property
    def name(self) -> str:
        """Names its log file and its place in `run.json`."""

    def command(self) -> Command:
        """What to run; called before every start, in a thread, and may tidy up what a crash left. A `Problem` ends the attempts."""

    async def ready(self) -> None:
        """Return once it can be used. Called while the process runs; the supervisor bounds the time."""


def birth(pid: int) -> str | None:
    """The boot and the clock tick at which the process `pid` began, or None when there is none or only a zombie.

    With the pid it names one process for ever, while a pid alone is soon given to another (proc(5): /proc/pid/stat, field 22).
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None
    return None if fields[0] in "ZX" else f"{boot}:{fields[19]}"
