"""Objects of several frames: where each frame lies, and the rules about them as volumes (PS3.3 C.7.6.6, C.7.6.16, C.8.8.3.2).

What is said of a frame stands in the functional groups of an enhanced object, its own before those that all frames share; in the header and
an offset for each frame of a dose; or nowhere, as of a film (ultrasound, angiography): its frames follow each other in time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from pydicom.dataset import Dataset

from medmesh.errors import Problem
from medmesh.imaging.reading import frame_count, frames
from medmesh.quality.arrays import of_image
from medmesh.quality.dicom import SMALLEST, Slice, bits_consistent, numbers, unstackable
from medmesh.quality.rules import BLOCKING, STACKED, Finding

SOME = 4_000_000
"""Of the values of all frames so many are looked at for the rules about brightness; each is for the least and the largest."""
PLACED = STACKED | {"no_position"}
"""What a volume may not break, whatever a project says."""


def check(dataset: Dataset, blocking: frozenset[str] = BLOCKING) -> list[str]:
    """The codes of rules that an object of several frames breaks as a volume: those among `blocking`, and any about its geometry."""
    return [one.code for one in of_object(dataset) if one.code in blocking | PLACED]


def of_object(dataset: Dataset) -> list[Finding]:
    """Everything there is to say of it; one frame at a time is in memory."""
    found = []
    if not str(dataset.get("Modality") or "").strip():
        found.append(Finding("missing_modality"))
    if not all(isinstance(dataset.get(name), int) and dataset.get(name) >= SMALLEST for name in ("Rows", "Columns")):
        found.append(Finding("too_small", {"least": SMALLEST}))
    if not bits_consistent(dataset):
        return [*found, Finding("bits_inconsistent")]  # the values would mean nothing
    try:
        found += _brightness(dataset)
        if is_placed(places := slices(dataset)):
            found += [one for one in unstackable(places) if one.code != "single_slice"]
    except Problem as problem:
        found.append(Finding("not_greyscale" if problem.code == "imaging.not_greyscale" else "unreadable_pixels"))
    return found


def _brightness(dataset: Dataset) -> list[Finding]:
    count = frame_count(dataset)
    step = max(1, -(-count * int(dataset.Rows) * int(dataset.Columns) // SOME))
    some, least, largest = [], np.inf, -np.inf
    for frame in frames(dataset):
        least, largest = min(least, float(frame.min())), max(largest, float(frame.max()))
        some.append(frame.ravel()[::step])
    return [Finding("constant_image")] if least == largest else list(of_image(np.concatenate(some)))


def is_placed(found: list[Slice]) -> bool:
    """Whether anything is said of where frames lie; else they follow each other in time."""
    return any(one.position is not None for one in found)


def slices(dataset: Dataset) -> list[Slice]:
    """Of each frame, in the order in which they are stored."""
    size = (int(dataset.get("Rows") or 0), int(dataset.get("Columns") or 0))
    offsets = _offsets(dataset)
    made = []
    for number, group in enumerate(_groups(dataset)):
        orientation = numbers(group("PlaneOrientationSequence"), "ImageOrientationPatient", 6)
        position = numbers(group("PlanePositionSequence"), "ImagePositionPatient", 3)
        if position is not None and orientation is not None and offsets is not None:
            normal = np.cross(orientation[:3], orientation[3:])
            position = tuple(float(one) for one in np.array(position) + offsets[number] * normal)
        elif "PerFrameFunctionalGroupsSequence" not in dataset:
            position = None  # of the first frame alone
        where = (position[0], position[1], position[2]) if position is not None else None
        made.append(Slice(where, orientation, size, number + 1, numbers(group("PixelMeasuresSequence"), "PixelSpacing", 2)))
    return made


def in_time(dataset: Dataset) -> list[int]:
    """The frames in the order of their temporal positions where each has another (PS3.3 C.7.6.16.2.2), else as they are stored."""
    said = [group("FrameContentSequence").get("TemporalPositionIndex") for group in _groups(dataset)]
    known = all(isinstance(one, int) for one in said) and len(set(said)) == len(said)
    return sorted(range(len(said)), key=said.__getitem__) if known else list(range(len(said)))


def scales(dataset: Dataset) -> list[tuple[float, float, str]]:
    """(slope, intercept, unit) of each frame: what its stored values mean (PS3.3 C.7.6.16.2.9, C.11.1; of a dose C.8.8.3)."""
    dose = dataset.get("DoseGridScaling")
    made = []
    for group in _groups(dataset):
        said = group("PixelValueTransformationSequence")
        slope, intercept = said.get("RescaleSlope"), said.get("RescaleIntercept")
        unit = said.get("RescaleType") if dose is None else dataset.get("DoseUnits")
        made.append((float((dose if slope is None else slope) or 1), float(intercept or 0), str(unit or "")))
    return made


def _groups(dataset: Dataset) -> Iterator[Any]:
    """For each frame, what answers the macro of a sequence's name: the frame's own, the one that all share, or the header itself."""
    shared = next(iter(dataset.get("SharedFunctionalGroupsSequence") or ()), Dataset())
    each = list(dataset.get("PerFrameFunctionalGroupsSequence") or ())
    count = frame_count(dataset)
    if each and len(each) != count:
        raise Problem("imaging.unreadable", reason="the functional groups are not as many as the frames")

    def of(own: Dataset) -> Any:
        def macro(name: str) -> Dataset:
            for group in (own, shared):
                if (found := group.get(name)) and len(found):
                    return found[0]
            return dataset

        return macro

    for number in range(count):
        yield of(each[number] if each else Dataset())


def _offsets(dataset: Dataset) -> list[float] | None:
    """Of a dose's planes along their normal from the first (PS3.3 C.8.8.3.2): said so, or as places in the patient."""
    said = dataset.get("GridFrameOffsetVector")
    if said is None or len(said) != frame_count(dataset):
        return None
    made = [float(one) for one in said]
    return [one - made[0] for one in made]
