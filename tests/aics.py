"""An environment of its own for verifiers we did not write, which need Python 3.12."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
from pathlib import Path

import pytest

PINNED = ("aics-tlog==0.2.1", "aics-witness==0.1.0", "cryptography==50.0.2")


def newer_python() -> str | None:
    """An interpreter of 3.12 that really runs: a shim may be there without one."""
    candidates = [shutil.which("python3.12"), *map(str, Path.home().glob(".pyenv/versions/3.12*/bin/python3.12"))]
    for path in filter(None, candidates):
        if subprocess.run([path, "-c", "import ensurepip"], capture_output=True, check=False).returncode == 0:
            return path
    return None


def environment() -> Path:
    """Its Python, in which `aics-tlog` and `aics-witness` are installed; made once. Skips the test where there is no Python 3.12."""
    python = newer_python()
    if python is None:
        pytest.skip("aics-tlog needs Python 3.12, and no such interpreter runs here")
    place = Path("build/aics").absolute()
    place.mkdir(parents=True, exist_ok=True)
    with (place / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = place / "made"
        if not made.exists() or made.read_text() != " ".join(PINNED):
            subprocess.run([python, "-m", "venv", "--clear", str(place / "venv")], check=True)
            pip = [str(place / "venv/bin/python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PINNED]
            done = subprocess.run(pip, capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"aics-tlog could not be installed: {done.stderr.strip().splitlines()[-1]}")
            made.write_text(" ".join(PINNED))
    return place / "venv/bin/python"
