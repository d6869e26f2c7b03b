"""Interpreters of other frameworks: MindSpore's, and one with a framework of one's own that is no part of medmesh."""

from __future__ import annotations

import os
import subprocess
import sys
from fcntl import LOCK_EX, flock
from functools import cache
from pathlib import Path

import pytest

HERE = Path(__file__).parent
MINDSPORE = Path(os.environ.get("MEDMESH_MINDSPORE", str(Path(sys.prefix) / "mindspore" / "bin" / "python")))
HANDMADE = Path(sys.prefix) / "handmade" / "bin" / "python"


def mindspore() -> Path:
    """`make mindspore` puts it there, and so does `make test`."""
    if not MINDSPORE.exists():
        pytest.skip("MindSpore has an environment of its own: make mindspore")
    return MINDSPORE


@cache
def handmade() -> Path:
    """Made when it is missing, by one process at a time: what a worker needs, and the framework, installed as anybody would."""
    folder = HANDMADE.parents[1]
    with folder.with_suffix(".lock").open("w") as lock:
        flock(lock, LOCK_EX)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        installed = [str(HANDMADE), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*installed, "numpy", "safetensors", "pydantic", str(HERE / "handmade")], check=True)
    return HANDMADE


INTERPRETERS = {"torch": lambda: None, "mindspore": mindspore, "handmade": handmade}
