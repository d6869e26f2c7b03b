"""What a PACS has is found and fetched: by C-FIND and C-MOVE of a provider of pynetdicom's, and of Orthanc's where it is installed."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from pynetdicom.presentation import build_context
from pynetdicom.sop_class import (
    CTImageStorage,
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelMove,
)
from tests.unit.dimse.test_scp import Memory, encoded, image

from medmesh.dimse import scu
from medmesh.dimse.association import Limits
from medmesh.dimse.server import Server, serving
from medmesh.errors import Problem

TITLE = "PACS"


class Service(Memory):
    """Takes whatever the PACS sends."""

    def admit(self, called: str, calling: str, address: str, secured: frozenset[str] | None) -> Any:
        return (calling, address)


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
def server(service: Service) -> Iterator[Server]:
    with serving("127.0.0.1", 0, service, limits=Limits(request=5, idle=20, network=5), most=8) as running:
        yield running


def studies() -> list[pydicom.Dataset]:
    """Two patients' studies: one with two series of two images, one with one image."""
    made = []
    for study, series, number in ((1, 1, 1), (1, 1, 2), (1, 2, 1), (1, 2, 2), (2, 1, 1)):
        one = image(f"1.2.{study}.{series}.{number}")
        one.PatientID, one.StudyInstanceUID, one.SeriesInstanceUID = f"P{study}", f"1.9.{study}", f"1.8.{study}.{series}"
        one.PatientName, one.SpecificCharacterSet = ("王^小东" if study == 1 else "李^雷"), "GB18030"
        made.append(one)
    return made


@contextmanager
def provider(held: list[pydicom.Dataset], server: Server) -> Iterator[scu.Peer]:
    """A PACS that knows what it holds, and one destination."""

    def matching(asked: Dataset) -> list[pydicom.Dataset]:
        wanted = {name: str(getattr(asked, name, "")) for name in ("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")}
        return [one for one in held if all(not value or str(one[name].value) == value for name, value in wanted.items())]

    def find(event: Any) -> Iterator[Any]:
        level = event.identifier.QueryRetrieveLevel
        unique = {"STUDY": "StudyInstanceUID", "SERIES": "SeriesInstanceUID", "IMAGE": "SOPInstanceUID"}[level]
        for one in {str(found[unique].value): found for found in matching(event.identifier)}.values():
            answer = Dataset()
            answer.SpecificCharacterSet, answer.QueryRetrieveLevel = "GB18030", level
            for element in event.identifier:
                if element.keyword in one:
                    answer[element.tag] = one[element.tag]
            yield 0xFF00, answer
        yield 0x0000, None

    def move(event: Any) -> Iterator[Any]:
        if event.move_destination != "MEDMESH":
            yield None, None
            return
        yield "127.0.0.1", server.port, {"contexts": [build_context(CTImageStorage, "1.2.840.10008.1.2.1")]}
        found = matching(event.identifier)
        yield len(found)
        for one in found:
            yield 0xFF00, one

    entity = AE(ae_title=TITLE)
    entity.require_called_aet = True
    entity.add_supported_context(StudyRootQueryRetrieveInformationModelFind)
    entity.add_supported_context(StudyRootQueryRetrieveInformationModelMove)
    running = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_FIND, find), (evt.EVT_C_MOVE, move)])
    try:
        yield scu.Peer(TITLE, "127.0.0.1", running.server_address[1])
    finally:
        running.shutdown()


def test_studies_are_found_and_fetched_a_series_at_a_time(server: Server, service: Service) -> None:
    held = studies()
    with provider(held, server) as pacs:
        found = list(scu.find(pacs, "STUDY", {"PatientID": "P1"}))
        assert [(one["StudyInstanceUID"], one["PatientName"]) for one in found] == [("1.9.1", "王^小东")], "in its own character set"
        assert len(list(scu.find(pacs, "STUDY", {}))) == 2
        assert {one["SeriesInstanceUID"] for one in scu.find(pacs, "SERIES", {"StudyInstanceUID": "1.9.1"})} == {"1.8.1.1", "1.8.1.2"}
        told: list[tuple[int, int, int]] = []
        waits = iter([False, True, True])
        counts = scu.move_gently(
            pacs,
            "MEDMESH",
            ["1.9.1"],
            pause=0,
            ready=lambda: next(waits),
            told=lambda done, of, so_far: told.append((done, of, so_far.completed)),
        )
        assert (counts.completed, counts.failed) == (4, 0)
        assert told == [(1, 2, 2), (2, 2, 4)]
        assert set(service.kept) == {one.SOPInstanceUID for one in held if one.PatientID == "P1"}
        assert service.kept["1.2.1.1.1"][0] == encoded(held[0])


def test_what_goes_wrong_is_said(server: Server, service: Service) -> None:
    with provider(studies(), server) as pacs:
        for call, code in (
            (lambda: scu.move(pacs, "ELSEWHERE", "STUDY", {"StudyInstanceUID": "1.9.1"}), "dicom.status"),
            (lambda: list(scu.find(pacs, "STUDY", {"Nonsense": "1"})), "dicom.keyword"),
            (lambda: list(scu.find(scu.Peer("OTHER", pacs.host, pacs.port), "STUDY", {})), "dicom.rejected"),
        ):
            with pytest.raises(Problem) as caught:
                call()
            assert caught.value.code == code
        server.stop()
        with pytest.raises(Problem, match="0x"):
            scu.move(pacs, "MEDMESH", "STUDY", {"StudyInstanceUID": "1.9.1"})
        assert not service.kept


@pytest.mark.skipif(shutil.which("Orthanc") is None, reason="Orthanc is not installed")
def test_orthanc_is_asked_and_sends(server: Server, service: Service, tmp_path: Path) -> None:
    held = studies()
    with orthanc(tmp_path, server) as pacs:
        paths = []
        for number, one in enumerate(held):
            paths.append(tmp_path / f"{number}.dcm")
            one.save_as(paths[-1])
        assert scu.echo(pacs) > 0
        assert scu.send(pacs, paths).completed == len(held)
        (found,) = scu.find(pacs, "STUDY", {"PatientID": "P1", "ModalitiesInStudy": "CT"})
        assert (found["StudyInstanceUID"], found["PatientName"], found["NumberOfStudyRelatedInstances"]) == ("1.9.1", "王^小东", "4")
        counts = scu.move_gently(pacs, "MEDMESH", ["1.9.1"], pause=0, ready=lambda: True)
        assert (counts.completed, counts.failed) == (4, 0)
        assert set(service.kept) == {one.SOPInstanceUID for one in held if one.PatientID == "P1"}


def listens(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def orthanc(folder: Path, server: Server) -> Iterator[scu.Peer]:
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        port, http = one.getsockname()[1], other.getsockname()[1]
    settings = {
        "StorageDirectory": str(folder / "orthanc"), "IndexDirectory": str(folder / "orthanc"), "HttpPort": http, "DicomPort": port,
        "DicomAet": TITLE, "RemoteAccessAllowed": False, "AuthenticationEnabled": False, "DicomCheckCalledAet": True,
        "DicomAlwaysAllowStore": True, "DefaultEncoding": "Chinese", "DicomModalities": {"us": ["MEDMESH", "127.0.0.1", server.port]},
    }  # fmt: skip
    (folder / "orthanc").mkdir()
    (folder / "orthanc.json").write_text(json.dumps(settings))
    quiet: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(["Orthanc", str(folder / "orthanc.json")], **quiet)
    try:
        deadline = time.monotonic() + 30
        while not listens(port) and time.monotonic() < deadline:
            time.sleep(0.1)
        yield scu.Peer(TITLE, "127.0.0.1", port)
    finally:
        process.terminate()
        process.wait(30)
