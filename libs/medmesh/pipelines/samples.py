"""From a stored item, through a pipeline, to what a model sees of it: the same at a node, in central jobs and where models are used."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medmesh.contracts.data import ItemSchema
from medmesh.errors import Problem
from medmesh.pipelines import fitting
from medmesh.pipelines.data import Data
from medmesh.pipelines.loading import from_files
from medmesh.pipelines.pipeline import Pipeline

_PICTURES = ((b"\x89PNG\r\n\x1a\n", "png"), (b"\xff\xd8\xff", "jpeg"))


def decoded(raw: bytes, schema: ItemSchema) -> Data:
    """A stored item as it lies, before any step. Raises `Problem` (`imaging.*`, `formats.*`, `pipelines.unfit`)."""
    if schema.kind != "images":
        return fitting.decoded(raw, schema)
    form = next((form for start, form in _PICTURES if raw.startswith(start)), "dicom")
    try:
        return from_files(form, {"": raw})
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # what Pillow says of a broken picture
        raise Problem("pipelines.unfit", step="load", reason=type(error).__name__) from None


def through(pipeline: Pipeline, data: Data, schema: ItemSchema) -> Data:
    """What the pipeline makes of an item, float32 of the shape that one sample has (`DataSchema.shape`); an image is repeated for each
    channel. Raises `Problem` (`pipelines.unfit`, `pipelines.result`)."""
    made = pipeline.apply(data)
    values: NDArray[Any] = made.values
    if schema.kind == "images" and values.ndim == 2:
        values = np.repeat(values[None], schema.channels, axis=0)
    elif schema.kind == "volumes":
        values = values[None]
    if values.shape != schema.shape:
        wanted = schema.shape if schema.kind == "signals" else schema.shape[1:]
        raise Problem("pipelines.result", pipeline=pipeline.name, found=_by(made.values.shape), wanted=_by(wanted))
    values = np.ascontiguousarray(values, dtype=np.float32)
    if not np.isfinite(values).all():
        raise Problem("pipelines.unfit", step=pipeline.steps[-1].name, reason="values that are not finite")
    return made.with_values(values)


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "one number"
