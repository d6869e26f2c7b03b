"""A process of the pipeline: `python -m medmesh_edge.cleaner FOLDER NUMBER OF PARENT`. The node starts them, and again when one ends."""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import os
import signal
import sys
import time
from pathlib import Path

from medmesh import telemetry
from medmesh.archive import states
from medmesh.archive.tables import open_archive, transaction
from medmesh.embedded.files import Watched
from medmesh.errors import Problem
from medmesh.security.keys import read_secret
from medmesh.security.residue import lock_down
from medmesh.telemetry import log
from medmesh_edge import originals
from medmesh_edge.archiving import take_over
from medmesh_edge.cleaning import SECONDS, Cleaner
from medmesh_edge.ports import site
from medmesh_edge.reception import Reception
from medmesh_edge.settling import settle
from medmesh_edge.storing import erase

LOOK_SECONDS = 0.05
"""How often a worker with nothing to do looks for objects: one read of an index."""
SETTLE_SECONDS = 0.25
"""How often the first of them looks for what is complete, busy or not."""
WAIT_SECONDS = 5.0


async def run(folder: Path, worker: int, of: int, parent: int) -> None:
    """Until SIGTERM, or the node that started it is gone."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with site(folder) as opened:
        reception = Watched(opened.layout.dicom, Reception.read)
        connection = open_archive(opened.layout.archive)
        objects = originals.objects(opened)
        with transaction(connection):
            states.restore(connection, worker, of)
        key = read_secret(opened.layout.site_key).strip()
        settling = 0.0
        if worker == 0:
            await erase(opened)  # what a kill left
        cleaner = Cleaner(opened, connection, objects, key, (worker, of), lambda *sent: reception().entry(*sent))
        while not stop.is_set() and os.getppid() == parent:
            # What holds on to the interpreter, as a decoder may, ends the process: the object is tried alone then, and given up at last.
            faulthandler.dump_traceback_later(SECONDS * 2, exit=True)
            try:
                busy = await cleaner.step()
                if worker == 0 and time.monotonic() >= settling:
                    await settle(opened, connection, reception().settle_seconds, reception().volumes)
                    await take_over(opened, connection)
                    settling = time.monotonic() + SETTLE_SECONDS
            except Problem as problem:  # of the hospital's own files, not of an object: it waits until they are mended
                log("dicom.clean_waits", level=40, error=problem)
                await asyncio.sleep(WAIT_SECONDS)
                continue
            await asyncio.sleep(0 if busy else LOOK_SECONDS)
        faulthandler.cancel_dump_traceback_later()
        connection.close()


def main(folder: Path, worker: int, of: int, parent: int) -> None:
    """Entry point."""
    lock_down()
    telemetry.start("edge-cleaner", folder=folder / "telemetry")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.freeze()
    asyncio.run(run(folder, worker, of, parent))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
