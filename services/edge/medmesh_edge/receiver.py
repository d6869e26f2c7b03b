"""A process that receives: `python -m medmesh_edge.receiver FOLDER PORT TLS_PORT PARENT`, `-` for a port that there is not. The node starts
several on the same ports, and again when one ends."""

from __future__ import annotations

import os
import signal
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

from medmesh import telemetry
from medmesh.archive.receive import WORDS, Arrival, Origin, Receiver
from medmesh.dimse.association import Limits
from medmesh.dimse.port import Refused
from medmesh.dimse.server import Server, listening
from medmesh.embedded.files import Watched
from medmesh.errors import Problem
from medmesh.security.keyring.file import FileKeys
from medmesh.security.residue import lock_down
from medmesh.store.objects.envelope import Wrapping
from medmesh.telemetry import log
from medmesh_edge.patients import HOSPITAL
from medmesh_edge.reception import Accept, Reception
from medmesh_edge.settings import Layout


class Arriving:
    """An `Arrival` as an association wants it."""

    def __init__(self, arrival: Arrival) -> None:
        self._arrival = arrival
        self.write = arrival.write
        self.abandon = arrival.abandon

    def finish(self) -> tuple[int, str]:
        """See `medmesh.dimse.port.Sink`."""
        outcome = self._arrival.finish()
        if outcome.reason:
            log("dicom.object_refused", level=30, reason=outcome.reason, kept=bool(outcome.id))
        return outcome.status, WORDS.get(outcome.reason, "")


class Reading:
    """The node's archive as a DICOM service: who may send is asked at each association, as the hospital's file says then."""

    def __init__(self, receiver: Receiver, reception: Watched[Reception]) -> None:
        self._receiver = receiver
        self._reception = reception

    def admit(self, called: str, calling: str, address: str, secured: frozenset[str] | None) -> tuple[Accept, Origin] | Refused:
        """See `medmesh.dimse.port.Service`."""
        try:
            reception = self._reception()
        except Problem as problem:
            log("dicom.settings_broken", level=40, error=problem)
            return Refused(1, 1, 1)
        found = reception.admit(called, calling, address, datetime.now(UTC).date(), secured)
        return found if isinstance(found, Refused) else (found, Origin(found.dataset, called, calling, address))

    def store(self, bound: tuple[Accept, Origin], sop_class: str, sop: str, syntax: str) -> Arriving:
        """See `medmesh.dimse.port.Service`."""
        return Arriving(self._receiver.begin(bound[1], sop_class, sop, syntax))


def main(folder: Path, port: str, tls_port: str, parent: int) -> None:
    """Until SIGTERM, or the node that started it is gone."""
    lock_down()
    telemetry.start("edge-receiver", folder=folder / "telemetry")
    layout = Layout(folder)
    reception = Watched(layout.dicom, Reception.read)
    settings = reception()
    wrapping = Wrapping(FileKeys(layout.keys).ensure(HOSPITAL), HOSPITAL)
    limits = Limits(idle=settings.idle_seconds)
    with Receiver(layout.archive, wrapping, reserve=settings.reserve_mib * 2**20, backlog=settings.backlog) as receiver:
        reading, servers = Reading(receiver, reception), []
        if port != "-":
            servers.append(Server(listening(settings.host, int(port)), reading, limits))
        if tls_port != "-" and settings.tls is not None:
            servers.append(Server(listening(settings.host, int(tls_port)), reading, limits, tls=settings.tls.context(folder)))

        def stop(_number: int = 0, _frame: FrameType | None = None) -> None:
            for one in servers:
                one.ask_to_stop()

        def orphaned() -> None:
            if os.getppid() != parent:
                stop()

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        threads = [threading.Thread(target=one.serve, args=(orphaned,), name="listener") for one in servers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for one in servers:
            one.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4]))
