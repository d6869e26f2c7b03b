"""A DICOM series, or an object of several frames, as one volume: slices along their normal, in rescaled values, with an affine to RAS+
millimetres (PS3.3 C.7.6.2, C.7.6.16)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from medmesh.errors import Problem
from medmesh.imaging import reading
from medmesh.imaging.reading import pixels, read
from medmesh.pipelines.data import Data
from medmesh.quality import frames
from medmesh.quality.dicom import Slice, slice_of, unstackable

TO_RAS = np.array([-1.0, -1.0, 1.0])
"""DICOM's patient axes point left, posterior and superior."""


def rescaled(dataset: Any) -> Data:
    """float32 [rows, columns] of one object in its rescaled unit (PS3.3 C.11.1.1.2); what is shown with low values bright (MONOCHROME1,
    C.7.6.3.1.2) is turned around within the stored range, so that high is always bright. Raises `Problem` (`imaging.*`)."""
    pixels(dataset)  # refuses what is no grey frame, or cannot be decoded
    slope, intercept = float(dataset.get("RescaleSlope") or 1), float(dataset.get("RescaleIntercept") or 0)
    stored = _bright(dataset, dataset.pixel_array.astype(np.float64))
    values = (stored * slope + intercept).astype(np.float32)
    return Data(values, unit=str(dataset.get("RescaleType") or ""))


def volume(objects: Iterable[bytes]) -> Data:
    """float32 [columns, rows, slices] of the objects of one series, in any order. Raises `Problem`: `imaging.*`, and `pipelines.unfit`
    where slices are missing, lie unevenly, twice or in different directions, or do not say where they lie."""
    return placed(read(raw) for raw in objects)[0]


def placed(datasets: Iterable[Dataset]) -> tuple[Data, list[int]]:
    """The same of objects that were read, and which of them each slice is: their places in the order in which they came."""
    every = list(datasets)
    slices = [slice_of(one) for one in every]
    if broken := unstackable(slices):
        raise _unfit(f"its series breaks the rule {broken[0].code}")
    order, affine = stack(slices)
    values, units = np.empty((slices[0].size[1], slices[0].size[0], len(every)), np.float32), set()
    for place, number in enumerate(order):
        data = rescaled(every[number])
        values[:, :, place] = data.values.T
        units.add(data.unit)
    return Data(values, affine=affine, unit=units.pop() if len(units) == 1 else ""), order


def of_frames(dataset: Dataset) -> Data:
    """float32 [columns, rows, frames] of an object of several frames, in their rescaled unit: along their normal with an affine where they
    say where they lie, else one after the other in time. Beside the result one frame is in memory. Raises `Problem`: `imaging.*`, and
    `pipelines.unfit` where the frames that are placed are no volume."""
    try:
        places, units = frames.slices(dataset), frames.scales(dataset)
        order, affine = frames.in_time(dataset), None
    except (TypeError, ValueError, AttributeError) as error:  # pydicom decodes a value when it is first looked at
        raise Problem("imaging.unreadable", reason=type(error).__name__) from None
    if frames.is_placed(places):
        if broken := unstackable(places):
            raise _unfit(f"its frames break the rule {broken[0].code}")
        order, affine = stack(places)
    at = np.argsort(order)
    values = np.empty((places[0].size[1], places[0].size[0], len(places)), np.float32)
    for number, plane in enumerate(reading.frames(dataset)):
        slope, intercept, _ = units[number]
        values[:, :, at[number]] = (_bright(dataset, plane.astype(np.float64)) * slope + intercept).T
    names = {unit for _, _, unit in units}
    return Data(values, affine=affine, unit=names.pop() if len(names) == 1 else "")


def _bright(dataset: Dataset, plane: NDArray[np.float64]) -> NDArray[np.float64]:
    """Stored values of which high ones are bright (PS3.3 C.7.6.3.1.2)."""
    if dataset.PhotometricInterpretation != "MONOCHROME1":
        return plane
    return (-1.0 if dataset.get("PixelRepresentation") == 1 else 2.0 ** int(dataset.BitsStored) - 1) - plane


def stack(slices: Sequence[Slice]) -> tuple[list[int], NDArray[np.float64]]:
    """Of slices that are one volume (`unstackable`): their places in the order along their normal, and the affine float64 [4, 4] of
    columns, rows and slices to RAS+ millimetres. Raises `Problem` (`pipelines.unfit`)."""
    positions = np.array([one.position for one in slices], np.float64)
    (along_row, along_column), (between_rows, between_columns) = np.array(slices[0].orientation).reshape(2, 3), slices[0].spacing or (1, 1)
    normal = np.cross(along_row, along_column)
    order = [int(one) for one in np.argsort(positions @ normal, kind="stable")]
    first, last = positions[order[0]], positions[order[-1]]
    step = (last - first) / (len(order) - 1)
    if float(step @ normal) < 1e-3:
        raise _unfit("slices lie in one place")
    affine = np.eye(4)
    affine[:3] = np.stack([along_row * between_columns, along_column * between_rows, step, first], axis=1) * TO_RAS[:, None]
    return order, affine


def stored(dataset: Dataset, values: NDArray[np.float32]) -> NDArray[np.float64]:
    """Stored values of values in an object's rescaled unit: the inverse of `rescaled`, rounded, within what its bits can say."""
    slope, intercept = float(dataset.get("RescaleSlope") or 1), float(dataset.get("RescaleIntercept") or 0)
    bits, signed = int(dataset.BitsStored), dataset.get("PixelRepresentation") == 1
    made = np.rint((values.astype(np.float64) - intercept) / slope)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        made = (-1.0 if signed else 2.0**bits - 1) - made
    low = -(2.0 ** (bits - 1)) if signed else 0.0
    return np.clip(made, low, low + 2.0**bits - 1)


def _unfit(reason: str) -> Problem:
    return Problem("pipelines.unfit", step="load", reason=reason)
