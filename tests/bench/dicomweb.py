"""DICOMweb of a node against Orthanc's in the same run, by the same client: storing, queries, lists, metadata.

The node answers with what Orthanc does not do: each request's token is looked up and its record is on the disk before the answer. Orthanc
and its plugin are Debian's `orthanc` and `orthanc-dicomweb`; where they are not installed there is no peer to compare with.
"""

from __future__ import annotations

import asyncio
import http.client
import io
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pydicom
from pydicom.data import get_testdata_file

from medmesh.archive import header, index
from medmesh.archive.tables import open_archive, scope, transaction
from medmesh.embedded.ports import Ports
from tests.bench.common import Measure, Run, medians, percentile

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
STORED, MANY, PER_STUDY = 4000, 100_000, 20
TURNS, TURN = 5, 200
NAMES = ("dicom.stow_small", "dicom.qido_p50", "dicom.qido_100k", "dicom.wado_metadata")
PREFIX = "1.2.826.0.1.3680043.8.498."


@dataclass(frozen=True)
class Root:
    """A DICOMweb root and what to show it."""

    port: int
    path: str
    token: str = ""

    def connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)

    def call(self, connection: http.client.HTTPConnection, method: str, path: str, body: bytes | None = None, **headers: str) -> bytes:
        given = {"Accept": "application/dicom+json", **headers}
        if self.token:
            given["Authorization"] = f"Bearer {self.token}"
        connection.request(method, self.path + path, body, given)
        answer = connection.getresponse()
        data = answer.read()
        assert answer.status == 200, (answer.status, data[:200])
        return data


def measure(names: Sequence[str]) -> list[Measure]:
    """Every figure whose name begins with one of these."""
    if names and not any(one.startswith(name) for one in NAMES for name in names):
        return []
    found = asyncio.run(_all())
    return [one for one in found if not names or one.name.startswith(tuple(names))]


def objects() -> Callable[[int], bytes]:
    """CT_small (39 KB) as any number of objects: 10 in a series, 2 series in a study, a study a patient."""
    dataset = pydicom.dcmread(str(get_testdata_file("CT_small.dcm")))
    marks = {"PatientID": "P000000", "AccessionNumber": "A000000", "StudyDate": "20100101"}
    uids = {"StudyInstanceUID": "7" * 12, "SeriesInstanceUID": "8" * 12, "SOPInstanceUID": "9" * 12}
    for keyword, value in marks.items():
        setattr(dataset, keyword, value)
    for keyword, value in uids.items():
        setattr(dataset, keyword, PREFIX + value)
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    template = buffer.getvalue()

    def made(number: int) -> bytes:
        study, series = number // PER_STUDY, number // 10
        return (
            template.replace(b"7" * 12, b"1%011d" % study)
            .replace(b"8" * 12, b"2%011d" % series)
            .replace(b"9" * 12, b"3%011d" % number)
            .replace(b"P000000", b"P%06d" % study)
            .replace(b"A000000", b"A%06d" % study)
            .replace(b"20100101", b"20%02d%02d%02d" % (10 + study % 15, 1 + study % 12, 1 + study % 28))
        )

    return made


@contextmanager
def node(folder: Path) -> Iterator[Root]:
    """A node's local page in a process of its own."""
    command = [sys.executable, "-m", "tests.bench.dicomweb_node", str(folder)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        port, token = process.stdout.readline().split()
        yield Root(int(port), "/dicom-web/bench", token)
    finally:
        process.communicate(timeout=60)


@contextmanager
def orthanc(folder: Path) -> Iterator[Root | None]:
    """Debian's, with an empty store; without DIMSE, which would listen on every address."""
    binary = shutil.which("Orthanc", path="/usr/sbin:/usr/bin")
    if binary is None or not PLUGIN.exists():
        yield None
        return
    folder.mkdir()
    ports = Ports(folder / "ports.json")
    (port,) = ports.take("orthanc")
    settings = {
        "StorageDirectory": str(folder), "IndexDirectory": str(folder), "HttpPort": port, "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False, "DicomServerEnabled": False, "OverwriteInstances": False, "Plugins": [str(PLUGIN)],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/", "StudiesMetadata": "Full", "SeriesMetadata": "Full"},
    }  # fmt: skip
    (folder / "orthanc.json").write_text(json.dumps(settings))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([binary, str(folder / "orthanc.json")], stdout=log, stderr=log)
    root = Root(port, "/dicom-web")
    try:
        for _ in range(200):
            try:
                root.call(root.connection(), "GET", "/studies?limit=1")
                break
            except OSError:
                time.sleep(0.1)
        yield root
    finally:
        process.terminate()
        process.wait(30)
        ports.close()


def store(root: Root, made: Callable[[int], bytes], numbers: range, batch: int, clients: int) -> float:
    """Objects a second, so many a request, by so many clients."""
    bodies = []
    for start in range(numbers.start, numbers.stop, batch):
        parts = (
            b"--b\r\nContent-Type: application/dicom\r\n\r\n" + made(n) + b"\r\n" for n in range(start, min(start + batch, numbers.stop))
        )
        bodies.append(b"".join(parts) + b"--b--\r\n")

    def work(mine: list[bytes]) -> None:
        connection = root.connection()
        for body in mine:
            root.call(connection, "POST", "/studies", body, **{"Content-Type": 'multipart/related; type="application/dicom"; boundary=b'})

    async def all_clients() -> None:
        await asyncio.gather(*(asyncio.to_thread(work, bodies[one::clients]) for one in range(clients)))

    began = time.perf_counter()
    asyncio.run(all_clients())
    return len(numbers) / (time.perf_counter() - began)


def latency(root: Root, path: str, times: int) -> Run:
    """The median of so many calls on one connection, in ms."""

    def work() -> float:
        connection, taken = root.connection(), []
        root.call(connection, "GET", path)
        for _ in range(times):
            began = time.perf_counter()
            root.call(connection, "GET", path)
            taken.append((time.perf_counter() - began) * 1e3)
        return percentile(taken, 50)

    return lambda: asyncio.to_thread(work)


async def _all() -> list[Measure]:
    made = objects()
    like = header.read(io.BytesIO(made(0)))
    with tempfile.TemporaryDirectory(prefix="medmesh-bench-") as place, orthanc(Path(place) / "orthanc") as peer:
        folder = Path(place)
        with node(folder / "node") as ours:
            found = [await _stored([ours, *([peer] if peer else [])], made)]
        if peer:
            await asyncio.to_thread(store, peer, made, range(TURNS * TURN, STORED), 50, 2)
        with node(folder / "asked") as ours:  # queries and metadata are answered from the index alone: its objects are not needed
            await asyncio.to_thread(_fill, folder / "asked" / "archive", like, 0, STORED)
            found += await _asked([ours, *([peer] if peer else [])])
            best = next(one.peer_value for one in found if one.name == "dicom.qido_p50")
            await asyncio.to_thread(_fill, folder / "asked" / "archive", like, STORED, MANY)
            (value,) = await medians(latency(ours, "/studies?PatientID=P000007", 60))
    told: dict[str, Any] = {"peer": "Orthanc at 4,000", "peer_value": best, "goal": 2 * best} if best else {}
    return [*found, Measure("dicom.qido_100k", value, "ms", **told)]


async def _stored(roots: Sequence[Root], made: Callable[[int], bytes]) -> Measure:
    """In turns, by the median turn; 10 objects a request, two clients."""
    turns = {place: iter(range(0, TURNS * TURN, TURN)) for place in range(len(roots))}

    def turn(place: int) -> Run:
        def work() -> float:
            start = next(turns[place])
            return store(roots[place], made, range(start, start + TURN), 10, 2)

        return lambda: asyncio.to_thread(work)

    values = await medians(*(turn(place) for place in range(len(roots))), repeats=TURNS)
    return _compared("dicom.stow_small", "objects/s", values, 1.0, "more")


async def _asked(roots: Sequence[Root]) -> list[Measure]:
    study = f"{PREFIX}1{7:011d}"
    cases: list[tuple[str, str, int, float]] = [
        ("dicom.qido_p50", "/studies?PatientID=P000007", 60, 1.0),
        ("dicom.qido_p50_studies_100", "/studies?limit=100&offset=50", 10, 0.2),
        ("dicom.qido_p50_instances_200", "/instances?Modality=CT&limit=200", 5, 0.2),
        ("dicom.wado_metadata", f"/studies/{study}/metadata", 20, 0.6),
    ]
    found = []
    for name, path, times, goal in cases:
        found.append(_compared(name, "ms", await medians(*(latency(root, path, times) for root in roots)), goal, "less"))
    return found


def _fill(folder: Path, like: header.Entry, first: int, last: int) -> None:
    """Into the index, without their objects."""
    connection = open_archive(folder)
    for start in range(first, last, 2000):
        with transaction(connection):
            place = scope(connection, "bench", "original")
            for number in range(start, min(start + 2000, last)):
                study, series = number // PER_STUDY, number // 10
                row = connection.execute(
                    "INSERT INTO objects (scope, sha256, bytes, state, at) VALUES (?, ?, 1, 'cleaned', 1) RETURNING id",
                    (place, f"{number:064x}"),
                ).fetchone()
                uids = {"study": f"{PREFIX}1{study:011d}", "series": f"{PREFIX}2{series:011d}", "sop": f"{PREFIX}3{number:011d}"}
                assert index.put(connection, place, row[0], replace(like, patient_id=f"P{study:06d}", **uids)) is None
    connection.close()


def _compared(name: str, unit: str, values: Sequence[float], goal: float, better: str) -> Measure:
    """A figure and its peer's; the goal is so many times the peer's."""
    peer: float | None = values[1] if len(values) > 1 else None
    told: dict[str, Any] = {"peer": "Orthanc", "peer_value": peer, "goal": goal * peer} if peer else {}
    return Measure(name, values[0], unit, better=better, **told)
