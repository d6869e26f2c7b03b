"""A hospital's node that receives, images for it, and senders."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import socket
import sqlite3
import struct
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.data import get_testdata_file

from medmesh.archive.tables import open_archive
from medmesh.dimse import wire
from medmesh.dimse.scu import Peer
from medmesh.security.keys import write_secret
from medmesh.tasks import end
from medmesh_edge.dicom import Processes
from medmesh_edge.ports import site
from medmesh_edge.settings import Layout, Settings

CT = "1.2.840.10008.5.1.4.1.1.2"
ROOT = "1.2.826.0.1.3680043.8.498.77"
SETTINGS = Settings(hospital="a", node="node-1", gateway="https://127.0.0.1:1")
RECEPTION = """
port = 0
receivers = {receivers}
cleaners = {cleaners}
settle_seconds = 0.5
reserve_mib = 0
[[accept]]
called = "BRAIN"
calling = ["CT1", "STORESCU"]
from = ["127.0.0.0/8"]
dataset = "brain"
[[peer]]
name = "self"
title = "BRAIN"
host = "127.0.0.1"
port = 1
"""


def node(folder: Path, *, receivers: int = 1, cleaners: int = 1) -> Layout:
    """The folder of a node that was enrolled and may receive."""
    SETTINGS.save(folder)
    layout = Layout(folder)
    layout.site_key.parent.mkdir(parents=True, exist_ok=True)
    write_secret(layout.site_key, b"0123456789abcdef0123456789abcdef")
    layout.policy.write_text("", encoding="utf-8")  # of a node from before approvals were asked for
    layout.dicom.write_text(RECEPTION.format(receivers=receivers, cleaners=cleaners), encoding="utf-8")
    return layout


def image(number: int, *, study: int = 0, **values: object) -> pydicom.Dataset:
    """A CT slice: of patient and study `study`, its instance `number`."""
    found = pydicom.dcmread(get_testdata_file("CT_small.dcm"))
    found.PatientID, found.PatientName = f"P{study:04}", f"Zhang^San{study}"
    found.StudyInstanceUID, found.SeriesInstanceUID = f"{ROOT}.1.{study}", f"{ROOT}.2.{study}"
    found.SOPInstanceUID = found.file_meta.MediaStorageSOPInstanceUID = f"{ROOT}.3.{study}.{number}"
    for keyword, value in values.items():
        setattr(found, keyword, value)
    return found


def stack(missing: int = 0, count: int = 5) -> list[pydicom.Dataset]:
    """A series, 1 mm apart, without its slice number `missing`."""
    dice = np.random.default_rng(1)
    made = []
    for number in range(1, count + 1):
        one = image(number, InstanceNumber=number, ImagePositionPatient=[0, 0, float(number)], ImageOrientationPatient=[1, 0, 0, 0, 1, 0])
        one.PixelData = dice.integers(0, 900, (one.Rows, one.Columns), np.int16).tobytes()
        made.append(one)
    return [one for one in made if one.InstanceNumber != missing]


def file(found: pydicom.Dataset) -> bytes:
    """As a file."""
    buffer = BytesIO()
    found.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def rows(folder: Path, query: str) -> list[tuple[object, ...]]:
    """What the archive's index holds."""
    connection = open_archive(folder / "archive", read_only=True)
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


def node_rows(folder: Path, query: str) -> list[tuple[Any, ...]]:
    """What the node's own store holds."""
    connection = sqlite3.connect(folder / "store.db")
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


def records(folder: Path) -> list[dict[str, Any]]:
    """The audit records that the node has yet to send."""
    return [json.loads(body) for (body,) in node_rows(folder, "SELECT body FROM audit_outbox ORDER BY n")]


def receiving(layout: Layout, us: str = "CT1") -> Peer:
    """The node, for one that sends."""
    return Peer("BRAIN", "127.0.0.1", int(layout.dicom_port.read_text()), us)


def children(name: str) -> list[int]:
    """The process ids of this process's own children that run the module `name`."""
    found = subprocess.run(["ps", "-o", "pid=,args=", "--ppid", str(os.getpid())], capture_output=True, text=True, check=False).stdout
    return [int(line.split()[0]) for line in found.splitlines() if name in line]


def kill(pid: int) -> None:
    """As a power cut would."""
    os.kill(pid, signal.SIGKILL)


async def until(ready: Callable[[], object], seconds: float = 60) -> None:
    """Wait for a truth. Raises `TimeoutError`."""
    async with asyncio.timeout(seconds):
        while not ready():
            await asyncio.sleep(0.05)


@asynccontextmanager
async def running(folder: Path, **settings: int) -> AsyncIterator[Layout]:
    """The processes of a node that receives, until the block ends."""
    layout = node(folder, **settings)
    async with site(folder) as at:
        task = asyncio.create_task(Processes(at).run())
        try:
            await until(lambda: layout.dicom_port.exists() and answers(layout))
            yield layout
        finally:
            await end(task)


def answers(layout: Layout) -> bool:
    """Whether anybody receives."""
    try:
        socket.create_connection(("127.0.0.1", int(layout.dicom_port.read_text())), timeout=5).close()
    except (OSError, ValueError):
        return False
    return True


def mutants(data: bytes, count: int, seed: int) -> Iterator[bytes]:
    """Files with 1 to 16 bytes of their first 4 KiB, or of anywhere, changed at random; every tenth is cut short, too."""
    dice = random.Random(seed)
    for number in range(count):
        made = bytearray(data)
        for _ in range(dice.randint(1, 16)):
            made[dice.randrange(132, 4096 if dice.random() < 0.7 else len(made))] = dice.randrange(256)
        yield bytes(made[: dice.randrange(200, len(made))] if number % 10 == 9 else made)


def data_set(data: bytes) -> bytes:
    """What of a file goes over the network."""
    return data[144 + int.from_bytes(data[140:144], "little") :]


class Sender:
    """A plain requestor that sends any bytes as a data set, one association for as long as it holds."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.associations = 0
        self._socket: socket.socket | None = None

    def status(self, data: bytes, sop: str) -> int | None:
        """What is answered; None when nobody did."""
        try:
            if self._socket is None:
                self._associate()
            command = struct.pack("<HHL", 0, 0x1000, len(sop) + len(sop) % 2) + sop.encode() + b"\0" * (len(sop) % 2)
            elements = ((2, CT.encode() + b"\0"), (0x100, b"\1\0"), (0x110, b"\1\0"), (0x800, b"\1\0"))
            command = b"".join(struct.pack("<HHL", 0, number, len(value)) + value for number, value in elements) + command
            sent = wire.pdu(wire.P_DATA, struct.pack(">LBB", len(command) + 2, 1, 3) + command)
            for start in range(0, max(1, len(data)), 60_000):
                part = data[start : start + 60_000]
                last = 2 * (start + 60_000 >= len(data))
                sent += wire.pdu(wire.P_DATA, struct.pack(">LBB", len(part) + 2, 1, last) + part)
            assert self._socket is not None
            self._socket.sendall(sent)
            body = self._answer(wire.P_DATA)
            return int.from_bytes(body[body.index(b"\0\0\0\t\2\0\0\0") + 8 :][:2], "little")
        except (OSError, ValueError):
            self.close()
            return None

    def _associate(self) -> None:
        self._socket = socket.create_connection(("127.0.0.1", int(self.layout.dicom_port.read_text())), timeout=20)
        self.associations += 1

        def item(kind: int, value: bytes) -> bytes:
            return struct.pack(">BBH", kind, 0, len(value)) + value

        context = item(0x20, bytes((1, 0, 0, 0)) + item(0x30, CT.encode()) + item(0x40, b"1.2.840.10008.1.2.1"))
        fixed = struct.pack(">HH", 1, 0) + b"BRAIN".ljust(16) + b"CT1".ljust(16) + bytes(32)
        user = item(0x50, item(0x51, struct.pack(">L", 16384)))
        self._socket.sendall(wire.pdu(wire.ASSOCIATE_RQ, fixed + item(0x10, wire.APPLICATION_CONTEXT.encode()) + context + user))
        self._answer(wire.ASSOCIATE_AC)

    def _answer(self, kind: int) -> bytes:
        head = self._exactly(6)
        if head[0] != kind:
            raise ValueError(head[0])
        return self._exactly(int.from_bytes(head[2:], "big"))

    def _exactly(self, count: int) -> bytes:
        assert self._socket is not None
        found = b""
        while len(found) < count:
            part = self._socket.recv(count - len(found))
            if not part:
                raise ConnectionResetError
            found += part
        return found

    def close(self) -> None:
        """End it."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
