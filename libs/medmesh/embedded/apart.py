"""A platform whose servers and services run elsewhere, in containers or on several machines: its files, and what its servers need."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from medmesh.bus.topology import TOPOLOGY
from medmesh.embedded import files, install, material, probe
from medmesh.embedded.layout import Apart
from medmesh.embedded.material import Prepared
from medmesh.embedded.nats import authorization
from medmesh.errors import Problem
from medmesh.security.keys import read_secret
from medmesh.service.settings import ObjectSettings
from medmesh.service.spec import services
from medmesh.store.objects.open import LABEL as OBJECTS

WITHOUT_OBJECTS = frozenset({"governance"})
"""Services that store no bytes, and get no keys to S3."""
_PORTS = {"nats": 4222, "tls": 4222, "postgresql": 5432, "http": 80}
ADMINISTRATOR = ["Admin", "Read", "Write", "List"]
SERVICE = [f"{action}:{bucket}" for bucket in install.BUCKETS for action in ("Read", "Write", "List")]
_SEAL = ("Read", "Write", "List", "PutObjectRetention", "GetObjectRetention", "GetBucketObjectLockConfiguration")
LOG = [f"{action}:{install.SEALED}" for action in _SEAL]
"""The log fills its own bucket and sees no other; no other service sees that one."""


@dataclass(frozen=True, slots=True)
class Servers:
    """Where the servers are, for `setup` and for the services alike. `database` is the administrator's URL, best without password."""

    nats: str = "tls://nats:4222"
    database: str = "postgresql://medmesh@postgres:5432/medmesh?ssl=verify-full"
    s3: str = "https://seaweedfs:8333"
    spool: Path | None = None
    """A folder that every service sees; scratch is kept in S3 without it."""


def write_files(folder: Path, where: Servers, names: Iterable[str] = ()) -> Prepared:
    """Every key, certificate, password and settings file; needs no network. `names` are further ones of the gateway."""
    if not folder.exists():
        files.folder(folder, 0o711)
    files.folder(folder / "trust", 0o755)
    layout = Apart(folder)
    more = {"gateway": tuple(names)}
    prepared = material.prepare(layout, lambda name: (*_names(name), *more.get(name, ())))
    for name in prepared.specs:
        _settings(prepared, name, where)
    for server in ("nats", "postgres", "seaweedfs"):
        home = files.folder(folder / server)
        material.certify(prepared.authority, home / "tls.crt", home / "tls.key", _names(server))
    files.write(layout.private("nats", "authorization.conf"), authorization(prepared.users()))
    files.password(layout.private("postgres", "password"))
    keys = {name: _s3_keys(layout.private(name, "s3.json")) for name in (TOPOLOGY, *prepared.specs) if name not in WITHOUT_OBJECTS}
    files.write(layout.private("seaweedfs", "s3.json"), json.dumps({"identities": [_s3_user(*item) for item in keys.items()]}, indent=1))
    return prepared


async def apply(folder: Path, where: Servers, replicas: int = 1, patience: float = 60) -> None:
    """Streams, consumers, roles, schemas, migrations and buckets, from files that `write_files` made; makes none itself.

    Reads of `folder` only topology's and the database's secrets. Raises `Problem`: `setup.unreachable` for a
    server that takes no connection within `patience` seconds, `setup.refused` with its reason for one that refuses.
    """
    layout, specs = Apart(folder), services()
    passwords = {name: _text(layout.private(name, "database_password")) for name in specs}
    administrator = layout.private("postgres", "password")
    password = _text(administrator) if administrator.exists() else None
    identity, keys = layout.private(TOPOLOGY, "identity.nk"), layout.private(TOPOLOGY, "s3.json")

    async def streams() -> None:
        # The bus waits for a server that is starting without end, and for one whose certificate it does not believe.
        await asyncio.wait_for(install.topology(identity, where.nats, specs.values(), replicas), patience)

    await _on("PostgreSQL", where.database, patience, lambda: install.schemas(where.database, password, specs.values(), passwords))
    await _on("S3", where.s3, patience, lambda: install.buckets(where.s3, keys))
    await _on("NATS", where.nats, patience, streams)


async def _on(server: str, url: str, patience: float, work: Callable[[], Awaitable[None]]) -> None:
    """Do `work` as soon as its server takes connections. Raises `Problem`."""
    address = urlsplit(url)
    host, port = address.hostname or "", address.port or _PORTS.get(address.scheme, 443)

    async def listening() -> bool:
        _, writer = await asyncio.open_connection(host, port)
        writer.close()
        return True

    try:
        async with asyncio.timeout(patience):
            await probe.until(listening, every=0.2)
    except TimeoutError:
        raise Problem("setup.unreachable", server=server, address=f"{host}:{port}", seconds=patience) from None
    try:
        await work()
    except Problem:
        raise
    except Exception as error:
        # A driver's own message and nothing around it: the statement that failed may hold a password.
        reason = str(getattr(error, "orig", None) or error).partition("\n")[0] or type(error).__name__
        raise Problem("setup.refused", server=server, address=f"{host}:{port}", reason=reason) from None


def _settings(prepared: Prepared, name: str, where: Servers) -> None:
    spec = prepared.specs[name]
    values: dict[str, Any] = {"nats_url": where.nats, "port": 8443 if spec.http else 8080}
    if name not in WITHOUT_OBJECTS:
        keys = prepared.layout.private(name, "s3.json")
        kek = str(prepared.layout.private(name, OBJECTS))
        values["objects"] = ObjectSettings(s3_url=where.s3, s3_credentials=keys, spool=where.spool, keys=kek).model_dump(mode="json")
    material.settings(prepared.layout, spec, where.database, values)


def _names(name: str) -> tuple[str, ...]:
    """Its name for its neighbours, for other namespaces of a cluster, and for a probe beside it."""
    return name, f"{name}.medmesh", f"{name}.medmesh.svc", "localhost", "127.0.0.1"


def _s3_keys(path: Path) -> dict[str, str]:
    """The pair in a file, made when there is none: keys of an S3 of somebody else's are put there by its operator."""
    if not path.exists():
        files.write(path, json.dumps({"access_key": secrets.token_hex(10), "secret_key": secrets.token_urlsafe(32)}))
    pair: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
    return pair


def _s3_user(name: str, pair: dict[str, str]) -> dict[str, Any]:
    """An identity as `weed s3 -config` reads it: who makes buckets, and who fills them."""
    credentials = [{"accessKey": pair["access_key"], "secretKey": pair["secret_key"]}]
    return {"name": name, "credentials": credentials, "actions": {TOPOLOGY: ADMINISTRATOR, "audit": LOG}.get(name, SERVICE)}


def _text(path: Path) -> str:
    return read_secret(path).decode().strip()
