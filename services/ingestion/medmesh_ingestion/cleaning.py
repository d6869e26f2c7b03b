"""One file as it came, as the de-identified DICOM file that may be kept, or the reason why not."""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from io import BytesIO
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from medmesh.errors import Problem
from medmesh.imaging import reading
from medmesh.imaging.deidentify import Options, deidentify, gate
from medmesh.imaging.verify import verify
from medmesh.quality.dicom import check
from medmesh.telemetry import log

MEDIA_TYPE = "application/dicom"
_IMAGES: dict[bytes, Literal["PNG", "JPEG"]] = {b"\x89PNG\r\n\x1a\n": "PNG", b"\xff\xd8\xff": "JPEG"}
_LONGEST = 2**16 - 1  # Rows and Columns are 16 bits, PS3.3 C.7.6.3
_TINT = 8  # of 256 levels: what the compression of a grey JPEG may leave between its channels


@dataclass(frozen=True, slots=True)
class Clean:
    """`item` names the source object, the same in every archive; `data` is a DICOM file without identifying attributes."""

    item: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Rejected:
    """`reason` is a code: of `medmesh.imaging`, of its quality rules, or of this module."""

    reason: str


def is_image(start: bytes) -> bool:
    """Whether a file that begins so (132 bytes) is a DICOM file, a PNG or a JPEG."""
    return start[128:132] == b"DICM" or start.startswith(tuple(_IMAGES))


def clean(data: bytes, key: bytes, meant: frozenset[str] = frozenset(), options: str = "") -> Clean | Rejected:
    """De-identify, prove it, check the quality. A PNG or JPEG becomes a DICOM Secondary Capture object of its grey values first.

    `meant` are rules of quality that a published set breaks on purpose, `options` words as `Options.parse` takes them. Never raises for
    what stands in `data`: one broken file does not keep the others out.
    """
    try:
        image = next((kind for magic, kind in _IMAGES.items() if data.startswith(magic)), None)
        source = reading.read(data if image is None else _wrapped(data, image, key), lazily=True)
        # a plain image has no header to judge by: whoever uploads it answers for its pixels
        chosen = Options.parse(options)
        done = deidentify(source, key, chosen, rules=None if image is None else gate.OPEN)
        result = reading.write(done.dataset)
        if verify(source, result, kept=chosen.kept):
            return Rejected("identifiers_left")
        if broken := [rule for rule in check(reading.read(result)) if rule not in meant]:
            return Rejected(broken[0])
    except Problem as problem:
        return Rejected(problem.code.removeprefix("imaging."))
    except Exception as error:  # the decoders are other people's, and so is the file
        log("file.failed", level=30, kind=type(error).__name__)
        return Rejected("failed")
    name = f"sop\0{source.SOPInstanceUID}".encode() if image is None else b"bytes\0" + data
    return Clean(hmac.digest(key, b"item\0" + name, "sha256").hex()[:16], result)


def _wrapped(data: bytes, kind: str, key: bytes) -> bytes:
    """As DICOM, upright, without what else stood in the file; each image is a patient of its own."""
    try:
        with Image.open(BytesIO(data), formats=[kind]) as opened:
            if max(opened.size) > _LONGEST:
                raise Problem("imaging.unsupported_image", mode="very large")
            image = ImageOps.exif_transpose(opened)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise Problem("imaging.unreadable", reason=type(error).__name__) from None
    if image.mode[:1] not in "1LIF" and np.ptp(np.asarray(image.convert("RGB")).astype(np.int16), axis=2).max() > _TINT:
        raise Problem("imaging.not_greyscale")
    number = int.from_bytes(hmac.digest(key, b"image\0" + data, "sha256")[:15], "big")  # PS3.5 §B.2
    study, series, sop = (f"2.25.{number << 8 | place}" for place in (1, 2, 3))
    return reading.wrap(
        image,
        patient_id="",
        patient_name="",
        study_uid=study,
        series_uid=series,
        sop_uid=sop,
        modality="OT",
        study_date="",
        extra={},
        annotated=None,
    )
