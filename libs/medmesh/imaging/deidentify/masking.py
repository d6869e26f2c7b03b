"""Blanking pixels: decoded from whatever transfer syntax there is a decoder for, written uncompressed (Explicit VR Little Endian)."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.pixels import get_decoder
from pydicom.uid import ExplicitVRLittleEndian

from medmesh.errors import Problem
from medmesh.imaging.deidentify.gate import Detector, Verdict

_DTYPES = {8: np.uint8, 16: np.uint16, 32: np.uint32}


def mask(source: Dataset, result: Dataset, verdict: Verdict) -> None:
    """Puts `source`'s pixels into `result` with those blanked that the verdict names, in every frame; the rest stays bit for bit what the
    decoder gives. Blank is black: the least stored value there is, the largest for MONOCHROME1, no colour for YBR.

    `result` becomes Explicit VR Little Endian, and says that its annotations are gone. Raises `imaging.unreadable` for pixels that no
    installed decoder can decode, `imaging.burned_in` for regions that keep nothing.
    """
    frames, about = decode(source)
    inside = np.zeros(frames.shape[1:3], dtype=bool)
    for left, top, right, bottom in verdict.blank or verdict.keep:
        inside[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] = True
    away = inside if verdict.blank else ~inside
    if away.all():
        raise Problem("imaging.burned_in", rule=verdict.rule)
    frames = frames.copy()
    frames[:, away] = _black(frames, str(about["photometric_interpretation"]))
    put(result, frames, about)
    result.BurnedInAnnotation = "NO"


def decode(dataset: Dataset) -> tuple[NDArray[Any], dict[str, Any]]:
    """Stored values [frames, rows, columns] or [frames, rows, columns, samples], and what the decoder says of them."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            array, about = get_decoder(dataset.file_meta.TransferSyntaxUID).as_array(dataset, raw=True)
        if about["bits_allocated"] not in _DTYPES or "PixelData" not in dataset:
            raise ValueError("bits")
    except Exception as error:  # every decoder has errors of its own
        raise Problem("imaging.unreadable", reason=f"the pixels cannot be decoded, {type(error).__name__}") from None
    plain = 2 if about["samples_per_pixel"] == 1 else 3
    return (array[np.newaxis] if array.ndim == plain else array), dict(about)


def put(dataset: Dataset, frames: NDArray[Any], about: dict[str, Any]) -> None:
    """Stored values as `decode` gives them become the data set's pixels, uncompressed."""
    if dataset.original_encoding[1] is False:
        _to_little_endian(dataset)
    data = frames.astype(frames.dtype.newbyteorder("<"), copy=False).tobytes()
    dataset[0x7FE00010] = DataElement(0x7FE00010, "OB" if about["bits_allocated"] == 8 else "OW", data + b"\0" * (len(data) % 2))
    dataset.PhotometricInterpretation = str(about["photometric_interpretation"]).replace("_422", "")
    if about["samples_per_pixel"] > 1:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = int(about["bits_allocated"])
    for tag in (0x7FE00001, 0x7FE00002, 0x7FE00003):  # offsets of compressed frames
        if tag in dataset:
            del dataset[tag]
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian


def _to_little_endian(dataset: Dataset) -> None:
    """Every value decoded, so that it is encoded anew; words of bytes (OW) swapped, which pydicom does not do."""
    for element in dataset:
        if element.VR == "OW" and element.tag != 0x7FE00010:
            element.value = np.frombuffer(element.value, ">u2").astype("<u2").tobytes()
        elif element.VR == "SQ":
            for item in element.value:
                _to_little_endian(item)
    dataset.set_original_encoding(False, True, dataset.original_character_set)


def refuse_text(dataset: Dataset, found: Iterable[Detector]) -> None:
    """Raises `imaging.burned_in` if one of the detectors sees text in some frame."""
    readers: Sequence[Detector] = tuple(found)
    if not readers or "PixelData" not in dataset:
        return
    frames, _ = decode(dataset)
    if any(reader(frame) for frame in frames for reader in readers):
        raise Problem("imaging.burned_in", rule="text was found in the pixels")


def _black(frames: NDArray[Any], interpretation: str) -> Any:
    if interpretation.startswith("YBR_FULL"):
        return (0, 128, 128)
    if interpretation == "MONOCHROME1":
        return frames.max()
    return frames.min() if frames.ndim == 3 else 0
