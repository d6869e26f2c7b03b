"""DICOM bytes in and out: reading that leaves nothing to fail later, stored pixels as numbers, and plain images wrapped as DICOM.

pydicom decodes an element when it is first looked at, so a broken file passes `dcmread` and fails hours later in training.
`read` therefore looks at every value. No message here repeats a value: a value may be a patient's name.
"""

from __future__ import annotations

import logging
import warnings
import zlib
from collections.abc import Iterator
from io import BytesIO
from struct import pack
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medmesh.absent import absent
from medmesh.errors import Problem

# With these two it would learn to download its own test files, which takes 3 MiB of every process that reads.
with absent("requests", "tqdm"):
    import pydicom
    from pydicom import config
    from pydicom.datadict import dictionary_has_tag, tag_for_keyword
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.filebase import DicomBytesIO
    from pydicom.filewriter import write_data_element
    from pydicom.pixels import iter_pixels
    from pydicom.pixels.utils import get_expected_length
    from pydicom.uid import (
        PYDICOM_IMPLEMENTATION_UID,
        UID,
        DeflatedExplicitVRLittleEndian,
        ExplicitVRBigEndian,
        ExplicitVRLittleEndian,
        ImplicitVRLittleEndian,
        SecondaryCaptureImageStorage,
        UID_dictionary,
    )

# pydicom warns and logs with the offending value in the text, which may name a patient. `catch_warnings` below does the same for
# callers that turned warnings into errors; it is not safe in threads, this is.
logging.getLogger("pydicom").setLevel(logging.CRITICAL)
config.settings.reading_validation_mode = config.IGNORE
warnings.filterwarnings("ignore", module=r"pydicom\.")

TINT = 8  # of 256 levels: what the compression of a grey picture may leave between its channels
LARGEST = 2 << 30  # bytes of decoded pixels or inflated data set: a small file may ask for any amount of memory
_STARTS = (b"\x02\x00", b"\x08\x00", b"\x00\x02", b"\x00\x08")  # groups 0002 and 0008, either byte order, without preamble
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")


def read(data: bytes, *, lazily: bool = False) -> Dataset:
    """The data set in `data`, every value of it decoded, with pixels of the length that its header promises.

    With `lazily`, values are decoded when they are first looked at, and may raise whatever pydicom raises then: for those who look at few,
    and guard it. Raises `imaging.not_dicom`, `imaging.no_pixels` or `imaging.unreadable`. The reason names the place, never the value.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = parse(data, lazily=lazily)
        if not any(name in dataset for name in _PIXELS):
            raise Problem("imaging.no_pixels")
        try:
            missing = [keyword for keyword in ("SOPClassUID", "SOPInstanceUID") if not dataset.get(keyword)]
            if not missing:
                _check_length(dataset)
        except Problem:
            raise
        except Exception as error:  # see `parse`
            raise _unreadable(type(error).__name__) from None
        if missing:
            raise _unreadable(f"{missing[0]} is missing")
        return dataset


def parse(data: bytes, *, lazily: bool = False) -> Dataset:
    """The data set in `data`, with pixels or without, its transfer syntax known; `lazily` and what is raised as `read` has it."""
    if data[128:132] != b"DICM" and data[:2] not in _STARTS:
        raise Problem("imaging.not_dicom")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _check_inflated(data)
        try:
            dataset = pydicom.dcmread(BytesIO(data), force=True)
        except Exception as error:  # pydicom lets struct.error, KeyError, EOFError, RecursionError and others through
            raise _unreadable(type(error).__name__) from None
        if data[128:132] != b"DICM" and "SOPClassUID" not in dataset:  # any bytes can be taken for elements
            raise Problem("imaging.not_dicom")
        if not lazily:
            _touch(dataset)
        syntax = _declared_syntax(dataset) or _found_syntax(dataset)
        if not isinstance(syntax, UID) or str(syntax) not in UID_dictionary or not syntax.is_transfer_syntax:
            raise _unreadable("the transfer syntax is unknown")
        dataset.file_meta.TransferSyntaxUID = syntax
        return dataset


def write(dataset: Dataset) -> bytes:
    """`dataset` as a DICOM file (PS3.10) with an empty preamble, in its own transfer syntax; a deflated one is written inflated.

    Raises `imaging.unreadable` for what cannot be written so: pixels that are not encapsulated as the transfer syntax says, a false length.
    """
    meta = dataset.file_meta
    if meta.TransferSyntaxUID == DeflatedExplicitVRLittleEndian:
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
    buffer = BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        encoding = (meta.TransferSyntaxUID == ImplicitVRLittleEndian, meta.TransferSyntaxUID != ExplicitVRBigEndian)
        try:
            if encoding == dataset.original_encoding and encoding[1] and set(meta.keys()) == {0x00020010}:
                _write_as_it_is(buffer, dataset, implicit=encoding[0])
            else:
                dataset.save_as(buffer, enforce_file_format=True)
        except Exception as error:  # see `parse`
            raise _unreadable(f"it cannot be written again, {type(error).__name__}") from None
    return buffer.getvalue()


_LONG = frozenset(("OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV"))  # PS3.5 §7.1.2


def _write_as_it_is(buffer: BytesIO, dataset: Dataset, *, implicit: bool) -> None:
    """Little endian: elements that nobody decoded are copied with a header before them; pydicom writes the others."""
    meta = {
        0x00020001: ("OB", b"\0\1"),
        0x00020002: ("UI", str(dataset.get("SOPClassUID") or "").encode()),
        0x00020003: ("UI", str(dataset.get("SOPInstanceUID") or "").encode()),
        0x00020010: ("UI", str(dataset.file_meta.TransferSyntaxUID).encode()),
        0x00020012: ("UI", str(PYDICOM_IMPLEMENTATION_UID).encode()),
    }
    information = b"".join(_header(tag, vr, value + b"\0" * (len(value) % 2), implicit=False) for tag, (vr, value) in meta.items())
    buffer.write(b"\0" * 128 + b"DICM" + _header(0x00020000, "UL", pack("<L", len(information)), implicit=False) + information)
    other = DicomBytesIO()
    other.is_implicit_VR, other.is_little_endian = implicit, True
    encodings = dataset.get("SpecificCharacterSet") or "iso8859"
    for tag, element in sorted(dataset.items()):
        if not tag & 0xFFFF:
            continue  # group lengths
        if (
            element.is_raw
            and element.length != 0xFFFFFFFF
            and isinstance(element.value, bytes)
            and (implicit or len(element.VR or "") == 2)
        ):
            buffer.write(_header(tag, element.VR or "", element.value, implicit=implicit))
        else:
            other.parent.seek(0)
            other.parent.truncate()
            write_data_element(other, dataset[tag] if element.is_raw and element.length != 0xFFFFFFFF else element, encodings)
            buffer.write(other.getvalue())


def _header(tag: int, vr: str, value: bytes, *, implicit: bool) -> bytes:
    """An element in little endian (PS3.5 §7.1). Raises `ValueError` for a value that its length cannot say."""
    size, long = len(value), vr in _LONG
    if not implicit and not long and size > 0xFFFF:
        raise ValueError("an element's length")
    start = pack("<HH", tag >> 16, tag & 0xFFFF) + (b"" if implicit else vr.encode())
    return start + (pack("<L", size) if implicit else pack("<HL", 0, size) if long else pack("<H", size)) + value


def pixels(dataset: Dataset) -> NDArray[np.float32]:
    """The stored values as float32 [rows, columns] in 0..1: 0 and 1 are the ends of the stored bit range, 1 is always bright.

    Rescale and window are left out on purpose: they differ between makers and viewers, the stored range does not.
    MONOCHROME1 (low values are bright, PS3.3 C.7.6.3.1.2) is inverted. Raises `imaging.not_greyscale` for anything but
    one grey frame of integers, `imaging.unreadable` for pixels that no installed decoder can decode.
    """
    interpretation = str(dataset.get("PhotometricInterpretation", ""))
    if interpretation not in ("MONOCHROME1", "MONOCHROME2") or "PixelData" not in dataset or (dataset.get("NumberOfFrames") or 1) != 1:
        raise Problem("imaging.not_greyscale")
    bits, signed = dataset.get("BitsStored"), dataset.get("PixelRepresentation") == 1
    if not isinstance(bits, int) or not 1 <= bits <= 32:
        raise _unreadable("the description of the pixels")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            stored = dataset.pixel_array.astype(np.float32)
    except Exception as error:  # every decoder has errors of its own
        raise _unreadable(f"the pixels cannot be decoded, {type(error).__name__}") from None
    if stored.ndim != 2:
        raise Problem("imaging.not_greyscale")
    low = -(2.0 ** (bits - 1)) if signed else 0.0
    values = np.clip((stored - np.float32(low)) / np.float32(2.0**bits - 1), 0.0, 1.0, dtype=np.float32)
    return np.asarray(1.0 - values if interpretation == "MONOCHROME1" else values, dtype=np.float32)


def frame_count(dataset: Dataset) -> int:
    """How many frames an object has. Raises `imaging.unreadable`."""
    try:
        return max(1, int(dataset.get("NumberOfFrames") or 1))
    except (TypeError, ValueError):
        raise _unreadable("the number of frames") from None


def frames(dataset: Dataset) -> Iterator[NDArray[Any]]:
    """Stored values [rows, columns] of each frame, decoded one at a time, in the order in which they are stored. Colour of 8 bits whose
    channels say the same becomes their luma (ITU-R BT.601), uint8. Raises `imaging.not_greyscale`, `imaging.unreadable`."""
    interpretation = str(dataset.get("PhotometricInterpretation", ""))
    grey = interpretation in ("MONOCHROME1", "MONOCHROME2")
    if "PixelData" not in dataset or not (grey or (interpretation.startswith(("RGB", "YBR")) and dataset.get("BitsAllocated") == 8)):
        raise Problem("imaging.not_greyscale")
    count, found = frame_count(dataset), 0
    try:
        decoded = iter(iter_pixels(dataset))
    except Exception as error:  # see `parse`
        raise _unreadable(f"the pixels cannot be decoded, {type(error).__name__}") from None
    while True:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                frame = next(decoded, None)
        except Exception as error:  # every decoder has errors of its own
            raise _unreadable(f"the pixels cannot be decoded, {type(error).__name__}") from None
        if frame is None:
            break
        found += 1
        yield frame if grey else _luma(frame)
    if found != count:
        raise _unreadable(f"{found} frames of {count}")


def _luma(frame: NDArray[Any]) -> NDArray[np.uint8]:
    if frame.ndim != 3 or frame.shape[2] != 3 or int(np.ptp(frame.astype(np.int16), axis=2).max()) > TINT:
        raise Problem("imaging.not_greyscale")
    return np.rint(frame.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)).astype(np.uint8)


def wrap(
    image: Image.Image,
    *,
    patient_id: str,
    patient_name: str,
    study_uid: str,
    series_uid: str,
    sop_uid: str,
    modality: str,
    study_date: str,
    extra: dict[str, str],
    annotated: bool | None = False,
) -> bytes:
    """`image` as an 8-bit grey Secondary Capture object (PS3.3 A.8.1) in Explicit VR Little Endian; equal calls give equal bytes.

    `annotated` is what is known of text in the pixels (BurnedInAnnotation: NO, YES, or left out). `study_date` is YYYYMMDD or empty,
    `extra` maps further DICOM keywords to values. Colour and transparency are dropped.
    Raises `imaging.unsupported_image` for images deeper than 8 bits, `ValueError` for values that DICOM does not allow.
    """
    if image.mode[:1] in "IF":
        raise Problem("imaging.unsupported_image", mode=image.mode)
    grey = image.convert("L")
    dataset = Dataset()
    fields = {
        "SpecificCharacterSet": "ISO_IR 192",
        "ImageType": ["DERIVED", "SECONDARY"],
        "SOPClassUID": SecondaryCaptureImageStorage,
        "SOPInstanceUID": sop_uid,
        "StudyDate": study_date,
        "StudyTime": "",
        "AccessionNumber": "",
        "Modality": modality,
        "ConversionType": "WSD",
        "ReferringPhysicianName": "",
        "PatientName": patient_name,
        "PatientID": patient_id,
        "PatientBirthDate": "",
        "PatientSex": "",
        "StudyInstanceUID": study_uid,
        "SeriesInstanceUID": series_uid,
        "StudyID": "",
        "SeriesNumber": "1",
        "InstanceNumber": "1",
        "PatientOrientation": "",
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": grey.height,
        "Columns": grey.width,
        "BitsAllocated": 8,
        "BitsStored": 8,
        "HighBit": 7,
        "PixelRepresentation": 0,
    }
    if annotated is not None:
        fields["BurnedInAnnotation"] = "YES" if annotated else "NO"
    for keyword, value in (fields | extra).items():
        if tag_for_keyword(keyword) is None:
            raise ValueError(f"{keyword} is no DICOM keyword")
        setattr(dataset, keyword, value)
    raw = grey.tobytes()
    dataset.add_new(0x7FE00010, "OB", raw + b"\0" * (len(raw) % 2))
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return write(dataset)


def _unreadable(reason: str) -> Problem:
    return Problem("imaging.unreadable", reason=reason)


def _touch(dataset: Dataset) -> None:
    """Decodes every value at every depth, so that pydicom has nothing left to raise."""
    for tag in list(dataset.keys()):
        try:
            element = dataset[tag]
            if element.VR == "SQ":
                for item in element.value:
                    _touch(item)
        except Problem:
            raise
        except Exception as error:  # see `parse`
            place = f"element {tag}" if dictionary_has_tag(tag) else "an element"  # a broken file's tags may be anybody's text
            raise _unreadable(f"{place}, {type(error).__name__}") from None


def _declared_syntax(dataset: Dataset) -> UID | None:
    try:
        return dataset.file_meta.get("TransferSyntaxUID")
    except Exception as error:  # see `parse`
        raise _unreadable(f"the transfer syntax, {type(error).__name__}") from None


def _found_syntax(dataset: Dataset) -> UID:
    """The transfer syntax that pydicom found in a file that declares none."""
    implicit, little = dataset.original_encoding
    if not little:
        return ExplicitVRBigEndian
    return ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian


def _check_length(dataset: Dataset) -> None:
    """Pixels must be as long as the header says, and small enough to decode."""
    numbers = [dataset.get(name) for name in ("Rows", "Columns", "BitsAllocated", "SamplesPerPixel")] + [dataset.get("NumberOfFrames") or 1]
    if not all(isinstance(number, int) for number in numbers):
        raise _unreadable("the description of the pixels")
    try:
        expected = get_expected_length(dataset)
        packed = dataset.file_meta.TransferSyntaxUID.is_encapsulated
        actual = len(next(dataset[name].value or b"" for name in _PIXELS if name in dataset))
    except Exception as error:  # a private transfer syntax, a number of frames that is none
        raise _unreadable(f"the description of the pixels, {type(error).__name__}") from None
    if expected > LARGEST:
        raise _unreadable("the pixels are too large")
    if actual == 0 or (not packed and actual < expected):
        raise _unreadable("the pixels are cut short")


def _check_inflated(data: bytes) -> None:
    """A deflated data set (PS3.5 A.5) may not unpack to more than `LARGEST`: pydicom would unpack whatever it is told to."""
    if DeflatedExplicitVRLittleEndian.encode() not in data[:4096]:
        return
    if data[132:138] != b"\x02\x00\x00\x00UL":
        raise _unreadable("the length of the file meta information is missing")
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    rest, total = data[144 + int.from_bytes(data[140:144], "little") :], 0
    try:
        while rest and not inflater.eof:
            total += len(inflater.decompress(rest, 1 << 24))
            rest = inflater.unconsumed_tail
            if total > LARGEST:
                raise _unreadable("the data set is too large")
    except zlib.error:
        raise _unreadable("the deflated data set is damaged") from None
