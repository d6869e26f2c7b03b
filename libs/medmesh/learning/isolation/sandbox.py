"""The values: what a worker may use, and the order for the launcher that is made of them."""

from __future__ import annotations

import dataclasses
import json
import os
import pwd
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from medmesh.embedded.accounts import Account, reaches
from medmesh.errors import Problem
from medmesh.learning.isolation import places

# Never the account of a database: its socket takes the account for a password.
ACCOUNTS = ("medmesh-worker", "medmesh", "nobody")
_LAUNCHER = Path(__file__).with_name("launcher.py")
_WRITABLE_DEVICES = ("/dev/null", "/dev/zero", "/dev/full")

Kind = Literal["namespace", "landlock", "none"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What each process of a worker may use: bytes, seconds of CPU, bytes of one file; tasks and arithmetic threads in number. What it maps
    of files that it is given takes addresses and no memory of its own: `mapped_bytes` more of them. A worker that is kept for several
    `operations` has the seconds for each of them, and the kernel ends it at their sum."""

    memory_bytes: int = 4 * 2**30
    cpu_seconds: int = 3600
    file_bytes: int = 2**30
    processes: int = 256
    threads: int = 1
    mapped_bytes: int = 0
    operations: int = 1


@dataclass(frozen=True, slots=True)
class Sandbox:
    """The folders a worker may read and the one fresh folder it may write; the account counts only when we are root. With `loopback` the
    worker's own processes may speak to each other over 127.0.0.1 of a network that nobody else is in."""

    read: tuple[Path, ...]
    write: Path
    limits: Limits = field(default_factory=Limits)
    account: str | None = None
    loopback: bool = False


@dataclass(frozen=True, slots=True)
class Capability:
    """How far this machine can isolate a worker, why not further, and its Landlock version (0: none)."""

    kind: Kind
    reason: str
    abi: int


def account(configured: str | None = None) -> Account | None:
    """Who the worker is when we are root: `configured` or the first of `ACCOUNTS`; None when we are not root.

    Raises `Problem` `isolation.account_missing` for one that does not exist or is root again.
    """
    if os.geteuid() != 0:
        return None
    for name in (configured,) if configured else ACCOUNTS:
        try:
            found = pwd.getpwnam(name)
        except KeyError:
            continue
        if found.pw_uid != 0 and found.pw_gid != 0:
            return Account(found.pw_name, found.pw_uid, found.pw_gid)
    raise Problem("isolation.account_missing", name=configured or ", ".join(ACCOUNTS))


def command(argv: Sequence[str], sandbox: Sandbox, capability: Capability) -> list[str]:
    """The command that isolates itself as `capability` says and becomes `argv`.

    Raises `Problem`: `isolation.unavailable`, `isolation.loopback`, `isolation.account_missing`, `isolation.folder_missing` (a folder, or
    the program).
    """
    if capability.kind == "none":
        raise Problem("isolation.unavailable", reason=capability.reason)
    if sandbox.loopback and capability.kind != "namespace":
        raise Problem("isolation.loopback", reason=capability.reason)
    program = Path(shutil.which(argv[0]) or argv[0])
    for path, usable in (
        (program, program.is_file()),
        *((folder, folder.exists()) for folder in sandbox.read),
        (sandbox.write, sandbox.write.is_dir() and not sandbox.write.is_symlink()),
    ):
        if not usable:
            raise Problem("isolation.folder_missing", path=path)
    taken = account(sandbox.account)
    seen = places.places(program, sandbox.read, sandbox.write)
    targets = [place.target for place in seen if place.writable]
    if capability.kind == "namespace":
        readable, writable = ["/"], [*targets, "/dev/shm", *filter(os.path.exists, _WRITABLE_DEVICES)]  # noqa: S108
    else:
        for place in seen:
            if not reaches(taken, Path(place.source)):
                raise Problem("isolation.unavailable", reason=f"the account {taken and taken.name} cannot reach {place.source}")
        shared = (*places.SYSTEM, *places.SETTINGS, *places.HARDWARE, *places.DEVICES, *places.FACTS)
        readable, writable = [*shared, *(place.target for place in seen)], [*targets, "/dev/null"]
    order = {
        "kind": capability.kind,
        "abi": capability.abi,
        "program": [os.path.abspath(program), *argv[1:]],
        "places": seen,
        "write": str(sandbox.write.resolve()),
        "loopback": sandbox.loopback,
        "readable": readable,
        "writable": writable,
        "limits": dataclasses.asdict(sandbox.limits),
        "identity": [taken.name, taken.uid, taken.gid] if taken else ["worker", os.getuid(), os.getgid()],
        "change": taken is not None,
    }
    return [sys.executable, "-I", "-S", str(_LAUNCHER), json.dumps(order)]


_MEMORY = {"MALLOC_ARENA_MAX": "2", "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20), "MALLOC_TRIM_THRESHOLD_": str(4 * 2**20)}
"""Of what a step has freed, 4 MiB are kept for the next: asking for them anew is a page fault per 4 KiB, two thirds of what a worker
computed in a round of a small model. Tensors of up to 32 MiB come from the heap: that is the most that glibc would come to take from there
by itself (mallopt(3))."""


def environment(sandbox: Sandbox) -> dict[str, str]:
    """All the variables a worker starts with; nothing of ours goes along."""
    write, threads = str(sandbox.write.resolve()), str(sandbox.limits.threads)
    libraries = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
    return {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": write,
        "TMPDIR": write,
        "LC_ALL": "C.UTF-8",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONNOUSERSITE": "1",
        **_MEMORY,
        **dict.fromkeys(libraries, threads),
    }
