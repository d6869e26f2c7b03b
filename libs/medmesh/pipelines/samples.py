"""From a stored item to what a model sees of it, through a pipeline: the same at a hospital's node, in central jobs and in what is served."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medmesh.contracts.data import ImageSchema
from medmesh.errors import Problem
from medmesh.pipelines.data import Data
from medmesh.pipelines.loading import from_file
from medmesh.pipelines.pipeline import Pipeline

_PICTURES = ((b"\x89PNG\r\n\x1a\n", "png"), (b"\xff\xd8\xff", "jpeg"))


def decoded(raw: bytes, schema: ImageSchema) -> Data:
    """An item as it lies, before any step. Raises `Problem` (`imaging.*`, `formats.*`, `pipelines.unfit`)."""
    form = next((form for start, form in _PICTURES if raw.startswith(start)), "dicom")
    try:
        return from_file(raw, form)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # what Pillow says of a broken picture
        raise Problem("pipelines.unfit", step="load", reason=type(error).__name__) from None


def through(pipeline: Pipeline, data: Data, schema: ImageSchema) -> Data:
    """What the pipeline makes of an item, float32 of the shape that one sample has (`DataSchema.shape`); an image is repeated for each
    channel. Raises `Problem` (`pipelines.unfit`, `pipelines.result`)."""
    made = pipeline.apply(data)
    values: NDArray[Any] = made.values
    if schema.kind == "images" and values.ndim == 2:
        values = np.repeat(values[None], schema.channels, axis=0)
    if values.shape != schema.shape:
        wanted = schema.shape[1:] if schema.kind == "images" else schema.shape
        raise Problem("pipelines.result", pipeline=pipeline.name, found=_by(made.values.shape), wanted=_by(wanted))
    values = np.ascontiguousarray(values, dtype=np.float32)
    if not np.isfinite(values).all():
        raise Problem("pipelines.unfit", step=pipeline.steps[-1].name, reason="values that are not finite")
    return made.with_values(values)


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "one number"
