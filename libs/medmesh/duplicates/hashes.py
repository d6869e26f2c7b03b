"""Four ways of being the same, each a hash: of the bytes, of a DICOM object in any transfer syntax, of pixels, of how a picture looks."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

Look = Literal["difference", "average", "perceptual"]
BITS: dict[Look, int] = {"difference": 64, "average": 256, "perceptual": 64}
_PIXELS = frozenset((0x7FE00008, 0x7FE00009, 0x7FE00010))
_OF_ENCODING = frozenset((0x00080005,))  # the character set: texts are compared decoded


def exact(data: bytes) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(data).hexdigest()


def same_object(dataset: Dataset) -> str:
    """SHA-256 of a DICOM object: every element but group 0002, decoded and in order, and the pixels as they decode.

    Equal for one object in two lossless transfer syntaxes, whatever the lengths of its sequences. Pixels that no decoder reads count as
    their bytes. Two objects with one SOP instance UID and different hashes are a conflict, never a copy.
    """
    digest = hashlib.sha256()
    for part in _elements(dataset):
        digest.update(len(part).to_bytes(8, "big") + part)
    if any(tag in dataset for tag in _PIXELS):
        digest.update(_pixels(dataset).encode())
    return digest.hexdigest()


def same_pixels(values: NDArray) -> str:
    """SHA-256 of an array's shape, type and values; equal in either byte order and any memory layout."""
    plain = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))
    head = f"{plain.dtype.str} {plain.shape}".encode()
    return hashlib.sha256(len(head).to_bytes(8, "big") + head + plain.tobytes()).hexdigest()


def look(image: Image.Image, kind: Look) -> NDArray[np.uint8]:
    """uint8 [BITS[kind] / 8], packed bits, most significant first: few differ where two pictures look alike.

    `difference`: whether each of 8 x 8 cells is darker than its right neighbour (N. Krawetz, "Kind of Like That", 2013). `average`: whether
    each of 16 x 16 cells (bicubic) is brighter than their mean. `perceptual`: whether each of the 8 x 8 lowest frequencies of the cosine
    transform of 32 x 32 cells is above their median (C. Zauner, "Benchmarking of Perceptual Image Hash Functions", 2010).
    """
    grey = image.convert("L")
    if kind == "difference":
        cells = np.asarray(grey.resize((9, 8), Image.Resampling.LANCZOS))
        bits = cells[:, 1:] > cells[:, :-1]
    elif kind == "average":
        cells = np.asarray(grey.resize((16, 16), Image.Resampling.BICUBIC))
        bits = cells > cells.mean()
    else:
        cells = np.asarray(grey.resize((32, 32), Image.Resampling.LANCZOS), dtype=np.float64)
        lowest = _COSINES @ cells @ _COSINES.T
        bits = lowest > np.median(lowest)
    return np.packbits(bits.ravel())


_COSINES = np.cos(np.pi * np.arange(8)[:, np.newaxis] * (2 * np.arange(32) + 1) / 64)
"""float64 [8, 32]: the cosine transform (DCT-II), of which 8 frequencies are needed."""


def _elements(dataset: Dataset) -> Iterator[bytes]:
    for element in dataset:
        tag = int(element.tag)
        if tag in _PIXELS or tag in _OF_ENCODING or tag & 0xFFFF == 0:  # group lengths follow the encoding
            continue
        yield f"{tag:08x}{element.VR}".encode()
        if element.VR == "SQ":
            for item in element.value:
                yield b"item"
                yield from _elements(item)
            yield b"end"
        elif isinstance(element.value, bytes):
            yield element.value.rstrip(b"\0")
        else:
            yield str(element.value).rstrip(" \0").encode("utf-8", "surrogateescape")


def _pixels(dataset: Dataset) -> str:
    try:
        return same_pixels(np.asarray(dataset.pixel_array))
    except Exception:  # every decoder has errors of its own
        raw = next(dataset[tag].value for tag in _PIXELS if tag in dataset)
        return hashlib.sha256(bytes(raw or b"")).hexdigest()
