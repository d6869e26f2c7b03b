"""Receiving from a PACS, beside Orthanc: the same DCMTK client, the same files, in turn. Needs DCMTK's and Orthanc's packages.

Ours is the processes a node starts; an object is encrypted, on the disk and in the index before it is answered.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

from medmesh_edge.settings import Layout
from tests.bench.common import Measure, Run, medians
from tests.dicoms import children, image, rows, running, until

COUNT = int(os.environ.get("MEDMESH_BENCH_OBJECTS", "200"))
NAMES = (
    "dicom.cstore_small_1",
    "dicom.cstore_small_4",
    "dicom.cstore_stock_client",
    "dicom.cstore_med",
    "dicom.rss_64mb",
    "dicom.pipeline",
)
PIPELINE = 100.0
"""Objects a second from the first byte to the index, on two cores."""
QUICK = {"TCP_NODELAY": "1"}
"""What keeps DCMTK's own client and server from waiting for delayed acknowledgements; without it is what hospitals have."""


def measure(names: Sequence[str]) -> list[Measure]:
    """Every figure whose name begins with one of these."""
    if names and not any(one.startswith(name) for one in NAMES for name in names):
        return []
    if shutil.which("storescu") is None or shutil.which("Orthanc") is None:
        print("dicom.cstore: not measured, Orthanc and DCMTK are not installed (apt-get install orthanc dcmtk)")
        return []
    return [one for one in asyncio.run(_all()) if not names or one.name.startswith(tuple(names))]


async def _all() -> list[Measure]:
    with tempfile.TemporaryDirectory(prefix="medmesh-bench-") as place:
        folder = Path(place)
        (folder / "node").mkdir(mode=0o700)
        async with running(folder / "node", receivers=2, cleaners=1) as layout, _orthanc(folder) as peer:
            for pid in children("medmesh_edge.cleaner"):
                os.kill(pid, 19)  # SIGSTOP: what is measured is receiving
            ours = int(layout.dicom_port.read_text())
            found = []
            for name, frames, count, lanes, client, goal in (
                ("dicom.cstore_small_1", 1, COUNT, 1, QUICK, 0.9),
                ("dicom.cstore_small_4", 1, COUNT, 4, QUICK, 1.0),
                ("dicom.cstore_stock_client", 1, COUNT // 5, 1, {}, 2.0),
                ("dicom.cstore_med", 16, COUNT // 2, 1, QUICK, 1.0),
            ):
                mine, other = await medians(*(_sending(folder, name, port, frames, count, lanes, client) for port in (ours, peer)))
                found.append(Measure(name, mine, "objects/s", None, "Orthanc", other, goal=goal * other, better="more"))
            before = _peak(children("medmesh_edge.receiver"))
            await _sending(folder, "large", ours, 2048, 4, 4, QUICK)()
            after = _peak(children("medmesh_edge.receiver"))
            found.append(Measure("dicom.rss_64mb", after - before, "MiB", goal=64.0))
            for pid in children("medmesh_edge.cleaner"):
                os.kill(pid, 18)
        (folder / "whole").mkdir(mode=0o700)
        async with running(folder / "whole", receivers=2, cleaners=2) as layout:
            port = int(layout.dicom_port.read_text())
            (rate,) = await medians(_through(folder, layout, port))
            found.append(Measure("dicom.pipeline", rate, "objects/s", goal=PIPELINE, better="more"))
        return found


def _through(folder: Path, layout: Layout, port: int) -> Run:
    """Objects a second from the sender until each is de-identified, verified, checked, stored and indexed, and waits for its study."""
    sending = _sending(folder, "through", port, 1, COUNT, 4, QUICK)

    async def once() -> float:
        before = _items(layout)
        began = time.perf_counter()
        sent = await sending()
        spent = COUNT // 4 * 4 / sent  # the making of the files is not counted
        made = time.perf_counter() - began - spent
        await until(lambda: _items(layout) >= before + COUNT // 4 * 4, 300)
        return COUNT // 4 * 4 / (time.perf_counter() - began - made)

    return once


def _items(layout: Layout) -> int:
    (found,) = rows(layout.folder, "SELECT count(*) FROM objects WHERE source IS NOT NULL")[0]
    assert isinstance(found, int)
    return found


def _sending(folder: Path, name: str, port: int, frames: int, count: int, lanes: int, client: dict[str, str]) -> Run:
    """Objects a second over so many associations at once; each time objects that nobody has."""
    taken = [0]

    async def once() -> float:
        taken[0] += 1
        places = []
        for lane in range(lanes):
            place = folder / f"{name}-{port}-{taken[0]}-{lane}"
            place.mkdir()
            places.append(place)
            for number in range(count // lanes):
                made, uid = image(number, study=lane), f"2.25.{uuid4().int}"
                made.SOPInstanceUID = made.file_meta.MediaStorageSOPInstanceUID = uid
                if frames > 1:
                    made.PixelData = made.PixelData * frames
                made.save_as(place / f"{number}.dcm")
        command = ["storescu", "-aet", "STORESCU", "-aec", "BRAIN", "+sd", "-R", "127.0.0.1", str(port)]
        environment = {key: value for key, value in os.environ.items() if key != "TCP_NODELAY"} | client
        began = time.perf_counter()
        running_now = [await asyncio.create_subprocess_exec(*command, str(place), env=environment) for place in places]
        codes = [await one.wait() for one in running_now]
        seconds = time.perf_counter() - began
        assert codes == [0] * lanes
        for place in places:
            shutil.rmtree(place)
        return count // lanes * lanes / seconds

    return once


@asynccontextmanager
async def _orthanc(folder: Path) -> AsyncIterator[int]:
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        port, http = one.getsockname()[1], other.getsockname()[1]
    settings = {
        "StorageDirectory": str(folder / "orthanc"), "IndexDirectory": str(folder / "orthanc"), "HttpPort": http, "DicomPort": port,
        "RemoteAccessAllowed": False, "AuthenticationEnabled": False, "DicomCheckCalledAet": False, "DicomAlwaysAllowStore": True,
    }  # fmt: skip
    (folder / "orthanc").mkdir()
    (folder / "orthanc.json").write_text(json.dumps(settings))
    process = await asyncio.create_subprocess_exec(
        "Orthanc", str(folder / "orthanc.json"), env=os.environ | QUICK, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )

    def answers() -> bool:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            return False
        return True

    try:
        await until(answers)
        yield port
    finally:
        process.terminate()
        await process.wait()


def _peak(pids: Sequence[int]) -> float:
    """MiB, of all of them."""
    lines = [line for pid in pids for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM")]
    return sum(int(line.split()[1]) for line in lines) / 1024
