"""What a package would run in beside its own code: an interpreter and everything that is installed for it, by one digest.

The hospital approves it with the code. It is asked of the interpreter itself, in the sandbox of a worker: see `medmesh.learning.inventory`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from medmesh.canonical import canonical
from medmesh.errors import Problem
from medmesh.learning import host, isolation
from medmesh.security.residue import wipe

SECONDS = 60.0
MOST_BYTES = 4 * 2**20
SHOWN = 6
"""Differences that a sentence names; the others are counted."""
_FORM = "medmesh-environment-v1"
_NAMED = ("torch", "mindspore", "numpy", "medmesh")
"""What is said of an environment where it is there."""
Inventory = dict[str, Any]


@dataclass(frozen=True)
class Environment:
    """`inventory` is what an interpreter says of itself, without where it lies; `places` are the files and folders of which one has
    another time of change once that is other."""

    inventory: Inventory
    places: tuple[str, ...] = ()

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the inventory, hexadecimal."""
        return hashlib.sha256(canonical({"form": _FORM, **self.inventory})).hexdigest()


async def measure(python: Path | None, folder: Path, account: str | None = None) -> Environment:
    """Ask an interpreter, ours by default, in a sandbox that may write to the fresh `folder` alone. Raises `Problem` (`isolation.*`,
    `environment.silent`)."""
    folder.mkdir(parents=True, mode=0o700)
    try:
        said, complaint = await _ask(python, isolation.Sandbox((host.LIBRARY,), folder, account=account))
    finally:
        await asyncio.to_thread(wipe, folder)
    try:
        return read(json.loads(said) if len(said) <= MOST_BYTES else None)
    except (ValueError, TypeError, KeyError, AttributeError):
        reason = complaint.decode(errors="replace").strip().rpartition("\n")[2][:200]
        raise Problem("environment.silent", python=python or sys.executable, reason=reason or "it said nothing") from None


async def _ask(python: Path | None, sandbox: isolation.Sandbox) -> tuple[bytes, bytes]:
    """(what it says, what it complains of)."""
    process = await host.start("medmesh.learning.inventory", python, sandbox)
    try:
        async with asyncio.timeout(SECONDS):
            return await process.communicate()
    except TimeoutError:
        return b"", f"it did not answer within {SECONDS:.0f} s".encode()
    finally:
        await host.kill(process)


def read(said: Any) -> Environment:
    """What an interpreter said. Raises `ValueError`, `TypeError`, `KeyError` or `AttributeError` for anything else."""
    made: Inventory = {name: str(said[name]) for name in ("python", "build")}
    made |= {name: {str(key): str(value) for key, value in said[name].items()} for name in ("programs", "start")}
    made["distributions"] = {str(name): [str(number), str(record)] for name, (number, record) in said["distributions"].items()}
    ours = made["distributions"]["medmesh"]
    ours[0] = ours[0] or version("medmesh")  # it finds our code where ours lies, and no installation of it
    return Environment(made, tuple(str(place) for place in said["places"]))


def differences(was: Inventory, now: Inventory) -> list[str]:
    """What is other, the most telling first, in signs that need no language: `torch 2.12.0 → 2.13.0`. What has the same version and other
    files says so by `*`."""
    return [*_different(was, now)]


def _different(was: Inventory, now: Inventory) -> Iterator[str]:
    if (before := was.get("python")) != now["python"]:
        yield f"{before or '–'} → {now['python']}"
    elif was["build"] != now["build"] or was["programs"] != now["programs"]:
        yield f"{before} → {now['python']}*"
    old, new = was.get("distributions", {}), now["distributions"]
    for name in sorted(old.keys() | new.keys(), key=lambda name: (name not in _NAMED, name)):
        first, second = old.get(name), new.get(name)
        if first != second:
            same = first is not None and second is not None and first[0] == second[0]
            yield f"{name} {first[0] if first else '–'} → {second[0] if second else '–'}{'*' if same else ''}"
    starts = was.get("start", {}), now["start"]
    yield from (f"{name}*" for name in sorted(starts[0].keys() | starts[1].keys()) if starts[0].get(name) != starts[1].get(name))


def shortly(different: list[str]) -> str:
    """The first few of them."""
    more = len(different) - SHOWN
    return ", ".join(different[:SHOWN]) + (f", +{more}" if more > 0 else "")


def explain(found: Environment, language: str = "en", framework: str = "") -> str:
    """An environment in a sentence."""
    there: Mapping[str, list[str]] = found.inventory["distributions"]
    named = [name for name in dict.fromkeys((framework, *_NAMED)) if name in there]
    versions, count = ", ".join(f"{name} {there[name][0]}" for name in named), len(there)
    python = found.inventory["python"]
    if language == "zh":
        return f"运行环境：{python}，{versions}，共 {count} 个软件包；摘要 {found.digest}"
    return f"It runs in {python} with {versions} and {count} distributions in all; digest {found.digest}"
