"""From an image to the tensor a model takes: one specification for training in the hospital, for conversion and for serving.

The specification travels with the model as a document; the same document and pixels give the same tensor everywhere.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medmesh.errors import Problem

Resize = Literal["area", "bilinear"]
_LARGEST = 4096


@dataclass(frozen=True, slots=True)
class Preprocess:
    """`size` in pixels of the square result (the aspect ratio is not kept), `channels` equal copies of the grey image.

    `resize` is "area" (the mean over the area that a new pixel covers, as OpenCV's INTER_AREA when shrinking) or "bilinear"
    (Pillow's: a triangle filter, widened when shrinking).
    Values stay in 0..1. Raises `imaging.preprocess` for anything else.
    """

    size: int
    channels: int = 1
    resize: Resize = "area"

    def __post_init__(self) -> None:
        for name, largest in (("size", _LARGEST), ("channels", 16)):
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= largest:
                raise Problem("imaging.preprocess", reason=f"{name} must be a whole number from 1 to {largest}")
        if self.resize not in get_args(Resize):
            raise Problem("imaging.preprocess", reason=f"resize must be one of {', '.join(get_args(Resize))}")

    def apply(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """`pixels` float32 [rows, columns] in 0..1 as float32 [channels, size, size] in 0..1, contiguous. Raises `ValueError` otherwise."""
        if pixels.ndim != 2 or pixels.dtype != np.float32 or not pixels.size:
            raise ValueError("pixels must be float32 [rows, columns]")
        if not (pixels.min() >= 0.0 and pixels.max() <= 1.0):  # so written, it refuses NaN
            raise ValueError("pixels must be in 0..1")
        if self.resize == "area":
            plane = area(area(pixels.astype(np.float64), self.size).T, self.size).T
        else:
            image = Image.fromarray(np.ascontiguousarray(pixels))
            plane = np.asarray(image.resize((self.size, self.size), Image.Resampling.BILINEAR))
        return np.repeat(np.clip(plane, 0.0, 1.0).astype(np.float32)[np.newaxis], self.channels, axis=0)

    def to_document(self) -> dict[str, Any]:
        """The specification as JSON values; `range` says what the model may expect of each value."""
        return {**asdict(self), "range": [0.0, 1.0]}

    @classmethod
    def from_document(cls, document: dict[str, Any]) -> Preprocess:
        """What `to_document` wrote. An unknown or missing member raises `imaging.preprocess`: a guess would change the model's input."""
        wanted = {"size", "channels", "resize", "range"}
        if set(document) != wanted:
            raise Problem("imaging.preprocess", reason=f"the members must be {', '.join(sorted(wanted))}")
        if document["range"] != [0, 1]:
            raise Problem("imaging.preprocess", reason="range must be 0 to 1")
        return cls(document["size"], document["channels"], document["resize"])


def area(values: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    """float64 [rows, ...] to [size, ...]: the mean over each new row's area, by differences of the running integral.

    Pillow's box filter takes or leaves whole pixels instead; sums, unlike matrix products, are the same on every machine.
    """
    rows = len(values)
    integral = np.concatenate([np.zeros_like(values[:1]), np.cumsum(values, axis=0)])
    edges = np.arange(size + 1) * (rows / size)
    below = np.minimum(edges.astype(np.int64), rows - 1)
    part = (edges - below).reshape(-1, *(1 for _ in values.shape[1:]))
    at_edges = integral[below] * (1.0 - part) + integral[below + 1] * part
    return np.asarray(np.diff(at_edges, axis=0) * (size / rows))
