"""The keys of a platform on one machine by domain: each has a backup of its own, under a key of its own holder.

What is in no domain's folder are the services' and servers' own keys and passwords: the domain `services`.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path

from medmesh.embedded import files
from medmesh.embedded.layout import DOMAINS
from medmesh.errors import Problem
from medmesh.security.keyring.file import FileKeys
from medmesh.security.keys import read_secret, write_secret

HOLDER = "backup"
"""The label of a holder's key."""
SERVICES = "services"
NAMES = (*dict.fromkeys(DOMAINS.values()), SERVICES)


def _files(folder: Path, domain: str) -> Iterator[Path]:
    secrets = folder / "secrets"
    if domain == SERVICES:
        others = {secrets / name for name in DOMAINS.values()}
        yield from (path for path in sorted(secrets.rglob("*")) if path.is_file() and not others & set(path.parents))
    else:
        yield from (path for path in sorted((secrets / domain).rglob("*")) if path.is_file())


def missing(folder: Path) -> list[str]:
    """Domains without any key in a data folder."""
    return [name for name in NAMES if not (folder / "secrets").is_dir() or next(_files(folder, name), None) is None]


def holder(folder: Path) -> FileKeys:
    """A holder's key, made when there is none."""
    return FileKeys(files.folder(folder)).ensure(HOLDER)


def export(folder: Path, domain: str, keys: FileKeys, target: Path) -> int:
    """Write one domain's keys, encrypted, into the file `target`; answers how many. Raises `Problem`."""
    found = {str(path.relative_to(folder / "secrets")): path.read_bytes() for path in _files(folder, _known(domain))}
    if not found:
        raise Problem("vault.empty", domain=domain)
    content = json.dumps({name: base64.b64encode(data).decode() for name, data in found.items()}).encode()
    try:
        write_secret(target, keys.wrap(HOLDER, content, _bound(domain)).encode() + b"\n")
    except FileExistsError:
        raise Problem("escrow.exists", file=target.name) from None
    return len(found)


def bring(folder: Path, domain: str, keys: FileKeys, source: Path) -> int:
    """Put one domain's keys back; what is there already stays, and must be the same. Raises `Problem`."""
    content = json.loads(keys.unwrap(HOLDER, read_secret(source).decode().strip(), _bound(_known(domain))))
    secrets = files.folder(folder / "secrets")
    for name, encoded in content.items():
        path = secrets / name
        if not path.resolve().is_relative_to(secrets.resolve()):
            raise Problem("keyring.refused", label=HOLDER)
        data = base64.b64decode(encoded)
        if path.exists():
            if path.read_bytes() != data:
                raise Problem("vault.differs", file=name)
            continue
        files.folder(path.parent)
        write_secret(path, data)
    return len(content)


def _known(domain: str) -> str:
    if domain not in NAMES:
        raise Problem("vault.domain", domain=domain, domains=", ".join(NAMES))
    return domain


def _bound(domain: str) -> bytes:
    return f"medmesh-domain\0{domain}".encode()
