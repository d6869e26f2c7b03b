"""A node that receives, as its processes: senders of other makes, mutants, and kills."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from tests.dicoms import Sender, answers, children, data_set, file, image, kill, mutants, node_rows, receiving, rows, running, stack, until

from medmesh.archive.objects import Objects
from medmesh.archive.states import STAGES
from medmesh.dimse import scu
from medmesh.security.keyring.file import FileKeys
from medmesh.store.objects.envelope import Wrapping
from medmesh_edge.patients import HOSPITAL
from medmesh_edge.settings import Layout

UNDONE = "SELECT count(*) FROM objects WHERE state IN ('received', 'cleaning')"
USED = "SELECT (SELECT count(*) FROM items), (SELECT count(*) FROM unsettled)"
ITEMS = "SELECT count(*), count(DISTINCT sop) FROM objects o JOIN scopes s ON s.id = o.scope WHERE realm = 'clean'"


def whole(layout: Layout, wanted: dict[str, bytes]) -> None:
    """Every object that was acknowledged is there, once, and says what was sent."""
    objects = Objects(layout.archive, Wrapping(FileKeys(layout.keys), HOSPITAL))
    found = rows(layout.folder, "SELECT sop, sha256 FROM objects o JOIN scopes s ON s.id = o.scope WHERE realm = 'original'")
    assert len(found) == len({sop for sop, _ in found})
    there = {str(sop): str(sha256) for sop, sha256 in found}
    for sop, data in wanted.items():
        kept = objects.read(there[sop])
        assert hashlib.sha256(kept).hexdigest() == there[sop]
        assert data_set(kept) == data


async def killing(layout: Layout, kills: int, seed: int) -> None:
    """Send until so many kills of receivers and cleaners were survived; then everything that was acknowledged is whole."""
    dice = random.Random(seed)
    done: dict[str, bytes] = {}
    stop = asyncio.Event()

    def send(study: int) -> None:
        sender, number = Sender(layout), 0
        while not stop.is_set():
            made = image(number, study=study)
            data = data_set(file(made))
            if sender.status(data, made.SOPInstanceUID) == 0:
                done[made.SOPInstanceUID] = data
                number += 1
            else:
                time.sleep(0.05)
        sender.close()

    senders = [asyncio.create_task(asyncio.to_thread(send, study)) for study in range(2)]
    try:
        for _ in range(kills):
            before = len(done)
            await until(lambda before=before: len(done) >= before + 3)  # type: ignore[misc]
            await asyncio.sleep(dice.uniform(0, 0.1))
            running_now = [pid for name in ("medmesh_edge.receiver", "medmesh_edge.cleaner") for pid in children(name)]
            if running_now:
                kill(dice.choice(running_now))
    finally:
        stop.set()
        await asyncio.gather(*senders)
    await until(lambda: rows(layout.folder, UNDONE) == [(0,)])
    whole(layout, done)
    (count, distinct), (originals,) = rows(layout.folder, ITEMS)[0], rows(layout.folder, "SELECT count(DISTINCT sop) FROM objects")[0]
    assert count == distinct
    assert originals == 2 * count, "each has its clean object"
    assert rows(layout.folder, "SELECT count(*) FROM instances WHERE object NOT IN (SELECT id FROM objects)") == [(0,)]
    await until(lambda: node_rows(layout.folder, USED) == [(count, 0)])


async def mutating(layout: Layout, count: int, seed: int) -> None:
    """Mutants over one association: each is answered within five seconds, and ends in a state with stage and reason."""
    sender, told = Sender(layout), []
    clock = asyncio.get_running_loop().time
    for number, data in enumerate(mutants(file(image(0, study=9)), count, seed)):
        began = clock()
        told.append(await asyncio.to_thread(sender.status, data_set(data), f"1.2.3.{number}"))
        assert clock() - began < 5
    good = image(1, study=8)
    assert await asyncio.to_thread(sender.status, data_set(file(good)), good.SOPInstanceUID) == 0
    assert sender.associations == 1, "the association survived all of them"
    sender.close()
    assert set(told) <= {0, 0xA900, 0xC000}
    await until(lambda: rows(layout.folder, UNDONE) == [(0,)], 30 + count)
    held = rows(layout.folder, "SELECT stage, reason FROM objects WHERE state = 'quarantined'")
    assert all(stage in STAGES and reason and reason not in ("crashed", "too_slow") for stage, reason in held)
    assert not [reason for _, reason in held if str(reason).startswith("failed:")]
    assert len(held) >= count * 0.9, "an instance UID of its own makes each another object than its data set says"


async def test_what_is_received_and_killed_and_broken(private: Path) -> None:
    async with running(private, receivers=2) as layout:
        await killing(layout, 5, 1)
        await until(lambda: answers(layout))  # both may have been killed a moment ago
        await mutating(layout, 100, 2)
        await asyncio.to_thread(_dcmtk, layout)
    assert children("medmesh_edge") == []
    assert not layout.dicom_port.exists()


async def test_a_series_with_a_hole_is_never_in_its_data_set(private: Path) -> None:
    async with running(private, cleaners=2) as layout:
        text = layout.dicom.read_text()
        layout.dicom.write_text(text.replace("settle_seconds = 0.5", "settle_seconds = 5"))
        folder, late, seen = private / "out", private / "late", {0}
        for where in (folder, late):
            where.mkdir()
        for one in stack(count=6):
            one.save_as((late if one.InstanceNumber == 3 else folder) / f"{one.InstanceNumber}.dcm")
        await asyncio.to_thread(scu.send, receiving(layout), sorted(folder.iterdir()))

        def held() -> bool:
            seen.add(node_rows(layout.folder, "SELECT count(*) FROM items")[0][0])
            return rows(layout.folder, "SELECT count(*) FROM objects WHERE stage = 'series'") == [(5,)]

        await until(held)
        assert seen == {0}
        for pid in children("medmesh_edge.cleaner"):
            kill(pid)
        await asyncio.to_thread(scu.send, receiving(layout), list(late.iterdir()))
        await until(lambda: node_rows(layout.folder, USED) == [(6, 0)])


def _dcmtk(layout: Layout) -> None:
    """The tools that most modalities' software is made of, or pynetdicom where they are not installed."""
    folder = layout.folder / "out"
    folder.mkdir()
    paths = [folder / f"{number}.dcm" for number in range(3)]
    for number, path in enumerate(paths):
        image(number, study=7).save_as(path)
    peer = receiving(layout)
    if shutil.which("storescu") is None:
        assert scu.echo(peer) > 0
        assert scu.send(peer, paths).completed == 3
    else:
        address = (peer.host, str(peer.port))

        def run(*command: str) -> Any:
            return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, env=os.environ | {"LC_ALL": "C"})

        assert run("echoscu", "-aet", "CT1", "-aec", "BRAIN", *address).returncode == 0
        assert "Called AE Title Not Recognized" in run("echoscu", "-v", "-aet", "CT1", "-aec", "NOBODY", *address).stderr
        assert "Calling AE Title Not Recognized" in run("echoscu", "-v", "-aet", "OTHER", "-aec", "BRAIN", *address).stderr
        assert run("storescu", "-aet", "CT1", "-aec", "BRAIN", *address, *map(str, paths)).returncode == 0
    there = rows(
        layout.folder, "SELECT count(*) FROM objects o JOIN scopes s ON s.id = o.scope WHERE realm = 'original' AND sop LIKE '%.3.7.%'"
    )
    assert there == [(3,)]


@pytest.mark.parametrize(
    ("text", "reason"),
    [("port = 1\n[[accept]]\ncalled = 'A'\n", "calling"), ("port = 'x'", "port"), ("[[accept", "document"), ("nonsense = 1", "nonsense")],
)
def test_a_file_with_a_mistake_says_which(tmp_path: Path, text: str, reason: str) -> None:
    from medmesh.errors import Problem
    from medmesh_edge.reception import Reception

    (tmp_path / "dicom.toml").write_text(text)
    with pytest.raises(Problem) as found:
        Reception.read(tmp_path / "dicom.toml")
    assert found.value.code == "dicom.settings"
    assert reason in str(found.value)


def test_a_title_alone_is_no_identity() -> None:
    from datetime import date

    from medmesh.dimse.port import CALLED_UNKNOWN, CALLING_UNKNOWN, Refused
    from medmesh_edge.reception import Accept, Reception

    entry = {"called": "BRAIN", "calling": ("CT1",), "from": ("10.1.2.0/24", "2001:db8::/32"), "dataset": "brain"}
    reception = Reception(accept=(Accept(**entry, until=date(2027, 1, 1)),))  # type: ignore[arg-type]
    today = date(2026, 12, 1)
    for address in ("10.1.2.9", "::ffff:10.1.2.9", "2001:db8::1"):
        assert isinstance(reception.admit("BRAIN", "CT1", address, today), Accept)
    assert reception.admit("BRAIN", "CT1", "10.1.3.9", today) == CALLING_UNKNOWN
    assert reception.admit("BRAIN", "CT2", "10.1.2.9", today) == CALLING_UNKNOWN
    assert reception.admit("HEART", "CT1", "10.1.2.9", today) == CALLED_UNKNOWN
    assert reception.admit("BRAIN", "CT1", "10.1.2.9", date(2027, 1, 2)) == Refused(1, 1, 1)
    assert Reception().admit("BRAIN", "CT1", "127.0.0.1", today) == CALLED_UNKNOWN
