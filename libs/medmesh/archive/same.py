"""Whether two files are one object: the same elements with the same values, however they are encoded."""

from __future__ import annotations

import hashlib
import json
import warnings
from io import BytesIO
from typing import Any

import pydicom
from pydicom.dataset import Dataset

_PIXELS = 0x7FE00010


def canonical(data: bytes) -> str:
    """SHA-256 over the elements of a file in order, without group 0002, group lengths and padding; of pixels what they decode to, where
    they decode. Raises whatever pydicom stumbles over: such a file is the same as none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset = pydicom.dcmread(BytesIO(data), force=True)
        text = json.dumps(_elements(dataset), sort_keys=True, ensure_ascii=False)
        digest = hashlib.sha256(text.encode())
        if _PIXELS in dataset:
            digest.update(_pixels(dataset))
        return digest.hexdigest()


def same(one: bytes, other: bytes) -> bool:
    """False also where one of them cannot be read."""
    try:
        return canonical(one) == canonical(other)
    except Exception:  # pydicom lets struct.error, KeyError and others through
        return False


def _elements(dataset: Dataset) -> list[Any]:
    found: list[Any] = []
    for element in dataset:
        tag = int(element.tag)
        if tag & 0xFFFF == 0 or tag == _PIXELS or tag in (0xFFFCFFFC, 0x00080005):
            continue
        if element.VR == "SQ":
            value: Any = [_elements(item) for item in element.value]
        elif isinstance(element.value, bytes):
            value = hashlib.sha256(element.value.rstrip(b"\0")).hexdigest()
        else:
            value = str(element.value)
        found.append([tag, value])
    return found


def _pixels(dataset: Dataset) -> bytes:
    try:
        array = dataset.pixel_array
    except Exception:  # no decoder: then the bytes themselves
        return hashlib.sha256(dataset[_PIXELS].value).digest()
    little = array.astype(array.dtype.newbyteorder("<"))
    return hashlib.sha256(f"{little.shape} {little.dtype.str}".encode() + little.tobytes()).digest()
