"""From a stored item, through a pipeline, to what a model sees of it: the same at a node, in central jobs and where models are used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medmesh.canonical import parse
from medmesh.contracts.data import ItemSchema
from medmesh.errors import Problem
from medmesh.imaging import plain

if TYPE_CHECKING:  # what pipelines are made of is loaded for the first item that needs it: most nodes have plain images
    from medmesh.pipelines.data import Data
    from medmesh.pipelines.pipeline import Pipeline


def sample(raw: bytes, schema: ItemSchema) -> NDArray[Any]:
    """[*schema.shape], what a worker is given of one stored item: uint8 of an image that goes through no pipeline, else float32. A function
    of the bytes and the schema alone, wherever it is called. Raises `Problem` (`imaging.*`, `formats.*`, `pipelines.*`)."""
    if schema.pipeline is not None:
        from medmesh.pipelines.pipeline import of

        return through(of(schema.pipeline), decoded(raw, schema), schema).values
    if schema.kind == "images":
        return plain.image(raw, schema.image_size, schema.channels)
    from medmesh.pipelines import fitting

    return fitting.fitted(decoded(raw, schema), schema)


def decoded(raw: bytes, schema: ItemSchema) -> Data:
    """A stored item as it lies, before any step. Raises `Problem` (`imaging.*`, `formats.*`, `pipelines.unfit`)."""
    if schema.kind == "texts":
        return _text(raw)
    if schema.kind != "images":
        from medmesh.pipelines import fitting

        return fitting.decoded(raw, schema)
    from PIL import Image

    from medmesh.pipelines.loading import from_files

    try:
        return from_files(plain.picture(raw) or "dicom", {"": raw})
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # what Pillow says of a broken picture
        raise Problem("pipelines.unfit", step="load", reason=type(error).__name__) from None


def _text(raw: bytes) -> Data:
    """A note as a node keeps it. Raises `Problem` (`pipelines.unfit`)."""
    from medmesh.pipelines.data import TEXT, Data

    try:
        said = parse(raw)["text"]
        return Data(np.frombuffer(said.encode(), dtype=np.uint8), unit=TEXT)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise Problem("pipelines.unfit", step="load", reason="it is no note") from None


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
        wanted = schema.shape if schema.kind in ("signals", "texts") else schema.shape[1:]
        raise Problem("pipelines.result", pipeline=pipeline.name, found=_by(made.values.shape), wanted=_by(wanted))
    values = np.ascontiguousarray(values, dtype=np.float32)
    if not np.isfinite(values).all():
        raise Problem("pipelines.unfit", step=pipeline.steps[-1].name, reason="values that are not finite")
    return made.with_values(values)


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "one number"
