"""A volume without its face, back in the files it came in: NIfTI, or the objects of a DICOM series (`deidentify.faces`).

Of what was not changed every stored value stays bit for bit; what was is written in the file's own unit and type.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from medmesh.errors import Problem
from medmesh.imaging.deidentify import faces, masking
from medmesh.importing.formats import nifti
from medmesh.importing.formats.nifti import orientation
from medmesh.pipelines import series
from medmesh.pipelines.data import Data
from medmesh.pipelines.steps import Orient


def of_nifti(data: bytes, modality: str) -> bytes:
    """A NIfTI file without the face. Of more than three axes (time, directions) the mean is looked at, and what goes there is blank in
    every volume. Raises `Problem` (`imaging.face_*`, `formats.*`)."""
    values, header = nifti.decode(data)
    if values.ndim == 3:
        return nifti.replaced(data, *_without(values, header.affine, modality))
    with np.errstate(all="ignore"):
        mean = values.reshape(*values.shape[:3], -1).mean(axis=3, dtype=np.float64).astype(np.float32)
    _, changed = _without(mean, header.affine, modality)
    everywhere = np.broadcast_to(changed.reshape(*changed.shape, *(1,) * (values.ndim - 3)), values.shape)
    return nifti.replaced(data, np.full_like(values, faces.lowest(values)), everywhere)


def of_series(datasets: Sequence[Dataset]) -> list[bool]:
    """The objects of one series, as `reading.read` returns them, lose the face: the pixels of those it is in are replaced
    (uncompressed, Explicit VR Little Endian). Answers which they are. Raises `Problem` (`imaging.*`); then none of them is to be used."""
    try:
        whole, order = series.placed(datasets)
        assert whole.affine is not None
        values, changed = _without(whole.values, whole.affine, str(datasets[0].get("Modality") or ""))
        touched = [False] * len(datasets)
        for place, number in enumerate(order):
            dataset, here = datasets[number], changed[:, :, place].T
            touched[number] = bool(here.any())
            if touched[number]:
                frames, about = masking.decode(dataset)
                frames = frames.copy()
                frames[0][here] = series.stored(dataset, values[:, :, place].T[here]).astype(frames.dtype)
                masking.put(dataset, frames, about)
        return touched
    except Problem as problem:
        if problem.code == "pipelines.unfit":
            raise Problem("imaging.face_failed", reason=str(problem.params["reason"])) from None
        raise
    except (TypeError, ValueError, AttributeError, OverflowError) as error:  # pydicom decodes a value when it is first looked at
        raise Problem("imaging.unreadable", reason=type(error).__name__) from None


def _without(values: NDArray[np.float32], affine: NDArray[np.float64], modality: str) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Turned to RAS for the plug-in, and its answer turned back."""
    turned = Orient(to="RAS").apply(Data(values, affine=affine))
    assert turned.affine is not None
    made, changed = faces.removed(faces.Volume(turned.values, turned.affine, modality or "OT"))
    back = Orient(to=orientation(affine))
    return back.apply(turned.with_values(made)).values, back.apply(turned.with_values(changed)).values
