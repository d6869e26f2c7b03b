"""Keys in a process of their own: it wraps, unwraps and signs by label over a Unix socket, and never tells a key.

    python -m medmesh.security.keyring.keeper --folder KEYS --socket SOCKET [--allow LABEL ...]

It stands where a hardware module would: the same calls, by label. Whoever may use it is decided twice, by the folder the socket lies
in and by the account the kernel names for the other end; creating and destroying keys is for the keeper's own command line, not for
services. A message is four bytes of length and a JSON object, in both directions.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import socket
import socketserver
import struct
import sys
from pathlib import Path
from typing import Any

from medmesh.errors import Problem
from medmesh.security.keyring.file import FileKeys
from medmesh.security.keyring.port import Kind, valid

LARGEST = 1 << 20
SECONDS = 10.0


class KeeperKeys:
    """See `medmesh.security.keyring.port.KeyProvider`: the calls go to a keeper, each over a connection of its own."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def create(self, label: str, kind: Kind, suite: str) -> int:
        raise Problem("keyring.read_only")

    def destroy(self, label: str, version: int) -> None:
        raise Problem("keyring.read_only")

    def versions(self, label: str) -> list[int]:
        return [int(version) for version in self._ask(call="versions", label=valid(label))["versions"]]

    def wrap(self, label: str, secret: bytes, bound: bytes) -> str:
        return str(self._ask(call="wrap", label=valid(label), data=_text(secret), bound=_text(bound))["wrapped"])

    def unwrap(self, label: str, wrapped: str, bound: bytes) -> bytes:
        return base64.b64decode(self._ask(call="unwrap", label=valid(label), wrapped=wrapped, bound=_text(bound))["data"])

    def sign(self, label: str, data: bytes) -> str:
        return str(self._ask(call="sign", label=valid(label), data=_text(data))["signature"])

    def public(self, label: str) -> tuple[str, bytes]:
        answer = self._ask(call="public", label=valid(label))
        return str(answer["suite"]), base64.b64decode(answer["public"])

    def _ask(self, **request: str) -> dict[str, Any]:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.settimeout(SECONDS)
                connection.connect(str(self._path))
                _send(connection, json.dumps(request).encode())
                found: dict[str, Any] = json.loads(_receive(connection))
        except OSError as error:
            raise Problem("keyring.unreachable", reason=error.strerror or type(error).__name__) from None
        if "problem" in found:
            raise Problem.from_document({"code": found["problem"], "params": found["params"]})
        return found


class Keeper(socketserver.ThreadingUnixStreamServer):
    """The server: `labels` are those it answers for; empty means every label of its folder."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, path: Path, keys: FileKeys, labels: frozenset[str] = frozenset()) -> None:
        path.unlink(missing_ok=True)
        before = os.umask(0o177)
        try:
            super().__init__(str(path), _Conversation)
        finally:
            os.umask(before)
        self.keys = keys
        self.labels = labels

    def answer(self, request: dict[str, str]) -> dict[str, Any]:
        """One call. Raises `Problem`."""
        label, call = valid(request.get("label", "")), request.get("call")
        if self.labels and label not in self.labels:
            raise Problem("keyring.unknown", label=label)
        bound = base64.b64decode(request.get("bound", ""))
        data = base64.b64decode(request.get("data", ""))
        match call:
            case "versions":
                return {"versions": self.keys.versions(label)}
            case "wrap":
                return {"wrapped": self.keys.wrap(label, data, bound)}
            case "unwrap":
                return {"data": _text(self.keys.unwrap(label, request["wrapped"], bound))}
            case "sign":
                return {"signature": self.keys.sign(label, data)}
            case "public":
                suite, public = self.keys.public(label)
                return {"suite": suite, "public": _text(public)}
        raise Problem("keyring.read_only")


class _Conversation(socketserver.BaseRequestHandler):
    server: Keeper

    def handle(self) -> None:
        credentials = self.request.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        _, uid, _ = struct.unpack("3i", credentials)
        if uid != os.geteuid():
            return
        while True:
            try:
                request = json.loads(_receive(self.request))
                answer = self.server.answer(request)
            except Problem as problem:
                answer = {"problem": problem.code, "params": {name: str(value) for name, value in problem.params.items()}}
            except (ValueError, KeyError, AttributeError):
                answer = {"problem": "keyring.refused", "params": {"label": "?"}}
            except OSError:
                return
            try:
                _send(self.request, json.dumps(answer).encode())
            except OSError:
                return


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _send(connection: socket.socket, message: bytes) -> None:
    connection.sendall(struct.pack(">I", len(message)) + message)


def _receive(connection: socket.socket) -> bytes:
    (length,) = struct.unpack(">I", _exactly(connection, 4))
    if length > LARGEST:
        raise OSError("too long a message")
    return _exactly(connection, length)


def _exactly(connection: socket.socket, length: int) -> bytes:
    parts = []
    while length:
        part = connection.recv(length)
        if not part:
            raise ConnectionResetError("closed")
        parts.append(part)
        length -= len(part)
    return b"".join(parts)


def main() -> int:
    """Entry point of the keeper's process."""
    from medmesh.security.residue import lock_down

    parser = argparse.ArgumentParser(prog="medmesh.security.keyring.keeper", description="Wrap, unwrap and sign by label; tell no key.")
    parser.add_argument("--folder", type=Path, required=True, help="the keys, a folder 0700")
    parser.add_argument("--socket", type=Path, required=True, help="where to listen; only this account may connect")
    parser.add_argument("--allow", action="append", default=[], metavar="LABEL", help="answer for these labels only")
    arguments = parser.parse_args()
    lock_down()
    with Keeper(arguments.socket, FileKeys(arguments.folder), frozenset(arguments.allow)) as keeper:
        print(json.dumps({"listening": str(arguments.socket)}), flush=True)
        keeper.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
