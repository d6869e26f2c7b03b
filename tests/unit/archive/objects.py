"""Small objects for the archive's tests."""

from __future__ import annotations

import io
import sqlite3
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from medmesh.archive import header, index
from medmesh.archive.index import Conflict
from medmesh.archive.tables import now_ms, scope, transaction

FILES = Path(pydicom.__file__).parent / "data" / "test_files"
CT = "1.2.840.10008.5.1.4.1.1.2"


def made(syntax: str = ExplicitVRLittleEndian, **values: Any) -> bytes:
    """A file (PS3.10) with 2 x 2 pixels unless `PixelData` says otherwise; text is in `SpecificCharacterSet`."""
    dataset = Dataset()
    given = {
        "SpecificCharacterSet": "ISO_IR 192",
        "SOPClassUID": CT,
        "SOPInstanceUID": "1.2.3.1.1.1",
        "StudyInstanceUID": "1.2.3.1",
        "SeriesInstanceUID": "1.2.3.1.1",
        "StudyDate": "20260102",
        "StudyTime": "101112",
        "AccessionNumber": "A1",
        "Modality": "CT",
        "PatientName": "WANG^XiaoDong=王^小东",
        "PatientID": "P1",
        "SeriesNumber": "2",
        "InstanceNumber": "1",
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": 2,
        "Columns": 2,
        "BitsAllocated": 8,
        "BitsStored": 8,
        "HighBit": 7,
        "PixelRepresentation": 0,
        "PixelData": b"\x00\x40\x80\xff",
    } | values
    for keyword, value in given.items():
        if value is not None:
            setattr(dataset, keyword, value)
    if "PixelData" in dataset:
        dataset["PixelData"].VR = "OB"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def store(connection: sqlite3.Connection, data: bytes, project: str = "p", realm: Any = "original") -> tuple[int, Conflict | None]:
    """Into the index as a received object: its row's number, and what stood against it."""
    entry = header.read(io.BytesIO(data))
    with transaction(connection):
        place = scope(connection, project, realm)
        number = connection.execute("SELECT count(*) FROM objects").fetchone()[0]
        row = connection.execute(
            "INSERT INTO objects (scope, sha256, bytes, state, at) VALUES (?, ?, ?, 'received', ?)",
            (place, f"{number:064x}", len(data), now_ms()),
        ).lastrowid
        assert row is not None
        return row, index.put(connection, place, row, entry)
