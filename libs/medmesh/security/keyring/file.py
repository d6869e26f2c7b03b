"""Keys as files 0600, one a version, in a folder that belongs to one domain of trust: `LABEL.VERSION.wrap`, `LABEL.VERSION.sign`.

Nothing is cached: a version whose file was destroyed is destroyed for every process at once, and a new one is used at once.
"""

from __future__ import annotations

import base64
import os
from pathlib import Path

from medmesh.errors import Problem
from medmesh.security import suites
from medmesh.security.keyring.memory import MemoryKey
from medmesh.security.keyring.port import Kind, Wrapped, valid
from medmesh.security.keys import read_secret, write_secret


class FileKeys:
    """See `medmesh.security.keyring.port.KeyProvider`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def ensure(self, label: str, kind: Kind = "wrap", suite: str = suites.DEFAULT) -> FileKeys:
        """This provider, with a first version of the label when it has none."""
        if not self.versions(label):
            self.create(label, kind, suite)
        return self

    def create(self, label: str, kind: Kind, suite: str) -> int:
        chosen, there = suites.suite(suite), self._there(valid(label))
        if any(found != kind for found in there.values()):
            raise Problem("keyring.kind", label=label)
        version = max(there, default=0) + 1
        if kind == "sign":
            pair = chosen.generate()
            secret = pair.private + pair.public
        else:
            secret = chosen.new_key()
        try:
            write_secret(self._path(label, version, kind), f"{suite}\n{base64.b64encode(secret).decode()}\n".encode())
        except FileExistsError:  # somebody else made it meanwhile
            return version
        _sync(self.folder)
        return version

    def versions(self, label: str) -> list[int]:
        return sorted(self._there(valid(label)))

    def wrap(self, label: str, secret: bytes, bound: bytes) -> str:
        version = self._newest(label, "wrap")
        suite, key = self._read(label, version, "wrap")
        return MemoryKey(label, suite.name, key, version).wrap(label, secret, bound)

    def unwrap(self, label: str, wrapped: str, bound: bytes) -> bytes:
        found = Wrapped.parse(wrapped)
        if found.label != valid(label):
            raise Problem("keyring.refused", label=label)
        suite, key = self._read(label, found.version, "wrap")
        return MemoryKey(label, suite.name, key, found.version).unwrap(label, wrapped, bound)

    def sign(self, label: str, data: bytes) -> str:
        suite, key = self._read(label, self._newest(label, "sign"), "sign")
        return suites.signed(suite.name, suites.Pair(key[:32], key[32:]), data)

    def public(self, label: str) -> tuple[str, bytes]:
        suite, key = self._read(label, self._newest(label, "sign"), "sign")
        return suite.name, key[32:]

    def destroy(self, label: str, version: int) -> None:
        for kind in ("wrap", "sign"):
            path = self._path(valid(label), version, kind)
            if path.exists():
                shred(path)
        _sync(self.folder)

    def _path(self, label: str, version: int, kind: str) -> Path:
        return self.folder / f"{label}.{version}.{kind}"

    def _there(self, label: str) -> dict[int, str]:
        found, names = {}, os.listdir(self.folder) if self.folder.exists() else ()
        for name in names:  # not a `glob`: a node looks for its keys some twenty times a round
            whose, _, rest = name.partition(".")
            version, _, kind = rest.partition(".")
            if whose == label and version.isdecimal() and kind in ("wrap", "sign"):
                found[int(version)] = kind
        return found

    def _newest(self, label: str, kind: Kind) -> int:
        there = self._there(valid(label))
        if not there:
            raise Problem("keyring.unknown", label=label)
        newest = max(there)
        if there[newest] != kind:
            raise Problem("keyring.kind", label=label)
        return newest

    def _read(self, label: str, version: int, kind: Kind) -> tuple[suites.Suite, bytes]:
        path = self._path(label, version, kind)
        if not path.exists():
            raise Problem("keyring.gone", label=label, version=version)
        name, _, encoded = read_secret(path).decode().strip().partition("\n")
        try:
            return suites.suite(name), base64.b64decode(encoded, validate=True)
        except ValueError:
            raise Problem("security.key_unreadable", file=path.name, reason="not Base64") from None


def shred(path: Path) -> None:
    """Overwrite a small file before its name goes. Disks that remap blocks may keep a copy: what counts is that nothing else has it."""
    with path.open("r+b", buffering=0) as file:
        file.write(os.urandom(path.stat().st_size))
        os.fsync(file.fileno())
    path.unlink()


def _sync(folder: Path) -> None:
    if not folder.exists():
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
