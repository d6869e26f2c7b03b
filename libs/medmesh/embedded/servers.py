"""The three servers of a platform on one data folder."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medmesh.embedded import files, placement
from medmesh.embedded.nats import Nats, NatsUser
from medmesh.embedded.postgres import Postgres
from medmesh.embedded.process import Server
from medmesh.embedded.seaweedfs import PORTS, SeaweedFS
from medmesh.embedded.supervisor import Supervisor


@dataclass(frozen=True, slots=True)
class Servers:
    """What was asked for; None is somebody else's, reached by a URL."""

    nats: Nats | None
    postgres: Postgres | None
    seaweedfs: SeaweedFS | None


async def start(
    supervisor: Supervisor,
    *,
    nats: bool = True,
    postgres: bool = True,
    s3: bool = True,
    users: Sequence[NatsUser] | None = None,
    account: str | None = None,
    state: Path = placement.STATE,
) -> Servers:
    """Start those asked for, side by side, and write down where they are. Raises `Problem`, see `Supervisor.start`.

    `users` are the identities of NATS (None: open, for tests only); `account` is whom PostgreSQL runs as when we are root.
    """
    servers = await asyncio.to_thread(_prepare, supervisor, nats, postgres, s3, users, account, state)
    present: list[Server] = [server for server in (servers.nats, servers.postgres, servers.seaweedfs) if server]
    _publish(supervisor, servers)
    await supervisor.start(*present)
    return servers


def _prepare(
    supervisor: Supervisor, nats: bool, postgres: bool, s3: bool, users: Sequence[NatsUser] | None, account: str | None, state: Path
) -> Servers:
    folder = supervisor.folder
    secrets = files.folder(folder / "secrets")

    def port(name: str) -> int:
        return supervisor.ports.take(name)[0]

    return Servers(
        Nats.prepare(folder / "nats", port("nats"), port("nats.monitor"), users) if nats else None,
        Postgres.prepare(folder, port("postgres"), secrets / "postgres.password", account, state) if postgres else None,
        SeaweedFS.prepare(folder / "seaweedfs", {name: port(name) for name in PORTS}, secrets / "s3.json") if s3 else None,
    )


def _publish(supervisor: Supervisor, servers: Servers) -> None:
    urls: dict[str, str] = {}
    paths: dict[str, Path] = {}
    if servers.nats:
        urls["nats"] = servers.nats.url
        paths["nats"] = servers.nats.folder
    if servers.postgres:
        urls["postgres"] = servers.postgres.address
        paths |= {"postgres": servers.postgres.data, "postgres.password": servers.postgres.password}
    if servers.seaweedfs:
        urls["s3"] = servers.seaweedfs.url
        paths |= {"s3": servers.seaweedfs.folder, "s3.credentials": servers.seaweedfs.credentials}
    supervisor.publish(urls=urls, paths=paths)
