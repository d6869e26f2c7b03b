"""Whether an image is fit for a data set. Each rule is a code; the project decides which of them block."""

from __future__ import annotations

import numpy as np
from pydicom.dataset import Dataset

from medmesh.errors import Problem
from medmesh.imaging.reading import pixels

SMALLEST = 32  # pixels
RULES = ("missing_modality", "too_small", "bits_inconsistent", "not_greyscale", "unreadable_pixels", "constant_image")


def check(dataset: Dataset) -> list[str]:
    """The codes of `RULES` that `dataset`, as `reading.read` returns it, breaks; empty when it is fit.

    The bits must obey PS3.5 §8.1.1: BitsStored <= BitsAllocated, HighBit = BitsStored - 1, PixelRepresentation 0 or 1.
    """
    broken = []
    if not str(dataset.get("Modality") or "").strip():
        broken.append("missing_modality")
    if not all(isinstance(dataset.get(name), int) and dataset.get(name) >= SMALLEST for name in ("Rows", "Columns")):
        broken.append("too_small")
    if not _bits_consistent(dataset):
        return [*broken, "bits_inconsistent"]  # the values would mean nothing
    try:
        values = pixels(dataset)
    except Problem as problem:
        return [*broken, "not_greyscale" if problem.code == "imaging.not_greyscale" else "unreadable_pixels"]
    if np.ptp(values) == 0:
        broken.append("constant_image")
    return broken


def _bits_consistent(dataset: Dataset) -> bool:
    allocated, stored, high, sign = (dataset.get(name) for name in ("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"))
    if not all(isinstance(number, int) for number in (allocated, stored, high, sign)):
        return False
    return bool(1 <= stored <= allocated and high == stored - 1 and sign in (0, 1))
