"""Trusted verification of programs (GB/T 22239-2019, 8.1.4.6): what runs here is what a person of the roster signed.

A list names every file of code that is installed with medmesh, with its SHA-256; a statement over its digest is signed with a person's
own key. Each service compares what it has loaded, at its start and every hour. The interpreter and what lies below (kernel, boot chain) are
the host's to verify, and whoever may write into a service's memory is not found: this finds changed files, and tells who vouched for
those that were there.
"""

from __future__ import annotations

import hashlib
import json
import pkgutil
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from medmesh.canonical import canonical, parse
from medmesh.contracts.message import Sha256
from medmesh.errors import Problem
from medmesh.measured import digest, mapped
from medmesh.security import statements
from medmesh.security.roster import Roster
from medmesh.security.statements import Statement

NAME = "programs.json"
SITE = "site-packages"
ROLES = ("approver", "security_administrator")
"""Who may sign a list."""


class Programs(Statement):
    """`digest` is over the list: SHA-256 of its canonical JSON."""

    HEAD = "medmesh-programs-v1"

    version: str
    files: int
    digest: Sha256


@dataclass(frozen=True, slots=True)
class Verdict:
    """`changed` names files as `+added`, `-gone`, `~other`."""

    signer: str
    version: str
    digest: str
    changed: tuple[str, ...]


def measured() -> dict[str, str]:
    """File to SHA-256, hexadecimal, of everything that is installed here."""
    return {name: digest(path) for name, path in _files()}


def loaded() -> dict[str, str]:
    """The same of what this process has loaded until now; a file that is gone has no digest."""
    return {name: digest(path) for name, path in _loaded()}


def digest_of(files: Mapping[str, str]) -> str:
    """What is signed."""
    return hashlib.sha256(canonical(dict(files))).hexdigest()


def differences(expected: Mapping[str, str], found: Mapping[str, str], *, whole: bool) -> tuple[str, ...]:
    """See `Verdict`. Only where `whole`, what was not found is missing."""
    names = sorted(expected.keys() | found.keys() if whole else found)
    signs = (("+" if name not in expected else "-" if name not in found else "~", name) for name in names)
    return tuple(f"{sign}{name}" for sign, name in signs if expected.get(name) != found.get(name))


def save(path: Path, files: Mapping[str, str], signed: str) -> None:
    """Lay a list down, whole or not at all."""
    temporary = path.with_suffix(".new")
    temporary.write_bytes(canonical({"note": signed, "files": dict(files)}))
    temporary.replace(path)


def read(path: Path) -> tuple[dict[str, str], str]:
    """(files, signed note); nothing of it is believed yet. Raises `Problem` (`program.none`, `program.form`)."""
    try:
        document: Any = parse(path.read_bytes())
        files, signed = document["files"], document["note"]
        if not isinstance(signed, str) or not all(isinstance(part, str) for entry in files.items() for part in entry):
            raise ValueError
    except FileNotFoundError:
        raise Problem("program.none") from None
    except (ValueError, KeyError, TypeError, AttributeError, OSError, json.JSONDecodeError):
        raise Problem("program.form") from None
    return files, signed


def verify(path: Path, roster: Roster, seen: datetime, found: Mapping[str, str], *, whole: bool = False) -> Verdict:
    """What the signed list says of files that were found. Raises `Problem` (`program.*`, `roster.*`, `statement.*`)."""
    files, signed = read(path)
    signer, said = roster.person(signed, Programs, seen, ROLES)
    if said.digest != digest_of(files):
        raise Problem("program.form")
    return Verdict(signer, said.version, said.digest, differences(files, found, whole=whole))


def sign(files: Mapping[str, str], version: str, made: datetime, signer: Any) -> str:
    """The signed note of a list."""
    return statements.sign(Programs(made=made, version=version, files=len(files), digest=digest_of(files)), signer)


def _files() -> Iterator[tuple[str, Path]]:
    for root, folder in {**_ours(), **_site()}.items():
        for path in sorted(folder.rglob("*")):
            if _counts(path) and path.is_file():
                yield f"{root}/{path.relative_to(folder).as_posix()}", path


def _loaded() -> Iterator[tuple[str, Path]]:
    """What this process has loaded: modules and shared libraries."""
    files = {file for module in list(sys.modules.values()) if isinstance(file := getattr(module, "__file__", None), str)}
    files |= mapped(".so")
    folders = [(f"{folder}/", root) for root, folder in {**_ours(), **_site()}.items()]
    for file in sorted(files):
        for folder, root in folders:
            if file.startswith(folder) and _counts(path := Path(file)):
                yield f"{root}/{file[len(folder) :]}", path
                break


@cache
def _ours() -> dict[str, Path]:
    found = (module for module in pkgutil.iter_modules() if module.name == "medmesh" or module.name.startswith("medmesh_"))
    return {module.name: Path(getattr(module.module_finder, "path", "")) / module.name for module in found}


@cache
def _site() -> dict[str, Path]:
    return {SITE: Path(sysconfig.get_path("purelib")), "bin": Path(sys.prefix) / "bin"}


def _counts(path: Path) -> bool:
    """Code: what Python or the loader runs. Compiled caches are made when a program runs."""
    return "__pycache__" not in path.parts and (path.suffix in (".py", ".pth", ".so") or ".so." in path.name or path.parent.name == "bin")
