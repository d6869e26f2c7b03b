"""What a model sees of an image that goes through no pipeline. Nothing that pipelines are made of is loaded for it: a node of most
federations has no use for them."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medmesh.errors import Problem
from medmesh.imaging import reading
from medmesh.imaging.preprocess import Preprocess

_PICTURES: tuple[tuple[bytes, str], ...] = ((b"\x89PNG\r\n\x1a\n", "png"), (b"\xff\xd8\xff", "jpeg"))
_LARGEST_PIXELS = 2**26


def picture(raw: bytes) -> str | None:
    """The format of a picture, by its first bytes; None of all else."""
    return next((form for start, form in _PICTURES if raw.startswith(start)), None)


def image(raw: bytes, size: int, channels: int) -> NDArray[np.uint8]:
    """[channels, size, size] of a DICOM object, a PNG or a JPEG, brought to 0..255. Raises `Problem` (`imaging.*`)."""
    form = picture(raw)
    grey = _grey(raw, form) if form else reading.pixels(reading.read(raw))
    return np.rint(Preprocess(size, channels).apply(grey) * np.float32(255)).astype(np.uint8)


def _grey(raw: bytes, form: str) -> NDArray[np.float32]:
    """[rows, columns] in 0..1; colour becomes luma (ITU-R BT.601), 16-bit grey keeps its depth."""
    try:
        # The format is given: Pillow then tries no other reader on bytes from outside.
        with Image.open(io.BytesIO(raw), formats=(form,)) as opened:
            if opened.width * opened.height > _LARGEST_PIXELS:
                raise Problem("imaging.unreadable", reason=f"more than {_LARGEST_PIXELS} pixels")
            deep = opened.mode[:1] == "I"
            stored: Any = np.asarray(opened if deep else opened.convert("L"), dtype=np.float32)
    except Problem:
        raise
    except Exception as error:  # Pillow lets OSError, SyntaxError, ValueError, struct.error and others through
        raise Problem("imaging.unreadable", reason=type(error).__name__) from None
    return np.clip(stored / np.float32(65535 if deep else 255), 0.0, 1.0, dtype=np.float32)
