"""Ways of isolating training code, to be tried by tests: one that a machine lacks is skipped."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

import pytest

from medmesh.embedded.accounts import reaches
from medmesh.learning.isolation import Capability, Limits, Sandbox, account, capability, environment, launcher
from medmesh.learning.isolation.probe import rehearse
from medmesh.learning.isolation.sandbox import ACCOUNTS, Kind, command

SYSTEM_PYTHON = Path("/usr/bin/python3")


class Ground(NamedTuple):
    """A way of isolation, an interpreter that can start in it, and a folder outside the worker's that anybody may enter."""

    capability: Capability
    python: str
    outside: Path
    read: Path
    write: Path

    account: str | None = None

    def sandbox(self, limits: Limits | None = None) -> Sandbox:
        return Sandbox(read=(self.read,), write=self.write, limits=limits or Limits(), account=self.account)

    def command(self, code: str, limits: Limits | None = None) -> list[str]:
        return command([self.python, "-c", textwrap.dedent(code)], self.sandbox(limits), self.capability)

    def run(self, code: str, limits: Limits | None = None, timeout: float = 30.0) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(code, limits), env=environment(self.sandbox(limits)), capture_output=True, text=True, timeout=timeout
        )

    def answer(self, code: str, limits: Limits | None = None) -> str:
        done = self.run(code, limits)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def refused(self, *expressions: str, prelude: str = "") -> None:
        """Each expression fails with `OSError` inside; any other outcome is a hole."""
        code = f"import ctypes, os, socket\n{prelude}\n"
        for expression in expressions:
            code += f"try:\n    {expression}\nexcept OSError:\n    pass\nelse:\n    print({expression!r})\n"
        assert self.answer(code + "print('tried')") == "tried"


def idle() -> str | None:
    """An account that runs nothing, when we are root. The bound is on all tasks of an account: what other tests run under the usual one
    and end meanwhile would be room for more."""
    if os.geteuid():
        return None
    others = (found for found in pwd.getpwall() if found.pw_uid and found.pw_gid and found.pw_name not in ACCOUNTS)
    return next(found.pw_name for found in others if not launcher._tasks(found.pw_uid))


def ground_of(kind: Kind, folder: Path) -> Ground:
    found = capability()
    if found.kind == "none":
        pytest.skip(f"no isolation here: {found.reason}")
    wanted = found if found.kind == kind else Capability(kind, "", found.abi)
    if wanted is not found and (reason := "no Landlock" if kind == "landlock" and not found.abi else rehearse(wanted)):
        pytest.skip(f"{kind} does not work here: {reason}")
    python = sys.executable
    if kind == "landlock" and not reaches(account(), Path(python)):
        python = str(SYSTEM_PYTHON)
        if not SYSTEM_PYTHON.exists():
            pytest.skip("no interpreter that the worker's account can reach")
    read, write = folder / "read", folder / "write"
    read.mkdir()
    write.mkdir()
    (read / "given.txt").write_text("given")
    return Ground(wanted, python, folder, read, write)
