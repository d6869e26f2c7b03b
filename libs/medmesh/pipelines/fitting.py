"""From an item to what a plan's schema says a worker is given: the same shape, scale and order of axes for every sample."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from medmesh.contracts.data import SignalSchema, VolumeSchema
from medmesh.errors import Problem
from medmesh.importing import stored
from medmesh.importing.formats import found
from medmesh.importing.formats.content import START
from medmesh.pipelines.data import Data
from medmesh.pipelines.loading import from_files
from medmesh.pipelines.steps import Normalise, Orient, Rate, Resample

_ALONE = ("nifti", "npy", "edf", "wav", "dicom")
"""Formats of which one file is a whole item; of DICOM an object of several frames is."""


def decoded(raw: bytes, schema: VolumeSchema | SignalSchema) -> Data:
    """A stored item (`medmesh.importing.stored`), or one file in a format of its own as published sets keep it, as it lies: a volume
    [x, y, z] with its affine where the file says one, or the schema's channels [channels, samples] of a signal with their rate. Raises
    `Problem` (`formats.*`, `pipelines.unfit`)."""
    channels = schema.channels if isinstance(schema, SignalSchema) else ()
    form = found(raw[:START])
    if form is not None and form.name in _ALONE:
        return from_files(form.name, {"0": raw}, channels)
    kept = stored.unpack(raw)
    return from_files(kept.format, kept.files, channels)


def fitted(data: Data, schema: VolumeSchema | SignalSchema) -> NDArray[np.float32]:
    """float32 [*schema.shape] as the schema's docstring says. Raises `Problem` (`pipelines.unfit`)."""
    if isinstance(schema, SignalSchema):
        if data.rate is None or data.values.ndim != 2:
            raise _unfit("a signal with a rate is needed")
        data = Normalise(by_channel=True).apply(Rate(hertz=schema.rate).apply(data))
        return sized(data.values[:, : schema.length], schema.shape, centred=False)
    if data.values.ndim != 3:
        raise _unfit(f"a volume has three axes, not {data.values.ndim}")
    if data.affine is not None:
        data = Orient().apply(data)
    if schema.spacing is not None:
        x, y, z = map(float, schema.spacing)
        data = Resample(spacing=(x, y, z)).apply(data)
    return sized(Normalise().apply(data).values[None], schema.shape, centred=True)


def sized(values: NDArray[Any], shape: tuple[int, ...], *, centred: bool) -> NDArray[np.float32]:
    """float32 of this shape: cut where it is longer, filled with 0 where it is shorter, at the end of each axis or on both sides."""
    if values.ndim != len(shape):
        raise _unfit(f"{len(shape)} axes are needed, not {values.ndim}")
    made = np.zeros(shape, dtype=np.float32)
    source, target = [], []
    for have, wanted in zip(values.shape, shape, strict=True):
        count, off = min(have, wanted), abs(have - wanted) // 2 if centred else 0
        source.append(slice(off, off + count) if have > wanted else slice(0, count))
        target.append(slice(off, off + count) if have < wanted else slice(0, count))
    made[tuple(target)] = values[tuple(source)]
    return made


def _unfit(reason: str) -> Problem:
    return Problem("pipelines.unfit", step="fit", reason=reason)
