"""From a stored item, through a pipeline, to what a model sees of it: the same at a node, in central jobs and where models are used."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medmesh.canonical import parse
from medmesh.contracts.data import ItemSchema
from medmesh.errors import Problem
from medmesh.imaging import reading
from medmesh.imaging.preprocess import Preprocess
from medmesh.pipelines import fitting
from medmesh.pipelines.data import TEXT, Data
from medmesh.pipelines.loading import from_files
from medmesh.pipelines.pipeline import Pipeline, of

_PICTURES: tuple[tuple[bytes, str], ...] = ((b"\x89PNG\r\n\x1a\n", "png"), (b"\xff\xd8\xff", "jpeg"))
_LARGEST_PIXELS = 2**26


def sample(raw: bytes, schema: ItemSchema) -> NDArray[Any]:
    """[*schema.shape], what a worker is given of one stored item: uint8 of an image that goes through no pipeline, else float32. A function
    of the bytes and the schema alone, wherever it is called. Raises `Problem` (`imaging.*`, `formats.*`, `pipelines.*`)."""
    if schema.pipeline is not None:
        return through(of(schema.pipeline), decoded(raw, schema), schema).values
    if schema.kind == "images":
        return image(raw, schema.image_size, schema.channels)
    return fitting.fitted(decoded(raw, schema), schema)


def image(raw: bytes, size: int, channels: int) -> NDArray[np.uint8]:
    """[channels, size, size] of a DICOM object, a PNG or a JPEG, brought to 0..255. Raises `Problem` (`imaging.*`)."""
    form = next((form for start, form in _PICTURES if raw.startswith(start)), None)
    grey = _picture(raw, form) if form else reading.pixels(reading.read(raw))
    return np.rint(Preprocess(size, channels).apply(grey) * np.float32(255)).astype(np.uint8)


def _picture(raw: bytes, form: str) -> NDArray[np.float32]:
    """[rows, columns] in 0..1; colour becomes luma (ITU-R BT.601), 16-bit grey keeps its depth."""
    try:
        # The format is given: Pillow then tries no other reader on bytes from outside.
        with Image.open(io.BytesIO(raw), formats=(form,)) as opened:
            if opened.width * opened.height > _LARGEST_PIXELS:
                raise Problem("imaging.unreadable", reason=f"more than {_LARGEST_PIXELS} pixels")
            deep = opened.mode[:1] == "I"
            stored = np.asarray(opened if deep else opened.convert("L"), dtype=np.float32)
    except Problem:
        raise
    except Exception as error:  # Pillow lets OSError, SyntaxError, ValueError, struct.error and others through
        raise Problem("imaging.unreadable", reason=type(error).__name__) from None
    return np.clip(stored / np.float32(65535 if deep else 255), 0.0, 1.0, dtype=np.float32)


def decoded(raw: bytes, schema: ItemSchema) -> Data:
    """A stored item as it lies, before any step. Raises `Problem` (`imaging.*`, `formats.*`, `pipelines.unfit`)."""
    if schema.kind == "texts":
        return _text(raw)
    if schema.kind != "images":
        return fitting.decoded(raw, schema)
    form = next((form for start, form in _PICTURES if raw.startswith(start)), "dicom")
    try:
        return from_files(form, {"": raw})
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # what Pillow says of a broken picture
        raise Problem("pipelines.unfit", step="load", reason=type(error).__name__) from None


def _text(raw: bytes) -> Data:
    """A note as a node keeps it. Raises `Problem` (`pipelines.unfit`)."""
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
