"""Documents whose blocks are executed as written: ```LANGUAGE NAME is a file, ```bash is run, ```text shows what was printed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).parents[1]
_BLOCK = re.compile(r"^```(\w+)(?: (\S+))?\n(.*?)^```$", re.M | re.S)


def blocks(document: Path) -> list[tuple[str, str, str]]:
    """(language, file name or empty, text) of each fenced block, in order."""
    return [(found[1], found[2] or "", found[3]) for found in _BLOCK.finditer(document.read_text(encoding="utf-8"))]


def execute(document: Path, folder: Path, seconds: float) -> str:
    """Do what a reader would in `folder`; answers everything printed. Raises `AssertionError` with the output of what failed."""
    printed = ""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "MEDMESH_LANG": "en", "REPO": str(REPO)}
    for language, name, text in blocks(document):
        if name:
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")
        elif language == "bash":
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", text],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=seconds,
            )
            assert done.returncode == 0, f"{text}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
            printed += done.stdout
    return printed


_TYPED = re.compile(r"^```sh(?: ([\w ]+))?\n(.*?)^```$", re.M | re.S)


def typed(document: Path) -> list[tuple[tuple[str, ...], list[str]]]:
    """Of each block that a person types, in order: in which terminals (none named: their own), and the commands, with the lines that
    belong to them."""
    return [(tuple((where or "").split()), _commands(text)) for where, text in _TYPED.findall(document.read_text(encoding="utf-8"))]


def _commands(text: str) -> list[str]:
    found: list[str] = []
    lines = iter(text.splitlines())
    for line in lines:
        if here := re.search(r"<<'?(\w+)'?$", line):
            while (further := next(lines)) != here[1]:
                line += f"\n{further}"
            line += f"\n{here[1]}"
        while line.endswith("\\"):
            line += f"\n{next(lines)}"
        if line.strip():
            found.append(line)
    return found
