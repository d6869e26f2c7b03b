"""The processes that receive DICOM and take it through the pipeline, started and watched by the node where it has a `dicom.toml`."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from medmesh.archive import states
from medmesh.archive.tables import open_archive, transaction
from medmesh.dimse.server import reserved
from medmesh.embedded import files
from medmesh.errors import Problem
from medmesh.telemetry import log
from medmesh_edge import originals
from medmesh_edge.ports import Site
from medmesh_edge.reception import Reception

LOOK_SECONDS = 1.0
LEAST_SECONDS = 5.0
"""A process that lived shorter than this is started again more slowly each time."""
STOP_SECONDS = 10.0


@dataclass
class _Process:
    """One that should run."""

    name: str
    command: list[str]
    running: asyncio.subprocess.Process | None = None
    began: float = 0.0
    failures: int = 0
    wait_until: float = 0.0


@dataclass
class Processes:
    """What runs for one state of the hospital's file."""

    site: Site
    _settings: Reception | None = None
    _stamp: tuple[int, ...] = ()
    _ports: list[socket.socket] = field(default_factory=list)
    _all: list[_Process] = field(default_factory=list)

    async def run(self) -> None:
        """Until cancelled."""
        broken = ""
        try:
            while True:
                try:
                    wanted: Reception | None = Reception.read(self.site.layout.dicom)
                    broken = ""
                except Problem as problem:
                    # What is wrong in the file turns everybody away (see `receiver`); without a file there is nothing to do.
                    wanted = None if problem.code == "dicom.not_configured" else self._settings
                    if problem.code != "dicom.not_configured" and str(problem) != broken:
                        broken = str(problem)
                        log("dicom.settings_broken", level=40, error=problem)
                stamp = wanted.tls.stamp(self.site.layout.folder) if wanted is not None and wanted.tls is not None else ()
                if wanted is None or self._settings is None or (_shape(wanted), stamp) != (_shape(self._settings), self._stamp):
                    await self.stop()
                    if wanted is not None:
                        try:
                            await self._begin(wanted)
                            self._stamp = stamp
                        except Exception as error:  # a port that is taken, a disk that is full: the node goes on, and it is tried again
                            log("dicom.not_begun", level=40, error=error)
                            await asyncio.sleep(LEAST_SECONDS)
                await self._watch()
                await asyncio.sleep(LOOK_SECONDS)
        finally:
            await asyncio.shield(self.stop())

    async def _begin(self, wanted: Reception) -> None:
        await asyncio.to_thread(sweep, self.site)
        layout = self.site.layout
        if wanted.tls is not None:
            wanted.tls.context(layout.folder)  # what is wrong with it is said here, and nothing is received in the clear instead
        port = self._reserve(wanted.host, wanted.port) if wanted.in_the_clear else "-"
        tls_port = self._reserve(wanted.host, wanted.tls.port) if wanted.tls is not None else "-"
        parent, folder = str(os.getpid()), str(layout.folder.absolute())
        receiver = [sys.executable, "-m", "medmesh_edge.receiver", folder, port, tls_port, parent]
        self._all = [_Process(f"receiver-{number}", receiver) for number in range(wanted.receivers)]
        for number in range(wanted.cleaners):
            cleaner = [sys.executable, "-m", "medmesh_edge.cleaner", folder, str(number), str(wanted.cleaners), parent]
            self._all.append(_Process(f"cleaner-{number}", cleaner))
        self._settings = wanted
        for path, held in ((layout.dicom_port, port), (layout.dicom_tls_port, tls_port)):
            if held != "-":
                files.write(path, held)

    def _reserve(self, host: str, port: int) -> str:
        """Hold a port while processes come and go."""
        made = reserved(host, port)
        self._ports.append(made)
        return str(made.getsockname()[1])

    async def _watch(self) -> None:
        now = time.monotonic()
        for one in self._all:
            if one.running is not None and one.running.returncode is None:
                continue
            if one.running is not None:
                one.failures = one.failures + 1 if now - one.began < LEAST_SECONDS else 0
                one.wait_until = now + min(30, 0.5 * 2**one.failures if one.failures else 0)
                log("dicom.process_ended", level=40, process=one.name, code=one.running.returncode)
                one.running = None
            if now >= one.wait_until:
                one.began = now
                one.running = await asyncio.create_subprocess_exec(*one.command, stdin=asyncio.subprocess.DEVNULL)

    async def stop(self) -> None:
        """End what runs; objects on their way arrive first."""
        running = [one.running for one in self._all if one.running is not None and one.running.returncode is None]
        for process in running:
            with suppress(ProcessLookupError):
                process.terminate()
        for process in running:
            try:
                async with asyncio.timeout(STOP_SECONDS):
                    await process.wait()
            except TimeoutError:
                with suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        for port in self._ports:
            port.close()
        for path in (self.site.layout.dicom_port, self.site.layout.dicom_tls_port):
            path.unlink(missing_ok=True)
        self._settings, self._ports, self._all = None, [], []


def _shape(reception: Reception) -> tuple[object, ...]:
    """What processes are started for; all else they read themselves."""
    named = (reception.host, reception.port, reception.receivers, reception.cleaners)
    return (*named, reception.reserve_mib, reception.backlog, reception.idle_seconds, reception.tls, reception.in_the_clear)


def sweep(site: Site) -> None:
    """What a kill left. Nobody cleans yet."""
    objects = originals.objects(site)
    connection = open_archive(site.layout.archive)
    try:
        with transaction(connection):
            states.restore(connection)
        gone = objects.sweep(connection)
        if gone:
            log("dicom.swept", files=gone)
    finally:
        connection.close()


def port_of(folder: Path, *, tls: bool = False) -> int | None:
    """Where the node on this folder receives; None when it does not."""
    try:
        return int((folder / ("dicom.tls.port" if tls else "dicom.port")).read_text())
    except (OSError, ValueError):
        return None
