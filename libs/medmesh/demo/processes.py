"""The processes of the demonstration: the platform and four nodes, started as anybody would start them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medmesh.errors import Problem

MEDMESH = (sys.executable, "-P", "-m", "medmesh")
CHECKER = Path(__file__).with_name("checker.py")


async def medmesh(*arguments: str, code: int = 0) -> str:
    """Run the command and answer what it printed. Raises `Problem` when it ends with another code."""
    process = await asyncio.create_subprocess_exec(
        *MEDMESH, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env={**os.environ, "MEDMESH_LANG": "en"}
    )
    out, err = await process.communicate()
    if process.returncode != code:
        raise Problem("demo.command", command=" ".join(arguments[:3]), exit=process.returncode, reason=(err or out).decode()[-600:])
    return out.decode()


async def checker(*arguments: str, codes: tuple[int, ...] = (0,)) -> tuple[int, dict[str, Any]]:
    """Run the independent checker in an interpreter of its own that sees nothing of medmesh."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-I", str(CHECKER), *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await process.communicate()
    if process.returncode not in codes:
        raise Problem("demo.command", command=f"checker {arguments[0]}", exit=process.returncode, reason=(err or out).decode()[-600:])
    found: dict[str, Any] = json.loads(out)
    return int(process.returncode or 0), found


@dataclass
class Process:
    """A process that runs beside the platform, as somebody at a hospital or a regulator would start it."""

    name: str
    folder: Path
    arguments: tuple[str, ...]
    log: str
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Run it."""
        with (self.folder / self.log).open("ab") as log:
            argv = (*MEDMESH, *self.arguments)
            self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)

    def kill(self) -> None:
        """End it as a power cut would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def stop(self) -> None:
        """End it in order."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.process = None


def node(name: str, folder: Path) -> Process:
    """An edge node."""
    return Process(name, folder, ("edge", "run", "--folder", str(folder)), "node.log")
