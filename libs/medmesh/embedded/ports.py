"""Free ports on the loopback address, kept from one start to the next so that addresses do not change.

A port is reserved for the life of this process by a Unix socket in Linux's abstract name space, which is as wide as the
network name space that the ports belong to and vanishes with the process: two platforms that start side by side never
choose the same one, whoever owns them. Ports are taken from below the kernel's ephemeral range, so that no outgoing
connection sits on one while its server restarts.
"""

from __future__ import annotations

import json
import random
import socket
from pathlib import Path

from medmesh.embedded import files
from medmesh.errors import Problem

_LOWEST, _HIGHEST = 20_000, 32_767
HOST = "127.0.0.1"


class Ports:
    """The ports of one data folder, by name; `file` remembers them."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._held: list[socket.socket] = []
        self._known: dict[str, int] = json.loads(file.read_text()) if file.exists() else {}
        self.taken: dict[str, int] = {}

    def take(self, *names: str) -> list[int]:
        """A port for each name: the one it had before when that is free, else another. Raises `Problem` `embedded.no_port`."""
        for name in names:
            if name not in self.taken:
                before = self._known.get(name)
                self.taken[name] = before if before and self._reserve(before) else self._any()
        if self._known | self.taken != self._known:
            self._known |= self.taken
            files.write(self._file, json.dumps(self._known, indent=1))
        return [self.taken[name] for name in names]

    def close(self) -> None:
        """Let others have them."""
        for held in self._held:
            held.close()
        self._held.clear()

    def _any(self) -> int:
        for _ in range(2_000):
            port = random.randint(_LOWEST, _HIGHEST)  # noqa: S311 - nothing secret about it
            if port not in self._known.values() and self._reserve(port):
                return port
        raise Problem("embedded.no_port", lowest=_LOWEST, highest=_HIGHEST)

    def _reserve(self, port: int) -> bool:
        held = socket.socket(socket.AF_UNIX)
        try:
            held.bind(f"\0medmesh-port-{port}")
            with socket.socket() as trial:
                trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                trial.bind((HOST, port))
        except OSError:
            held.close()
            return False
        self._held.append(held)
        return True
