"""pydicom's own test files, and one object with an identity planted wherever software has been seen to leave one."""

from __future__ import annotations

from pathlib import Path

import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from medmesh.errors import Problem
from medmesh.imaging import reading

FOLDER = Path(pydicom.__file__).parent / "data" / "test_files"


@pytest.fixture(scope="session")
def folder() -> Path:
    return FOLDER


@pytest.fixture(scope="session")
def parsed() -> dict[str, Dataset]:
    """Every file that is DICOM and can be read to its end, with pixels or without, and names itself."""
    found = {}
    for path in sorted(file for file in FOLDER.rglob("*") if file.is_file()):
        try:
            dataset = reading.parse(path.read_bytes())
        except Problem:
            continue
        if dataset.get("SOPInstanceUID") and dataset.get("SOPClassUID"):
            found[str(path.relative_to(FOLDER))] = dataset
    assert len(found) > 120
    return found


@pytest.fixture
def planted() -> tuple[Dataset, dict[str, str]]:
    """A data set and the canaries in it, by the attribute (or place) that holds each."""
    canaries = {
        "PatientName": "Canaryname^Zoe=金丝雀^小明",
        "PatientID": "CANARY-PID-7781",
        "PatientBirthDate": "19530917",
        "StudyDate": "20240229",
        "InstitutionName": "Canary Hospital",
        "AccessionNumber": "CANARYACC42",
        "OtherPatientIDs": "CANARYOTHER9",
        "DeviceSerialNumber": "CANARYSERIAL5",
        "ReferringPhysicianName": "Canaryref^Xanthe",
        "AcquisitionDateTime": "20240228101112.5",
        "StudyInstanceUID": "1.2.3.4444.1",
        "SeriesInstanceUID": "1.2.3.4444.2",
        "SOPInstanceUID": "1.2.3.4444.3",
        "FrameOfReferenceUID": "1.2.3.4444.4",
    }
    data = reading.wrap(
        Image.linear_gradient("L").resize((40, 36)),
        patient_id=canaries["PatientID"],
        patient_name=canaries["PatientName"],
        study_uid=canaries["StudyInstanceUID"],
        series_uid=canaries["SeriesInstanceUID"],
        sop_uid=canaries["SOPInstanceUID"],
        modality="MR",
        study_date=canaries["StudyDate"],
        extra={name: canaries[name] for name in canaries if name not in ("PatientName", "PatientID", "StudyDate") and name[-3:] != "UID"}
        | {"FrameOfReferenceUID": canaries["FrameOfReferenceUID"], "SequenceName": "se2d1", "PatientAge": "071Y"},
    )
    dataset = reading.read(data)
    name, pid = "Canaryname", canaries["PatientID"]
    dataset.ImageComments = f"seen by Dr {name}"
    dataset.SoftwareVersions = f"v1 {name}"  # text on the keep-list
    dataset.add_new(0x00091001, "LO", f"private {name}")
    dataset.add_new(0x00090010, "LO", "CANARY CREATOR")
    dataset.add_new(0x00091002, "UN", pid.encode("utf-16-le"))
    dataset.add_new(0x50003000, "OW", b"curve " + pid.encode() + b" ")
    dataset.add_new(0x60000010, "US", 8)
    dataset.add_new(0x60003000, "OW", name.encode())
    dataset.add_new(0x0018FFF0, "UN", "金丝雀小明".encode("gb18030"))  # no such attribute
    dataset.add_new(0x00420011, "OB", b"%PDF " + pid.encode())
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "1", "99LOCAL", f"MRI of {name}"
    physician = Dataset()
    physician.PersonIdentificationCodeSequence = Sequence([code])
    physician.add_new(0x00111001, "PN", "Canaryprivate^Eve")
    inner = Dataset()
    inner.ReferencedSOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
    inner.ReferencedSOPInstanceUID = canaries["SOPInstanceUID"]
    inner.PurposeOfReferenceCodeSequence = Sequence([code])
    inner.TextString = name
    dataset.ReferencedImageSequence = Sequence([inner])
    dataset.OperatorIdentificationSequence = Sequence([physician])
    content = Dataset()
    content.ValueType, content.TextValue = "TEXT", f"History of {name}, {pid}"
    content.ContentSequence = Sequence([inner])
    dataset.ContentSequence = Sequence([content])
    return dataset, canaries
