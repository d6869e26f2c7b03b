"""A witness's folder: `witness.json` (name, logs, address), `witness.key` (0600) and `witness.db` (what it cosigned last)."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from medmesh.errors import Problem
from medmesh.ledger.cosignature import witness_key
from medmesh.ledger.note import ED25519, VerifierKey, parse_key, valid_name


@dataclass(frozen=True)
class Site:
    """An opened folder. `logs` are the keys that may sign for each origin; several while a log changes its key."""

    folder: Path
    name: str
    logs: dict[str, list[VerifierKey]]
    host: str
    port: int
    key: Ed25519PrivateKey = field(repr=False)
    certificate: Path | None = None
    certificate_key: Path | None = None

    @property
    def database(self) -> Path:
        """SQLite."""
        return self.folder / "witness.db"

    @property
    def vkey(self) -> str:
        """What goes into others' policies."""
        return str(witness_key(self.name, self.key))


def create(folder: Path, name: str, logs: Sequence[str], *, host: str = "127.0.0.1", port: int = 8460) -> Site:
    """Make folder and key. Raises `Problem`: `witness.exists`, `witness.name`, `ledger.key`."""
    if not valid_name(name):
        raise Problem("witness.name", name=name)
    for log in logs:
        _log_key(log)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    settings = {"name": name, "logs": list(logs), "host": host, "port": port}
    pem = Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        _write(folder / "witness.key", pem)
    except FileExistsError:
        raise Problem("witness.exists", folder=folder) from None
    _write(folder / "witness.json", json.dumps(settings, indent=1, ensure_ascii=False).encode())
    return load(folder)


def load(folder: Path) -> Site:
    """Raises `Problem` (`witness.folder`, `ledger.key`)."""
    try:
        document = json.loads((folder / "witness.json").read_bytes())
        if (folder / "witness.key").stat().st_mode & 0o077:
            raise ValueError("witness.key: 0600")
        key = load_pem_private_key((folder / "witness.key").read_bytes(), None)
        if not isinstance(key, Ed25519PrivateKey):
            raise ValueError("witness.key: Ed25519")
        logs: dict[str, list[VerifierKey]] = {}
        for vkey in document["logs"]:
            found = _log_key(vkey)
            logs.setdefault(found.name, []).append(found)
        certificate, certificate_key = (Path(document[name]) if document.get(name) else None for name in ("certificate", "certificate_key"))
        address = str(document["host"]), int(document["port"])
        return Site(folder, str(document["name"]), logs, *address, key, certificate, certificate_key)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Problem("witness.folder", folder=folder, reason=str(error)) from None


def _log_key(vkey: str) -> VerifierKey:
    key = parse_key(vkey)
    if key.kind != ED25519:
        raise Problem("ledger.key")
    return key


def _write(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(descriptor, content)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
