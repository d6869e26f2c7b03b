"""Objects of several frames as scanners write them, over a field of values that is known everywhere."""

from __future__ import annotations

import random
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.uid import UID, ExplicitVRLittleEndian, JPEG2000Lossless, RLELossless

from tests.unit.pipelines.test_series import AXIAL, field

ENHANCED_MR = "1.2.840.10008.5.1.4.1.1.4.1"
ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.1"
GREY_WORDS = "1.2.840.10008.5.1.4.1.1.7.3"
ULTRASOUND = "1.2.840.10008.5.1.4.1.1.3.1"
SPACING = (1.5, 0.75)
STEP = 2.0


def items(**values: Any) -> Sequence:
    one = Dataset()
    for keyword, value in values.items():
        setattr(one, keyword, value)
    return Sequence([one])


def plain(sop: str, modality: str, count: int, size: tuple[int, int], uid: str, patient: str) -> Dataset:
    """A header, 16 bits, of so many frames."""
    made = Dataset()
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.SOPClassUID, made.SOPInstanceUID, made.StudyInstanceUID, made.SeriesInstanceUID = sop, uid, "2.25.7", f"{uid}.1"
    made.file_meta.MediaStorageSOPClassUID, made.file_meta.MediaStorageSOPInstanceUID = sop, uid
    made.PatientID, made.PatientName, made.Modality, made.StudyDate = patient, f"Kanary^{patient}", modality, "20240102"
    made.ImageType, made.InstanceNumber = ["ORIGINAL", "PRIMARY", "AXIAL", "NONE"], 1
    made.Rows, made.Columns, made.NumberOfFrames = *size, str(count)
    made.SamplesPerPixel, made.PhotometricInterpretation, made.PixelRepresentation = 1, "MONOCHROME2", 0
    made.BitsAllocated, made.BitsStored, made.HighBit = 16, 16, 15
    return made


def enhanced(
    turned: tuple[float, ...] = AXIAL,
    count: int = 9,
    size: tuple[int, int] = (34, 40),
    *,
    shared: bool = True,
    seed: int | None = 4,
    uid: str = "2.25.77",
    patient: str = "PID-KANARY-1",
    sop: str = ENHANCED_MR,
) -> Dataset:
    """Frames STEP mm apart in an order of chance, or without `seed` one after the other; orientation and spacing `shared` or of each
    frame; each with a scale of its own."""
    made = plain(sop, "CT" if sop == ENHANCED_CT else "MR", count, size, uid, patient)
    along_row, along_column = np.array(turned).reshape(2, 3)
    order = list(range(count))
    if seed is not None:
        random.Random(seed).shuffle(order)
    same = {
        "PlaneOrientationSequence": items(ImageOrientationPatient=list(turned)),
        "PixelMeasuresSequence": items(PixelSpacing=list(SPACING), SliceThickness=9.0),
    }
    made.SharedFunctionalGroupsSequence = items(**(same if shared else {}))
    made.PerFrameFunctionalGroupsSequence = Sequence()
    planes = []
    for stored, place in enumerate(order):
        corner = np.array([-20.0, 10.0, 30.0]) + place * STEP * np.cross(along_row, along_column)
        rows, columns = np.meshgrid(np.arange(size[0]) * SPACING[0], np.arange(size[1]) * SPACING[1], indexing="ij")
        values = field(corner + rows[..., None] * along_column + columns[..., None] * along_row)
        slope, intercept = 0.25, -250.0 - stored
        planes.append(np.round((values - intercept) / slope).astype("<u2"))
        group = Dataset()
        group.PlanePositionSequence = items(ImagePositionPatient=[f"{one:.4f}" for one in corner])
        group.PixelValueTransformationSequence = items(RescaleSlope=str(slope), RescaleIntercept=str(intercept), RescaleType="US")
        group.FrameContentSequence = items(
            StackID="1", InStackPositionNumber=place + 1, DimensionIndexValues=[1, place + 1], FrameAcquisitionDateTime="20240102101112"
        )
        for keyword, value in ({} if shared else same).items():
            setattr(group, keyword, value)
        made.PerFrameFunctionalGroupsSequence.append(group)
    made.PixelData = b"".join(plane.tobytes() for plane in planes)
    made["PixelData"].VR = "OW"
    made.DimensionOrganizationSequence = items(DimensionOrganizationUID="2.25.8")
    made.DimensionIndexSequence = Sequence([*items(DimensionIndexPointer=0x00209056), *items(DimensionIndexPointer=0x00209057)])
    return made


def cine(
    count: int = 6, size: tuple[int, int] = (40, 48), *, colour: bool = False, uid: str = "2.25.78", patient: str = "PID-KANARY-2"
) -> Dataset:
    """A film of ultrasound of 8 bits: frame n is n * 20 and more; with `colour` in three equal channels."""
    made = plain(ULTRASOUND, "US", count, size, uid, patient)
    made.BitsAllocated, made.BitsStored, made.HighBit = 8, 8, 7
    frames = np.stack([np.add.outer(np.arange(size[0]), np.arange(size[1])) % 60 + 20 * n for n in range(count)]).astype(np.uint8)
    if colour:
        made.SamplesPerPixel, made.PhotometricInterpretation, made.PlanarConfiguration = 3, "RGB", 0
        frames = np.repeat(frames[..., None], 3, axis=3)
    made.FrameTime, made.FrameIncrementPointer = "33.3", 0x00181063
    made.SequenceOfUltrasoundRegions = items(
        RegionLocationMinX0=0, RegionLocationMinY0=4, RegionLocationMaxX1=size[1] - 1, RegionLocationMaxY1=size[0] - 1
    )
    made.PixelData = frames.tobytes()
    made["PixelData"].VR = "OB"
    return made


def packed(dataset: Dataset, syntax: UID) -> Dataset:
    """The same, its frames encoded; JPEG 2000 by Pillow."""
    if syntax == RLELossless:
        dataset.compress(RLELossless, generate_instance_uid=False)
    elif syntax == JPEG2000Lossless:
        shape = (int(dataset.NumberOfFrames), dataset.Rows, dataset.Columns)
        made = []
        for plane in np.frombuffer(dataset.PixelData, "<u2").reshape(shape):
            buffer = BytesIO()
            Image.fromarray(plane).save(buffer, "JPEG2000", irreversible=False)
            made.append(buffer.getvalue())
        dataset.PixelData = encapsulate(made)
        dataset["PixelData"].VR = "OB"
        dataset["PixelData"].is_undefined_length = True
    dataset.file_meta.TransferSyntaxUID = syntax
    return dataset


def file(dataset: Dataset) -> bytes:
    """As a file, in its transfer syntax."""
    syntax = dataset.file_meta.TransferSyntaxUID
    buffer = BytesIO()
    dataset.save_as(buffer, implicit_vr=syntax.is_implicit_VR, little_endian=syntax.is_little_endian, enforce_file_format=True)
    return buffer.getvalue()
