"""The whole platform on one data folder: servers, identities, authority, settings, topology, migrations, services.

    python -m medmesh.embedded.platform --data FOLDER

prints one JSON object a line while it starts and then stays until it is told to stop; `medmesh up` runs it in the background.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import ssl
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medmesh import telemetry
from medmesh.bus.topology import TOPOLOGY
from medmesh.embedded import files, install, material, probe, servers
from medmesh.embedded.layout import Together
from medmesh.embedded.material import Prepared
from medmesh.embedded.nursery import ENVIRONMENT
from medmesh.embedded.ports import HOST
from medmesh.embedded.process import Command
from medmesh.embedded.supervisor import Supervisor
from medmesh.errors import Problem
from medmesh.security.residue import lock_down
from medmesh.service.settings import ObjectSettings
from medmesh.service.spec import ServiceSpec
from medmesh.store.objects.open import LABEL as OBJECTS
from medmesh.telemetry.logs import log

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
        """A fork of the nursery, which runs in the interpreter we run in."""
        argv = ("medmesh.service", self.spec.name, "--settings", str(self.settings))
        return Command(argv, cwd=self.settings.parent, env=ENVIRONMENT, grace=15.0, nursery=True)

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
        password = started.postgres.password.read_text().strip() if started.postgres else None
        await asyncio.gather(
            install.topology(prepared.layout.private(TOPOLOGY, "identity.nk"), nats, prepared.specs.values()),
            install.schemas(postgres, password, prepared.specs.values(), prepared.passwords),
        )
        progress({"step": "topology"})
        objects = ObjectSettings(
            s3_url=s3, s3_credentials=keys, spool=folder / "spool", keys=str(prepared.layout.private("", OBJECTS))
        ).model_dump(mode="json")
        common = {"nats_url": nats, "objects": objects, "telemetry": folder / "telemetry", "host": external.host}
        processes = []
        for spec in prepared.specs.values():
            (port,) = supervisor.ports.take(f"service.{spec.name}")
            files.folder(prepared.layout.private(spec.name, "state"))
            file = material.settings(prepared.layout, spec, postgres, {**common, "port": port})
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


def prepare(folder: Path) -> Prepared:
    """What a platform on this machine needs, below its data folder."""
    return material.prepare(Together(folder), lambda name: (HOST, "localhost"))


def main() -> int:
    """Entry point of the supervising process."""
    parser = argparse.ArgumentParser(prog="medmesh.embedded.platform", description="Keep the whole platform running on one data folder.")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--nats", default="")
    parser.add_argument("--postgres", default="")
    parser.add_argument("--s3", default="")
    parser.add_argument("--s3-credentials", type=Path)
    arguments = parser.parse_args()
    lock_down()
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
