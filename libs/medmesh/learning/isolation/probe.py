"""What this machine allows, found by rehearsal: the launcher itself, with a program that does nothing."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

from medmesh.errors import Problem
from medmesh.learning.isolation import landlock
from medmesh.learning.isolation.sandbox import Capability, Kind, Sandbox, command, environment

_SECONDS = 30.0


@cache
def capability() -> Capability:
    """The best of namespaces and Landlock that works here, by trying each once; a fraction of a second, then remembered."""
    if sys.platform != "linux":
        return Capability("none", f"{sys.platform} has neither namespaces nor Landlock", 0)
    abi = landlock.abi()
    kinds: list[Kind] = ["namespace", "landlock"] if abi else ["namespace"]
    reasons = [] if abi else ["landlock: this kernel has none, or has it switched off"]
    for kind in kinds:
        candidate = Capability(kind, "; ".join(reasons), abi)
        reason = rehearse(candidate)
        if reason is None:
            return candidate
        reasons.append(f"{kind}: {reason}")
    return Capability("none", "; ".join(reasons), abi)


def rehearse(candidate: Capability) -> str | None:
    """Why a worker cannot be isolated in this way; None when it can."""
    with tempfile.TemporaryDirectory(prefix="medmesh-") as folder:
        Path(folder).chmod(0o711)
        write = Path(folder, "write")
        write.mkdir()
        sandbox = Sandbox(read=(), write=write)
        try:
            argv = command([shutil.which("true") or sys.executable, "--version"], sandbox, candidate)
            done = subprocess.run(
                argv, env=environment(sandbox), stdin=subprocess.DEVNULL, capture_output=True, timeout=_SECONDS, check=False
            )
        except Problem as problem:
            return problem.detail()
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
    return None if done.returncode == 0 else _reason(done.stderr, done.returncode)


def _reason(stderr: bytes, code: int) -> str:
    try:
        said = json.loads(stderr)
        return f"{said['isolation']}: {said['reason']}"
    except (ValueError, LookupError, TypeError):
        return f"it ended with code {code}"
