"""Two hospitals train on volumes that their PACS sent by C-STORE and that they labelled by accession number."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from sqlalchemy import select
from tests.dicoms import CT, answers
from tests.hospitals import completed, consented, enrolled, federation, until
from tests.integration.test_simulated_files import VOLUMES, package
from tests.unit.pipelines.test_series import AXIAL, SAGITTAL, series
from tests.world import World, small_world

from medmesh.cli.edge import edge
from medmesh.dimse import scu
from medmesh.embedded.ports import Ports
from medmesh.embedded.testing import RunningServers
from medmesh.errors import Problem
from medmesh.imaging.reading import read, write
from medmesh.learning import isolation, metrics
from medmesh_edge.node import Node, running
from medmesh_edge.settings import Layout
from medmesh_edge.tables import items, parts

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(isolation.capability().kind == "none", reason="nothing isolates here"),
]
PATIENTS, SLICES = 12, 9
RECEPTION = """
port = 0
receivers = 1
cleaners = 1
settle_seconds = 1
reserve_mib = 0
[[accept]]
called = "HEADS"
calling = ["CT1"]
from = ["127.0.0.0/8"]
dataset = "heads"
volumes = true
"""


@pytest.fixture
async def world(servers: RunningServers, private: Path, ports: Ports) -> AsyncIterator[World]:
    from medmesh_federation.service import SERVICE as FEDERATION

    async with small_world(servers, private, ports, FEDERATION, settings={"federation": {"tick_seconds": 0.1}}) as made:
        yield made


def scans(folder: Path, number: int) -> tuple[list[Path], Path]:
    """What a CT sends: a series of each patient, brighter where it bleeds, and what the hospital knows of each."""
    folder.mkdir()
    paths, rows, dice = [], ["accession,label,split"], np.random.default_rng(number)
    for patient in range(PATIENTS):
        turned = (AXIAL, SAGITTAL)[patient % 2]
        for place, raw in enumerate(series(turned, SLICES, f"2.25.9{number}{patient:02}", f"PID-KANARY-{number}-{patient}", (32, 48))):
            one = read(raw)
            one.SOPClassUID = one.file_meta.MediaStorageSOPClassUID = CT
            one.ImageType, one.StudyInstanceUID = ["ORIGINAL", "PRIMARY", "AXIAL"], f"2.25.8{number}{patient:02}"
            one.AccessionNumber = f"A{number}{patient:02}"
            noise = dice.integers(-40, 40, (32, 48)) + 600 * (patient // 2 % 2)
            one.PixelData = (one.pixel_array + noise).astype("<u2").tobytes()
            paths.append(folder / f"{patient:02}-{place}")
            paths[-1].write_bytes(write(one))
        rows.append(f"A{number}{patient:02},{('none', 'bleeding')[patient // 2 % 2]},{'test' if patient > 7 else 'train'}")
    (folder / "labels.csv").write_text("\n".join(rows))
    return paths, folder / "labels.csv"


async def received(node: Node, paths: list[Path]) -> None:
    """Sent by C-STORE, and settled."""
    layout = Layout(node.site.layout.folder)

    async def listening() -> bool:
        return layout.dicom_port.exists() and answers(layout)

    await until(listening)

    async def sent() -> bool:
        peer = scu.Peer("HEADS", "127.0.0.1", int(layout.dicom_port.read_text()), "CT1")
        try:
            counts = await asyncio.to_thread(scu.send, peer, paths)
        except Problem as problem:  # a busy machine; what was sent is not sent twice
            if problem.code != "dicom.aborted":
                raise
            return False
        assert (counts.completed, counts.failed) == (len(paths), 0), counts.failures
        return True

    await until(sent, 240)

    async def settled() -> bool:
        async with node.site.unit() as uow:
            return len(await uow.all(select(items.c.item))) == PATIENTS

    await until(settled, 120)


def labelled(folder: Path, file: Path) -> dict[str, Any]:
    done = CliRunner().invoke(edge, ["dicom", "label", str(file), "--dataset", "heads", "--folder", str(folder)], standalone_mode=False)
    assert done.exception is None, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


async def test_a_federation_trains_on_volumes_that_came_by_c_store(world: World, private: Path) -> None:
    admin = await world.admin()
    researcher, approver = await world.user(admin, "li", "researcher"), await world.user(admin, "wu", "approver")
    folders = {name: await enrolled(world, admin, approver, name) for name in ("huashan", "renji")}
    sent = {name: scans(private / f"ct-{name}", number) for number, name in enumerate(folders)}
    async with AsyncExitStack() as stack:
        nodes = {}
        for name, folder in folders.items():
            Layout(folder).dicom.write_text(RECEPTION)
            nodes[name] = await stack.enter_async_context(running(folder))
        await asyncio.gather(*(received(node, sent[name][0]) for name, node in nodes.items()))
        for name, node in nodes.items():
            assert await asyncio.to_thread(labelled, folders[name], sent[name][1]) == {"items": PATIENTS, "unknown": 0}
            async with node.site.unit() as uow:
                assert len(await uow.all(select(parts.c.item))) == PATIENTS * SLICES
                assert {row.modality for row in await uow.all(select(items.c.modality))} == {"volume:CT"}
        source = package(private / "package", VOLUMES, 480)
        made = await federation(world, researcher, approver, tuple(folders), package=source, rounds=2, baseline=True)
        await consented(nodes.values(), made)
        view = await completed(researcher, made)
        assert view.evaluation, view
        counts = metrics.add([one.counts for one in view.evaluation if one.name == "federated"])
        assert counts.sum() == 2 * 4, "each hospital's held-out patients, a volume each"
        assert metrics.balanced_accuracy(counts) > 0.9
    everything = b"".join(path.read_bytes() for path in (world.p.folder).glob("platform*/**/*") if path.is_file())
    assert not re.search(rb"KANARY", everything)
