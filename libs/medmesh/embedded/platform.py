"""The whole platform on one data folder: servers, identities, authority, settings, topology, migrations, services.

    python -m medmesh.embedded.platform --data FOLDER

prints one JSON object a line while it starts and then stays until it is told to stop; `medmesh up` runs it in the background.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import secrets
import signal
import ssl
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medmesh import telemetry
from medmesh.bus.nats_bus import NatsBus
from medmesh.bus.topology import OPERATOR, TOPOLOGY, administrators, apply, permissions
from medmesh.embedded import files, probe, servers
from medmesh.embedded.nats import NatsUser
from medmesh.embedded.ports import HOST
from medmesh.embedded.process import Command
from medmesh.embedded.supervisor import Supervisor
from medmesh.errors import Problem
from medmesh.ledger.note import verifier_key
from medmesh.security.authority import Authority
from medmesh.security.keys import Identity
from medmesh.security.tokens import TrustBundle
from medmesh.service.settings import ObjectSettings
from medmesh.service.spec import ServiceSpec, services
from medmesh.store import migrate
from medmesh.telemetry.logs import log

ORIGIN = "medmesh/log"
Progress = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class External:
    """Servers that somebody else runs; empty means embedded. The PostgreSQL URL is an administrator's."""

    nats: str = ""
    postgres: str = ""
    s3: str = ""
    s3_credentials: Path | None = None
    host: str = HOST
    """Where the services' HTTP listens."""


@dataclass
class Prepared:
    """What was made or found in a data folder before anything runs."""

    folder: Path
    specs: dict[str, ServiceSpec]
    identities: dict[str, Identity]
    authority: Authority
    trust: TrustBundle
    passwords: dict[str, str] = field(repr=False, default_factory=dict)

    def users(self) -> list[NatsUser]:
        """Everybody the bus lets in, each with exactly the subjects it declared."""
        granted = [*(permissions(spec) for spec in self.specs.values()), *administrators()]
        return [NatsUser(g.identity, self.identities[g.identity].public, g.publish, g.subscribe, g.responses) for g in granted]


def prepare(folder: Path, names: tuple[str, ...] = (HOST, "localhost")) -> Prepared:
    """Make what is missing: identities, the authority, the server certificate, passwords, the bootstrap token, the trust bundle."""
    secret = files.folder(folder / "secrets")
    specs = services()
    identities = {name: Identity.ensure(secret / f"{name}.nk") for name in (*specs, TOPOLOGY, OPERATOR)}
    release, log_key = Identity.ensure(secret / "release.nk"), Identity.ensure(secret / "log.nk")
    authority = Authority.ensure(files.folder(secret / "authority"))
    if not (secret / "server.key").exists():
        certificate, key = authority.issue_server(names)
        (secret / "server.pem").write_bytes(certificate)
        files.write(secret / "server.key", key.decode())
    files.write(folder / "ca.pem", authority.certificate_pem)
    if not (secret / "bootstrap.sha256").exists():
        token = secrets.token_urlsafe(24)
        files.write(secret / "bootstrap.token", token)
        files.write(secret / "bootstrap.sha256", hashlib.sha256(token.encode()).hexdigest())
    trust = TrustBundle(
        platform="medmesh",
        services={name: identities[name].public for name in (*specs, OPERATOR)},
        release_key=release.public,
        log_key=verifier_key(ORIGIN, log_key.private_key.public_key()),
        ca_pem=authority.certificate_pem,
    )
    if (folder / "trust.json").exists():
        trust.revoked = TrustBundle.load(folder / "trust.json").revoked
    trust.save(folder / "trust.json")
    passwords = {name: files.password(secret / f"{name}.password") for name in specs}
    return Prepared(folder, specs, identities, authority, trust, passwords)


def settings(prepared: Prepared, spec: ServiceSpec, nats: str, postgres: str, s3: str, credentials: Path, port: int, host: str) -> Path:
    """Write a service's settings file; answers where."""
    folder, secret = prepared.folder, prepared.folder / "secrets"
    user = f"//medmesh_{spec.name}@"
    values: dict[str, Any] = {
        "nats_url": nats,
        "identity": secret / f"{spec.name}.nk",
        "database_url": "//".join(postgres.split("//", 1)[:1]) + user + postgres.split("@", 1)[1],
        "database_password": secret / f"{spec.name}.password",
        "trust": folder / "trust.json",
        "objects": ObjectSettings(s3_url=s3, s3_credentials=credentials, spool=folder / "spool").model_dump(mode="json"),
        "state": files.folder(folder / "state" / spec.name),
        "telemetry": folder / "telemetry",
        "host": host,
        "port": port,
    }
    special = {
        "authority": secret / "authority",
        "bootstrap_token": secret / "bootstrap.sha256",
        "key": secret / "ingestion.key",
        "release_key": secret / "release.nk",
        "log_key": secret / "log.nk",
        "origin": ORIGIN,
        "client_ca": folder / "ca.pem",
    }
    values |= {name: value for name, value in special.items() if name in spec.settings.model_fields}
    if spec.http:
        values |= {"tls_certificate": secret / "server.pem", "tls_key": secret / "server.key"}
    path = files.folder(folder / "settings") / f"{spec.name}.json"
    files.write(path, json.dumps(values, default=str, indent=1))
    return path


@dataclass(frozen=True)
class ServiceProcess:
    """A service as something the supervisor keeps running."""

    spec: ServiceSpec
    settings: Path
    port: int
    ca: Path

    @property
    def name(self) -> str:
        """The service's."""
        return self.spec.name

    def command(self) -> Command:
        """The interpreter we run in."""
        argv = (sys.executable, "-P", "-m", "medmesh.service", self.spec.name, "--settings", str(self.settings))
        return Command(argv, cwd=self.settings.parent, env={"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}, grace=15.0)

    async def ready(self) -> None:
        """Its readiness endpoint says so."""
        context = ssl.create_default_context(cafile=str(self.ca)) if self.spec.http else None

        async def healthy() -> bool:
            reader, writer = await asyncio.open_connection(HOST, self.port, ssl=context)
            try:
                writer.write(f"GET /health/ready HTTP/1.0\r\nHost: {HOST}\r\n\r\n".encode())
                return b" 200 " in await reader.readline()
            finally:
                writer.close()

        await probe.until(healthy, every=0.05)


async def run(folder: Path, progress: Progress, external: External | None = None) -> None:
    """Start everything, say so, and stay until SIGTERM or SIGINT."""
    external = external or External()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with Supervisor(folder) as supervisor:
        prepared = await asyncio.to_thread(prepare, folder)
        progress({"step": "prepared"})
        started = await servers.start(
            supervisor, nats=not external.nats, postgres=not external.postgres, s3=not external.s3, users=prepared.users()
        )
        progress({"step": "servers"})
        nats = started.nats.url if started.nats else external.nats
        postgres = started.postgres.address if started.postgres else external.postgres
        s3, keys = (started.seaweedfs.url, started.seaweedfs.credentials) if started.seaweedfs else (external.s3, external.s3_credentials)
        assert keys is not None
        admin = postgres
        if started.postgres:
            admin = postgres.replace("@", f":{started.postgres.password.read_text().strip()}@", 1)
        await asyncio.gather(install_topology(prepared, nats), install_schemas(prepared, admin))
        progress({"step": "topology"})
        processes = []
        for spec in prepared.specs.values():
            (port,) = supervisor.ports.take(f"service.{spec.name}")
            file = settings(prepared, spec, nats, postgres, s3, keys, port, external.host)
            processes.append(ServiceProcess(spec, file, port, folder / "ca.pem"))
        urls = {p.name: f"{'https' if p.spec.http else 'http'}://{HOST}:{p.port}" for p in processes}
        supervisor.publish(urls=urls, paths={"ca": folder / "ca.pem", "trust": folder / "trust.json", "telemetry": folder / "telemetry"})

        async def begin(process: ServiceProcess) -> None:
            await supervisor.start(process)
            progress({"step": "service", "name": process.name, "url": urls[process.name]})

        await asyncio.gather(*(begin(process) for process in processes))
        supervisor.run.ready = True
        supervisor.publish()
        progress({"step": "ready"})
        await stop.wait()
        log("platform.stopping")


async def install_topology(prepared: Prepared, nats: str) -> None:
    """Streams and consumers, with the one identity that may make them."""
    bus = await NatsBus.connect(nats, name=TOPOLOGY, seed=prepared.folder / "secrets" / f"{TOPOLOGY}.nk")
    try:
        await apply(bus, prepared.specs.values())
    finally:
        await bus.close()


async def install_schemas(prepared: Prepared, admin: str) -> None:
    """Roles, schemas and migrations."""
    schemas = [migrate.Schema(name, spec.metadata, spec.migrations) for name, spec in prepared.specs.items()]
    await migrate.apply(admin, schemas, prepared.passwords)


def main() -> int:
    """Entry point of the supervising process."""
    parser = argparse.ArgumentParser(prog="medmesh.embedded.platform", description="Keep the whole platform running on one data folder.")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--nats", default="")
    parser.add_argument("--postgres", default="")
    parser.add_argument("--s3", default="")
    parser.add_argument("--s3-credentials", type=Path)
    arguments = parser.parse_args()
    telemetry.start("supervisor")

    def progress(step: dict[str, Any]) -> None:
        try:
            print(json.dumps(step), flush=True)
        except BrokenPipeError:  # whoever watched has gone; the platform stays
            sys.stdout = open("/dev/null", "w")  # noqa: SIM115

    external = External(arguments.nats, arguments.postgres, arguments.s3, arguments.s3_credentials)
    try:
        asyncio.run(run(arguments.data.absolute(), progress, external))
    except Problem as problem:
        progress({"problem": problem.document()})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
