"""Rules about DICOM objects, and about the objects of a series together (PS3.3 C.7.6.1, C.7.6.2, C.7.6.3)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydicom.dataset import Dataset

from medmesh.errors import Problem
from medmesh.imaging.reading import frame_count, pixels
from medmesh.quality.arrays import of_image
from medmesh.quality.rules import BLOCKING, STACKED, Finding

SMALLEST = 32  # pixels
UNEVEN = 0.02  # of the median spacing, or 0.05 mm: coordinates are written with few digits
GAP = 1.5  # times the median spacing: a slice is missing
GEOMETRY = {"00200032": 3, "00200037": 6, "00280010": 1, "00280011": 1, "00200013": 1, "00280030": 2}
"""What a slice is placed by, and how many values each has: position, orientation, rows, columns, instance number, pixel spacing."""


def check(dataset: Dataset, blocking: frozenset[str] = BLOCKING) -> list[str]:
    """The codes of rules among `blocking` that `dataset` breaks, as `reading.read` returns it; empty when it is fit."""
    return [finding.code for finding in of_object(dataset) if finding.code in blocking]


def of_object(dataset: Dataset) -> list[Finding]:
    """Everything there is to say of one image.

    The bits must obey PS3.5 §8.1.1: BitsStored <= BitsAllocated, HighBit = BitsStored - 1, PixelRepresentation 0 or 1.
    """
    found = []
    if not str(dataset.get("Modality") or "").strip():
        found.append(Finding("missing_modality"))
    if not all(isinstance(dataset.get(name), int) and dataset.get(name) >= SMALLEST for name in ("Rows", "Columns")):
        found.append(Finding("too_small", {"least": SMALLEST}))
    if not bits_consistent(dataset):
        return [*found, Finding("bits_inconsistent")]  # the values would mean nothing
    try:
        if (count := frame_count(dataset)) > 1:
            return [*found, Finding("several_frames", {"frames": count})]
        values = pixels(dataset)
    except Problem as problem:
        return [*found, Finding("not_greyscale" if problem.code == "imaging.not_greyscale" else "unreadable_pixels")]
    return [*found, *of_image(values)]


@dataclass(frozen=True, slots=True)
class Slice:
    """What a series is judged by: position and orientation in millimetres (None where absent), rows, columns, instance number, and the
    millimetres between rows and between columns."""

    position: tuple[float, float, float] | None
    orientation: tuple[float, ...] | None
    size: tuple[int, int]
    number: int | None
    spacing: tuple[float, ...] | None = None


def slice_of(dataset: Dataset) -> Slice:
    """From a data set read with or without pixels; values that are no numbers are absent."""
    position, orientation = numbers(dataset, "ImagePositionPatient", 3), numbers(dataset, "ImageOrientationPatient", 6)
    number = dataset.get("InstanceNumber")
    size = (int(dataset.get("Rows") or 0), int(dataset.get("Columns") or 0))
    where = (position[0], position[1], position[2]) if position else None
    return Slice(where, orientation, size, int(number) if isinstance(number, int) else None, numbers(dataset, "PixelSpacing", 2))


def slice_of_header(header: Mapping[str, Any]) -> Slice:
    """The same of a header as DICOM JSON (PS3.18 F), of which the members of `GEOMETRY` are looked at."""
    said = (_as_numbers(header.get(tag, {}).get("Value"), count) for tag, count in GEOMETRY.items())
    position, orientation, rows, columns, number, spacing = said
    where = (position[0], position[1], position[2]) if position else None
    size = (int(rows[0]) if rows else 0, int(columns[0]) if columns else 0)
    return Slice(where, orientation, size, int(number[0]) if number else None, spacing)


def of_series(slices: Sequence[Slice]) -> list[Finding]:
    """Of the objects of one series, in any order: what is missing between them, and what does not belong together."""
    found = []
    numbers = Counter(one.number for one in slices if one.number is not None)
    if copies := sum(count - 1 for count in numbers.values()):
        found.append(Finding("duplicate_instance_number", {"count": copies}))
    if (sizes := len({one.size for one in slices})) > 1:
        found.append(Finding("mixed_size", {"count": sizes}))
    if (spacings := len({tuple(round(step, 3) for step in one.spacing) for one in slices if one.spacing is not None})) > 1:
        found.append(Finding("mixed_spacing", {"count": spacings}))
    turned = np.array([one.orientation for one in slices if one.orientation is not None])
    if len(turned) > 1 and np.abs(turned - turned[0]).max() > 1e-3:
        return [*found, Finding("mixed_orientation", {"count": len(np.unique(np.round(turned, 3), axis=0))})]
    placed = np.array([one.position for one in slices if one.position is not None and one.orientation is not None])
    if len(placed) < 2:
        return found
    places = np.unique(np.round(placed @ np.cross(turned[0][:3], turned[0][3:]), 3))
    if copies := len(placed) - len(places):
        found.append(Finding("duplicate_position", {"count": copies}))
    if len(places) < 3:
        return found
    steps = np.diff(places)
    usual = float(np.median(steps))
    gaps = steps > GAP * usual
    if gaps.any():
        missing = int(np.round(steps[gaps] / usual - 1).sum())
        found.append(Finding("missing_slices", {"count": missing, "spacing": f"{usual:.2f}"}))
    if (np.abs(steps[~gaps] - usual) > max(0.05, UNEVEN * usual)).any():
        found.append(Finding("uneven_spacing", {"low": f"{steps[~gaps].min():.2f}", "high": f"{steps[~gaps].max():.2f}"}))
    return found


def broken(slices: Sequence[Slice], blocking: frozenset[str]) -> tuple[str, ...]:
    """The codes of rules among `blocking` that a series breaks as a whole; empty when it is fit."""
    return tuple(one.code for one in of_series(slices) if one.code in blocking)


def unstackable(slices: Sequence[Slice]) -> list[Finding]:
    """Why these objects of a series are no volume, in any order; empty when they are one."""
    found = [one for one in of_series(slices) if one.code in STACKED]
    if nowhere := sum(None in (one.position, one.orientation, one.spacing) for one in slices):
        found.append(Finding("no_position", {"count": nowhere}))
    if len(slices) < 2:
        found.append(Finding("single_slice", {"slices": len(slices)}))
    return found


def numbers(dataset: Dataset, keyword: str, count: int) -> tuple[float, ...] | None:
    """So many finite numbers; None where there are not."""
    return _as_numbers(dataset.get(keyword), count)


def _as_numbers(value: Any, count: int) -> tuple[float, ...] | None:
    try:
        made = tuple(float(one) for one in value) if value is not None else ()
    except (TypeError, ValueError):
        return None
    return made if len(made) == count and bool(np.isfinite(made).all()) else None


def bits_consistent(dataset: Dataset) -> bool:
    """PS3.5 §8.1.1."""
    allocated, stored, high, sign = (dataset.get(name) for name in ("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"))
    if not all(isinstance(number, int) for number in (allocated, stored, high, sign)):
        return False
    return bool(1 <= stored <= allocated and high == stored - 1 and sign in (0, 1))
